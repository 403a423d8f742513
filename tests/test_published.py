"""Published files read into our tables and written from them: round trips, refusals, and no validation answer in training."""

import json

import numpy as np
import pandas as pd
import published as tiny
import pytest
import running

from podium import contracts, datasets, published
from podium.errors import DataError
from podium.ranker_data import ranker_rows
from podium.tables import read_training_tables

RANKER, LISTS, EMBED = "eedi-ranker-silver-v3-teacher-blended-cot", "eedi-tutor-mix-v8", "eedi-embed-mix-silver-v3"


@pytest.fixture(scope="module")
def data(tmp_path_factory, eedi_dir):
    return tiny.write_all(eedi_dir, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Our tables of the three sets, made in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data.parent)
        patch.setattr(datasets, "DATA", data)
        patch.setattr(datasets.resolve, "__defaults__", (data,))
        folder = tmp_path_factory.mktemp("made")
        return {
            name: published.tables_of(name, folder / name)
            for name in (RANKER, LISTS, EMBED, "eedi-cot-train-silver-v3")
        }


def table(folder, kind):
    return contracts.read_table(folder / f"{kind.name}.parquet", kind)


def test_synthetic_rows_are_told_by_the_folds_file_not_by_their_id(made):
    for folder in made.values():
        asked = table(folder, contracts.QUESTIONS)
        assert set(asked.loc[asked["source"] == "synthetic", "fold"]) == {99}
        assert set(asked.loc[asked["source"] == "train", "fold"]) <= set(range(5))
        assert {"synthetic", "train"} == set(asked["source"])


def test_tables_are_made_once_and_again_when_the_data_changes(data, made, monkeypatch, capsys):
    monkeypatch.setattr(datasets.resolve, "__defaults__", (data,))
    published.tables_of(EMBED, made[EMBED])
    assert "made tables" not in capsys.readouterr().out


def export(made, tmp_path, name, *more):
    folder = made[name]
    given = {
        "candidates": contracts.CANDIDATES,
        "scores": contracts.SCORES,
        "groups": contracts.GROUPS,
        "rationales": contracts.RATIONALES,
    }
    there = [f"{key}={folder}" for key, kind in given.items() if (folder / f"{kind.name}.parquet").is_file()]
    running.run("export_published", f"questions_dir={folder}", f"output_dir={tmp_path / 'out'}", *there, *more)
    return tmp_path / "out"


def test_hard_negatives_and_teacher_scores_round_trip(data, made, tmp_path):
    out = export(made, tmp_path, EMBED, "negatives_depth=32")
    held = table(made[EMBED], contracts.QUESTIONS)
    held = set(held.loc[held["fold"] == 0, "query_id"])
    for name in ("hn_mapping.json", "teacher_mapping.json"):
        old, new = (json.loads((folder / name).read_text()) for folder in (data / EMBED, out))
        assert new == {key: value for key, value in old.items() if key.split("|")[0] not in held} and held
    folds = pd.read_parquet(out / "folds.parquet").sort_values("QuestionId").reset_index(drop=True)
    source = pd.read_parquet(data / "eedi-five-folds" / "folds.parquet")
    pd.testing.assert_frame_equal(
        folds, source[source["QuestionId"].isin(folds["QuestionId"])].reset_index(drop=True), check_dtype=False
    )
    assert datasets.problems(datasets.by_name("eedi-five-folds"), out) == []


def test_the_ranker_set_round_trips(data, made, tmp_path):
    out = export(made, tmp_path, RANKER)
    assert datasets.problems(datasets.by_name(RANKER), out / "ranker") == []
    keys = ["query_id", "content_id"]
    for name in ("train", "valid", "valid_ff"):
        old, new = (pd.read_parquet(folder / f"{name}.parquet") for folder in (data / RANKER, out / "ranker"))
        columns = [one for one in old.columns if one in new.columns]
        assert set(old.columns) <= set(new.columns)
        if name == "valid":  # the published lists carry neither teacher nor thought
            columns = [one for one in columns if one not in ("teacher_score", "cot")]
        old, new = (frame[columns].sort_values(keys).reset_index(drop=True) for frame in (old, new))
        if name == "valid_ff":  # ours takes the first negatives of the list
            new = new.merge(old[keys])
            old = old.merge(new[keys])
        assert len(new)
        pd.testing.assert_frame_equal(old, new, check_dtype=False)
    again, _ = published.read_folder(out / "ranker", out)
    groups = again[contracts.GROUPS].sort_values(["query_id", "misconception_id"]).reset_index(drop=True)
    first = table(made[RANKER], contracts.GROUPS)
    train = first[~first["query_id"].isin(table(made[RANKER], contracts.QUESTIONS).query("fold == 0")["query_id"])]
    same = groups.merge(train, on=["query_id", "misconception_id"])
    assert len(same) == len(train) and (same["label_x"] == same["label_y"]).all()
    assert np.allclose(same["teacher_score_x"], same["teacher_score_y"])


