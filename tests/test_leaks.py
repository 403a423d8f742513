"""Validation answers never reach training: planted leaks are refused where a user would run into them, clean data is not."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import running

from podium import contracts, demos, intake, leaks, questions
from podium.errors import DataError
from podium.tables import read_training_tables

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mae"


def reworded(text):
    return "  ".join(text.split()).upper() + " ?"


def shuffled(text):
    return " ".join(np.random.default_rng(len(text)).permutation(text.split()))


def with_copies(asked):
    """The question table with 100 training rows that ask validation questions, and 20 moved out of their question's fold."""
    held = asked[(asked["fold"] == 0) & asked["misconception_id"].notna()]
    assert len(held) >= 25
    copies = []
    for kind, (change, source) in enumerate(((str, "train"), (reworded, "train"), (reworded, "synthetic"), (shuffled, "synthetic"))):  # fmt: skip
        ids = np.arange(25) + 900_000 + 100 * kind
        copies.append(
            held.iloc[:25].assign(
                QuestionId=ids,
                query_id=[f"{one}_A" for one in ids],
                source=source,
                fold=99 if source == "synthetic" else 1,
                QuestionText=held["QuestionText"].iloc[:25].map(change),
            )  # fmt: skip
        )
    both = pd.concat([asked, *copies], ignore_index=True).astype(asked.dtypes.to_dict())
    rows = both[(both["fold"] == 0) & both["misconception_id"].notna()]
    several = rows[rows["QuestionId"].duplicated(keep="first")].drop_duplicates("QuestionId")["query_id"].iloc[:20]
    both.loc[both["query_id"].isin(several), "fold"] = 3
    return both, {one for part in copies for one in part["query_id"]} | set(several)