def test_the_listwise_set_round_trips(data, made, tmp_path):
    out = export(made, tmp_path, LISTS)
    assert datasets.problems(datasets.by_name(LISTS), out / "listwise") == []
    for name in ("train", "valid"):
        old = pd.read_parquet(data / LISTS / f"{name}.parquet").set_index("query_id").sort_index()
        new = pd.read_parquet(out / "listwise" / f"{name}.parquet").set_index("query_id").sort_index()
        assert list(old.index) == list(new.index)
        for query in old.index:
            a, b = old.loc[query], new.loc[query]
            assert dict(zip(a["content_ids"], a["teacher_logits"])) == dict(zip(b["content_ids"], b["teacher_logits"]))
            assert a["content_ids"][a["label"]] == b["content_ids"][b["label"]]
            assert dict(zip(a["content_ids"], a["MisconceptionNameList"])) == dict(
                zip(b["content_ids"], b["MisconceptionNameList"])
            )
        assert {"cot_7b", "cot_14b", "cot_32b"} <= set(new.columns) and new["QuestionText"].equals(old["QuestionText"])
        assert new["label"].nunique() == 5, "the gold option stands anywhere"


def test_calibration_sets_are_prompts_of_training_rows(made, tmp_path):
    out = export(made, tmp_path, RANKER, "calibration_rows=20")
    asked = table(made[RANKER], contracts.QUESTIONS)
    held = set(asked.loc[asked["fold"] == 0, "QuestionText"])
    for kind, ending in (("pointwise", "Reply:"), ("listwise", "explanation:"), ("reasoner", "Why:")):
        texts = pd.read_parquet(out / "calibration" / f"{kind}.parquet")["text"]
        assert len(texts) == 20 and texts.str.endswith(ending).all()
        assert not any(f"Question: {question}\n" in text for text in texts for question in held)


def test_full_fit_with_a_teacher_uses_the_scored_candidates(made):
    whole = read_training_tables(made[RANKER], [1, 2, 3, 4, 99], 0, None, True)
    groups = table(made[RANKER], contracts.GROUPS)
    rows = ranker_rows(whole.train, groups, ["synthetic"], True, whole.held)
    assert len(rows.rows) == len(whole.train)
    for gold, pool, teacher in zip(rows.rows.label, rows.pools, rows.teacher, strict=True):
        assert gold in teacher and pool and set(pool) <= set(teacher) and gold not in pool


# --- refusals --------------------------------------------------------------------------------------------------------


def spoil(frame, how):
    frame = frame.copy()
    if how == "label":
        frame.loc[3, "label"] = 2
    elif how == "two golds":
        frame.loc[frame["query_id"] == frame["query_id"][0], "label"] = 1
    elif how == "id":
        frame["content_id"] = frame["content_id"].astype(str).astype(object)
        frame.loc[2, "content_id"] = "x7"
    elif how == "query id":
        frame["query_id"] = frame["query_id"] + "E"
    elif how == "name":
        frame.loc[frame.index[-1], "MisconceptionName"] = "another name"
        frame.loc[frame.index[-1], "content_id"] = frame["content_id"][0]
    return frame


@pytest.mark.parametrize(
    ("how", "message"),
    [("label", "must be 0 or 1"), ("two golds", "more than one row"), ("id", "x7"), ("query id", "QuestionId"), ("name", "two different names")],
)  # fmt: skip
def test_broken_ranker_sets_are_refused(how, message, data, tmp_path):
    for name in ("train", "valid", "valid_ff"):
        frame = pd.read_parquet(data / RANKER / f"{name}.parquet")
        (spoil(frame, how) if name == "train" else frame).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=message):
        published.read_folder(tmp_path, data / "eedi-five-folds")


@pytest.mark.parametrize("mapping", ["[1]", '{"1_A": 3}', '{"1_A": ["x"]}', '{"1_A": ["999999"]}', "{"])
def test_broken_hard_negatives_are_refused(mapping, tmp_path):
    (tmp_path / "hn.json").write_text(mapping)
    with pytest.raises(DataError):
        published.read_hn_mapping(tmp_path / "hn.json", {1, 2})


@pytest.mark.parametrize(
    "mapping", ["[1]", '{"1_A": 3}', '{"1_A|1": "x"}', '{"1_A|9": 1.0}', '{"1_A|1": NaN}', '{"1_A|1": true}']
)
def test_broken_teacher_scores_are_refused(mapping, tmp_path):
    (tmp_path / "teacher.json").write_text(mapping)
    with pytest.raises(DataError):
        published.read_teacher_mapping(tmp_path / "teacher.json", {1, 2})


def test_exporting_leaking_tables_is_refused(made, tmp_path):
    import shutil

    folder = tmp_path / "tables"
    shutil.copytree(made[RANKER], folder)
    groups = table(folder, contracts.GROUPS)
    asked = table(folder, contracts.QUESTIONS).set_index("query_id")["misconception_id"]
    at = groups.index[~groups["label"].astype(bool)][0]
    query = groups.loc[at, "query_id"]
    groups = groups[~((groups["query_id"] == query) & (groups["misconception_id"] == asked[query]))]
    groups.loc[at, "misconception_id"] = asked[query]
    contracts.write_table(
        groups.drop_duplicates(["query_id", "misconception_id"]), folder / "groups.parquet", contracts.GROUPS
    )
    with pytest.raises(DataError, match="would reach training"):
        export({RANKER: folder}, tmp_path, RANKER)