@pytest.fixture(scope="module")
def spoilt_dir(tables, questions_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copy(questions_dir / "misconceptions.parquet", folder)
    both, planted = with_copies(tables.questions)
    contracts.write_table(both, folder / "questions.parquet", contracts.QUESTIONS)
    return folder, planted


def refused(script, *overrides, config_name="base"):
    """How many leaks a script counts in its refusal."""
    with pytest.raises(DataError, match="would reach training") as error:
        running.run(script, *overrides, config_name=config_name)
    kinds = re.search(r"would reach training \(([^)]*)\)", str(error.value)).group(1)
    assert "; " in str(error.value), "a remedy is given"
    return sum(int(one) for one in re.findall(r"(\d+) ×", kinds))


@pytest.mark.parametrize("script", ["train_llm_embedding", "train_llm_reasoner", "train_ranker_pointwise", "train_ranker_listwise"])  # fmt: skip
def test_validation_questions_among_training_rows_are_refused(script, spoilt_dir, groups_dir, trainer, tmp_path):
    folder, planted = spoilt_dir
    more = [f"groups={groups_dir}"] if "ranker" in script else []
    assert refused(script, *trainer(tmp_path, f"data.questions_dir={folder}", *more)) == len(planted) >= 110


def test_they_are_left_out_when_asked(spoilt_dir, questions_dir, capsys):
    folder, planted = spoilt_dir
    split = (folder, [1, 2, 3, 4, 99], 0, None, False)
    kept = read_training_tables(*split, leaking_rows="drop")
    clean = read_training_tables(questions_dir, *split[1:])
    assert set(kept.train.query_id) == set(clean.train.query_id) and not planted & set(kept.train.query_id)
    assert f"{len(planted)} training rows ask validation questions" in capsys.readouterr().out
    whole = read_training_tables(*split[:4], True)
    assert planted <= set(whole.train.query_id), "a full fit trains on the validation questions anyway"


@pytest.fixture(scope="module")
def pointwise_dir(tmp_path_factory, questions_dir, backbone_dir, groups_dir):
    folder = tmp_path_factory.mktemp("pointwise")
    running.run(
        "train_ranker_pointwise", f"output_dir={folder}", f"data.questions_dir={questions_dir}", f"groups={groups_dir}",
        f"model.backbone={backbone_dir}", "device=cpu", "data.validation_rows=6", "loop.max_steps=1", "loop.epochs=null",
        "loop.batch_size=2", "demos={per_misconception: 1, dropout: 0.0, max_characters: 80}",
    )  # fmt: skip
    return folder


def score(checkpoint, tables, questions_dir, output_dir):
    """Score the validation fold's candidates with a checkpoint."""
    candidates = output_dir / "candidates"
    held = tables.questions[(tables.questions["fold"] == 0) & tables.questions["misconception_id"].notna()]
    listed = held[["query_id", "misconception_id"]].assign(rank=1, score=1.0, source="t")
    contracts.write_table(
        listed.astype({"misconception_id": "int64"}), candidates / "candidates.parquet", contracts.CANDIDATES
    )
    return [
        "score_candidates", f"checkpoint={checkpoint}", f"candidates={candidates}", f"questions_dir={questions_dir}", "folds=[0]",
        f"tables=[{questions_dir}/questions.parquet]", f"output_dir={output_dir / 'scores'}", "device=cpu", "top_k=1",
    ]  # fmt: skip


def test_validation_rows_among_the_examples_are_refused(pointwise_dir, tables, questions_dir, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(pointwise_dir, folder)
    pool = contracts.read_table(folder / demos.FILE, contracts.QUESTIONS)
    held = tables.questions[(tables.questions["fold"] == 0) & tables.questions["misconception_id"].notna()].iloc[:25]
    contracts.write_table(pd.concat([pool, held], ignore_index=True), folder / demos.FILE, contracts.QUESTIONS)
    assert refused(*score(folder, tables, questions_dir, tmp_path)) == 25
    running.run(*score(pointwise_dir, tables, questions_dir, tmp_path / "clean"))


@pytest.mark.parametrize("script", ["train_ranker_pointwise", "train_ranker_listwise"])
def test_gold_negatives_and_wrong_labels_are_refused(script, groups_dir, tables, trainer, tmp_path):
    groups = contracts.read_table(groups_dir / "groups.parquet", contracts.GROUPS)
    train = tables.questions[tables.questions["misconception_id"].notna() & (tables.questions["fold"] != 0)]
    asked = groups["query_id"].isin(train["query_id"])
    unmarked = groups[asked & groups["label"]].index[:30]
    mismarked = groups[asked & ~groups["label"]].drop_duplicates("query_id").index[-30:]
    groups.loc[unmarked, "label"], groups.loc[mismarked, "label"] = False, True
    contracts.write_table(groups, tmp_path / "groups" / "groups.parquet", contracts.GROUPS)
    assert refused(script, *trainer(tmp_path / "run", f"groups={tmp_path / 'groups'}")) == 60


def test_gold_explanations_as_rationales_are_refused(questions_dir, tables, trainer, tmp_path):
    with pytest.raises(DataError, match="gold rationales") as error:
        running.run("train_llm_embedding", *trainer(tmp_path, f"rationales={questions_dir}"))
    assert f"({len(tables.rationales)} in all)" in str(error.value)


def test_artefacts_made_with_the_validation_fold_are_refused(questions_dir, trainer, tmp_path, generated_dir):
    """Retriever on everything → candidates → groups: each trainer that would learn from them says no, unless it is a full fit too."""
    quick = ["loop.max_steps=1", "loop.batch_size=4"]
    running.run("train_llm_embedding", *trainer(tmp_path / "retriever", "full_fit=true", *quick))
    running.run(
        "mine_candidates", f"checkpoint={tmp_path / 'retriever'}", f"questions_dir={questions_dir}", "device=cpu", "top_k=25",
        f"tables=[{questions_dir}/questions.parquet]", "allow_in_sample=true", f"output_dir={tmp_path / 'candidates'}",
    )  # fmt: skip
    running.run(
        "prepare_ranker_data", f"questions_dir={questions_dir}", f"candidates={tmp_path / 'candidates'}",
        f"output_dir={tmp_path / 'groups'}", "never_positive_share=1.0",
    )  # fmt: skip
    digest = contracts.input_digest(questions_dir / "questions.parquet")
    made_by = contracts.read_manifest(tmp_path / "groups")[leaks.TRAINED_ON]
    assert made_by == {digest: [0, 1, 2, 3, 4, 99]}
    hard = f"hard_negatives={{candidates: {tmp_path / 'candidates'}, per_query: 2, top: 8, refresh_every_steps: null}}"
    assert refused("train_llm_embedding", *trainer(tmp_path / "second", hard)) == 1
    for stage in ("pointwise", "listwise"):
        given = trainer(tmp_path / stage, f"groups={tmp_path / 'groups'}", *quick)
        assert refused(f"train_ranker_{stage}", *given) == 1
    running.run("train_ranker_pointwise", *given[1:], f"output_dir={tmp_path / 'full'}", "full_fit=true")
    # scores and rationales carry the same record
    for name in ("scores", "rationales"):
        folder = tmp_path / name
        contracts.write_json(folder / contracts.MANIFEST, {"config": "", "inputs": {}, "files": {}, leaks.TRAINED_ON: made_by})  # fmt: skip
    assert len(leaks.in_artefacts({"a": tmp_path / "scores", "b": tmp_path / "rationales"}, 0, digest)) == 2
    assert leaks.in_artefacts({"a": tmp_path / "scores"}, 0, "another table") == []


def test_helped_validation_lists_are_not_exported(groups_dir, questions_dir, tables, tmp_path):
    groups = contracts.read_table(groups_dir / "groups.parquet", contracts.GROUPS)
    held = set(tables.questions.loc[tables.questions["fold"] == 0, "query_id"])
    mined = groups[~(groups["query_id"].isin(held) & groups["label"])].drop(columns=["label", "teacher_score"])
    mined = mined.assign(score=1.0, source="t", rank=mined.groupby("query_id").cumcount() + 1)
    contracts.write_table(mined, tmp_path / "mined" / "candidates.parquet", contracts.CANDIDATES)
    given = [f"questions_dir={questions_dir}", f"groups={groups_dir}", f"candidates={tmp_path / 'mined'}"]
    count = refused("export_published", *given, f"output_dir={tmp_path / 'out'}")
    assert count == len(groups[groups["query_id"].isin(held) & groups["label"]]) >= 25
    published = [f"output_dir={tmp_path / 'out2'}", "refuse_leaks=false"]
    running.run("export_published", *given, *published)
    mapping = json.loads((tmp_path / "out2" / "hn_mapping.json").read_text())
    assert mapping and not held & set(mapping)


def test_clean_questions_raise_hardly_any_alarm(tmp_path):
    """Folds by construct, on questions of the bank and, where they lie beside the repository, of people: at most one row in a hundred."""
    from podium.procedural import generate, write_bank

    write_bank(generate(2000, 10, seed=11), tmp_path)
    for source in (tmp_path, *([SHARED] if SHARED.is_dir() else [])):
        folder = intake.read_folder(source)
        asked = questions.to_queries(folder.train, "train", questions.group_folds(folder.train, 5, 0))
        alarms = leaks.in_questions(asked, 0)
        assert len(alarms) <= 0.01 * len(asked) and len(asked) >= 200
