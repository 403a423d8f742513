"""Pair tables: readers, twins, duplicates, leaks, folds, soft labels; and the data defects of the public code."""

import json
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import running

from podium import contracts
from podium.contracts import CheckpointMeta
from podium.errors import DataError
from podium.pairwise import bank_pairs, features, labelling, preparation, readers
from podium.pairwise.bank_pairs import draw_pairs
from podium.pairwise.judge import Margins
from podium.pairwise.pairs import JUDGEMENTS, PAIRS, SOFT_LABELS, pair_key, prompt_key
from podium.pairwise.rows import make_rows

TEXTS = ["prompt", "response_a", "response_b"]


def pairs_frame(count=6, **columns):
    frame = pd.DataFrame(
        {"pair_id": [f"p{n}" for n in range(count)], "prompt": [f"ask {n}" for n in range(count)],
         "response_a": [f"one {n}" for n in range(count)], "response_b": [f"two {n}" for n in range(count)],
         "winner": ["model_a", "model_b", "tie"] * (count // 3), "model_a": "m1", "model_b": "m2", "language": "English",
         "source": "s"}
    )  # fmt: skip
    frame = frame.assign(**columns)
    return frame.assign(prompt_id=frame["prompt"].map(prompt_key))


def as_file(frame, path):
    frame = frame.rename(columns={"pair_id": "id"})
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dict("records")))
    return path


# --- readers ---------------------------------------------------------------------------------------------------------


def test_the_three_formats_give_the_same_rows(tmp_path):
    frame = pairs_frame().assign(prompt=["NA", "null", "1", " x ", "漢字\n", "a,b"])
    frame["prompt_id"] = frame["prompt"].map(prompt_key)
    plain = frame.drop(columns="prompt_id")
    read = [readers.read_pairs(as_file(plain, tmp_path / f"p{end}"), "s")[0] for end in (".parquet", ".csv", ".jsonl")]
    for one in read:
        pd.testing.assert_frame_equal(one[list(frame.columns)], frame, check_dtype=False)
    assert read[0]["prompt"].tolist()[:2] == ["NA", "null"], "texts that pandas would take for missing are texts"


def test_lmsys_columns_and_turns(tmp_path):
    frame = pd.DataFrame(
        {"id": ["7", "8", "9"], "model_a": "x", "model_b": "y",
         "prompt": ['["hi","and now?"]', '["a"]', '["b"]'], "response_a": ['["one","two"]', '[null]', '["\\ud83d"]'],
         "response_b": ['["uno","dos"]', '["b"]', '["c"]'],
         "winner_model_a": [1, 0, 0], "winner_model_b": [0, 1, 0], "winner_tie": [0, 0, 1]}
    )  # fmt: skip
    got, soft = readers.read_pairs(as_file(frame, tmp_path / "train.csv"), "lmsys")
    assert got["winner"].tolist() == ["model_a", "model_b", "tie"] and soft is None
    assert got["prompt"][0] == "hi\n\nand now?" and got["response_a"].tolist() == ["one\n\ntwo", "", "?"]
    spoilt = frame.assign(winner_tie=[0, 0, 0])
    with pytest.raises(DataError, match="exactly one winner"):
        readers.read_pairs(as_file(spoilt, tmp_path / "bad.csv"), "lmsys")


@pytest.mark.parametrize("names", [("a_logit", "b_logit"), ("a_logits", "b_logits"), None])
def test_defect_wsdm_2_every_name_of_the_public_soft_labels_is_read(tmp_path, names):
    frame = pairs_frame().drop(columns=["winner", "prompt_id"])
    logits = np.log([[0.95, 0.05]] * 6)
    if names is None:
        frame["teacher_logits"] = list(logits)
    else:
        frame[list(names)] = logits
    _, soft = readers.read_pairs(as_file(frame, tmp_path / "stage2_data_240k.parquet"), "public")
    np.testing.assert_allclose(soft[["a_logit", "b_logit"]], logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"drop": "response_b"}, "column 'response_b'"), ({"winner": "model_c"}, "model_c"), ({"pair_id": "same"}, "more than once"),
     ({"rows": 0}, "no rows")],
)  # fmt: skip
def test_invalid_files_are_refused(tmp_path, change, message):
    frame = pairs_frame()
    if "drop" in change:
        frame = frame.drop(columns=change["drop"])
    elif "rows" in change:
        frame = frame.head(0)
    else:
        frame = frame.assign(**change)
    with pytest.raises(DataError, match=message):
        readers.read_pairs(as_file(frame, tmp_path / "x.parquet"), "s")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        readers.read_pairs(tmp_path / "broken.parquet", "s")
    with pytest.raises(DataError, match="preference files are"):
        readers.read_pairs(as_file(pairs_frame(), tmp_path / "x.txt"), "s")


def test_a_sources_own_prompt_ids_join_but_never_part(tmp_path):
    frame = pairs_frame().drop(columns="prompt_id")
    frame["prompt"] = ["same", "SAME ", "x", "y", "z", "w"]
    frame["prompt_id"] = ["1", "2", "3", "3", "4", "5"]
    got, _ = readers.read_pairs(as_file(frame, tmp_path / "x.jsonl"), "s")
    ids = got["prompt_id"].tolist()
    assert ids[0] == ids[1] and ids[2] == ids[3] and len(set(ids)) == 4


# --- joining, leaks, folds -------------------------------------------------------------------------------------------


def test_defect_wsdm_6_twins_are_found_wherever_they_stand():
    frame = pairs_frame()
    twins = preparation.swap(frame).assign(pair_id=[f"t{n}" for n in range(6)])
    shuffled = pd.concat([frame, twins]).sample(frac=1, random_state=3)
    joined, _, counts = preparation.join_sources([(shuffled, None)])
    assert len(joined) == 6 and counts == {"read": 12, "duplicates": 6, "conflicting winners": 0}
    for _, row in joined.iterrows():
        original = frame[frame["prompt"] == row["prompt"]].iloc[0]
        kept = row["response_a"] == original["response_a"]
        expected = original["winner"] if kept else preparation.SWAPPED.get(original["winner"], "tie")
        assert row["winner"] == expected


def test_conflicting_winners_are_counted_and_judged_rows_win_over_unjudged_ones():
    frame = pairs_frame()
    other = preparation.swap(frame).assign(pair_id=[f"o{n}" for n in range(6)], source="later")
    other.loc[0, "winner"] = "model_a"  # twin of a win of model_a: says the opposite
    joined, _, counts = preparation.join_sources([(frame.assign(winner=None), None), (other, None)])
    assert counts["conflicting winners"] == 0 and set(joined["source"]) == {"later"}
    joined, _, counts = preparation.join_sources([(frame, None), (other, None)])
    assert counts["conflicting winners"] == 1 and set(joined["source"]) == {"s"}


def test_soft_labels_of_twins_are_turned_and_averaged():
    frame = pairs_frame()
    twins = preparation.swap(frame).assign(pair_id=[f"t{n}" for n in range(6)])
    labels = [pd.DataFrame({"pair_id": one["pair_id"], "a_logit": a, "b_logit": b}) for one, a, b in ((frame, -0.2, -1.8), (twins, -1.6, -0.4))]  # fmt: skip
    _, soft, _ = preparation.join_sources([(frame, labels[0]), (twins, labels[1])])
    np.testing.assert_allclose(soft[["a_logit", "b_logit"]], [[-0.3, -1.7]] * 6)


def test_one_id_for_two_pairs_is_refused():
    with pytest.raises(DataError, match="different pairs"):
        preparation.join_sources([(pairs_frame(), None), (pairs_frame().assign(prompt="else"), None)])


def test_pairs_of_test_prompts_are_removed_and_counted():
    frame = pairs_frame(9)
    test = preparation.swap(frame.iloc[[0]]).assign(pair_id="x")
    test = pd.concat([test, frame.iloc[[1]].assign(pair_id="y", response_a="new")])
    kept, counts = preparation.without_leaks(frame, test)
    assert counts == {"test pairs among training pairs": 1, "pairs of test prompts": 2}
    assert kept["pair_id"].tolist() == [f"p{n}" for n in range(2, 9)]


def test_folds_never_part_a_prompt_and_are_even():
    frame = pairs_frame(300)
    frame["prompt_id"] = [f"q{n // 3}" for n in range(300)]
    folds = preparation.prompt_folds(frame, 5, seed=1)
    assert frame.assign(fold=folds).groupby("prompt_id")["fold"].nunique().max() == 1
    assert folds.value_counts().max() - folds.value_counts().min() <= 3
    shuffled = frame.sample(frac=1, random_state=0)
    again = preparation.prompt_folds(shuffled, 5, seed=1)
    assert dict(zip(shuffled["pair_id"], again, strict=True)) == dict(zip(frame["pair_id"], folds, strict=True))


def test_defect_features_3_a_swapped_copy_of_a_validation_pair_cannot_be_trained_on(tmp_path):
    frame = pairs_frame(30).drop(columns="prompt_id")
    twins = preparation.swap(frame).assign(pair_id=[f"t{n}" for n in range(30)]).sample(frac=1, random_state=1)
    as_file(frame, tmp_path / "a.jsonl"), as_file(twins, tmp_path / "b.jsonl")
    running.run(
        "prepare_pairs", f"output_dir={tmp_path}/pairs",
        f"sources=[{{path:{tmp_path}/a.jsonl,name:a,judged:true}},{{path:{tmp_path}/b.jsonl,name:b,judged:true}}]",
    )  # fmt: skip
    table = contracts.read_table(tmp_path / "pairs" / "pairs.parquet", PAIRS)
    keys = [pair_key(*row) for row in table[TEXTS].itertuples(index=False)]
    assert (
        len(table) == len(set(keys)) == 30
        and contracts.read_manifest(tmp_path / "pairs")["removed"]["duplicates"] == 30
    )


# --- the built-in pairs ----------------------------------------------------------------------------------------------


def test_bank_pairs_hide_the_winner_from_length_and_keep_test_questions_out():
    train, told = draw_pairs(1500, 0, test=False, label_noise=0.1, constructs=None)
    test, _ = draw_pairs(400, 0, test=True, label_noise=0.0, constructs=None)
    assert not set(train["prompt_id"]) & set(test["prompt_id"])
    assert train["pair_id"].is_unique and len(told) == len(train)
    for frame in (train, test):
        longer = frame["response_a"].str.len() > frame["response_b"].str.len()
        assert 0.42 < (longer == (frame["winner"] == "model_a")).mean() < 0.58
    pd.testing.assert_frame_equal(train, draw_pairs(1500, 0, test=False, label_noise=0.1, constructs=None)[0])
    clean, _ = draw_pairs(1500, 0, test=False, label_noise=0.0, constructs=None)
    assert 0.06 < (clean["winner"] != train["winner"]).mean() < 0.14
    pd.testing.assert_frame_equal(clean.drop(columns="winner"), train.drop(columns="winner"))


def test_bank_workings_look_alike_to_every_feature_and_differ():
    met = set()
    for task in islice(bank_pairs.usable_tasks(0), 6):
        for test in (False, True):
            for one in islice(filter(None, bank_pairs.matched_workings(task, 0, test)), 10):
                workings = [one.right, *one.wrong.values()]
                assert len({len(lines) for lines in workings}) == 1 and all(
                    lines != one.right for lines in workings[1:]
                )
                for writer in bank_pairs.WRITERS:
                    texts = [bank_pairs.dressed(lines, writer) for lines in workings]
                    seen = features.text_features(texts, np.ones(len(texts), dtype=bool))
                    np.testing.assert_array_equal(seen, np.repeat(seen[:1], len(texts), axis=0))
                met.update(one.wrong)
    assert len(met) >= 3


# --- judgements and soft labels --------------------------------------------------------------------------------------


def judgements(ids, probability, in_sample=False):
    p = np.asarray(probability, dtype=float)
    return pd.DataFrame({"pair_id": ids, "a_logit": np.log(p), "b_logit": np.log(1 - p), "margin_ab": 0.0, "margin_ba": 0.0,
                         "checkpoints": 1, "in_sample": in_sample})  # fmt: skip


def test_soft_labels_of_people_ties_and_judges():
    frame = pairs_frame().assign(winner=["model_a", "model_b", "tie", None, None, None])
    got = labelling.soft_labels(
        frame, judgements(["p3", "p4", "p5"], [0.9, 0.2, 0.5]), label_smoothing=0.05, temperature=2.0, teacher_share=0.0
    )
    contracts.validate(got, SOFT_LABELS, "test")
    p = np.exp(got["a_logit"])
    odds = lambda x: x / (1 + x)  # noqa: E731
    np.testing.assert_allclose(p, [0.95, 0.05, 0.5, odds(9**0.5), odds(0.25**0.5), 0.5])
    np.testing.assert_allclose(np.exp(got["b_logit"]), 1 - p)
    assert (
        got["kind"].tolist() == ["human"] * 3 + ["pseudo"] * 3 and got["pair_id"].tolist() == frame["pair_id"].tolist()
    )


def test_defect_wsdm_2_rows_without_judgement_are_named():
    frame = pairs_frame().assign(winner=[None] + ["model_a"] * 5)
    with pytest.raises(DataError, match=r"no judgement for pair 'p0'"):
        labelling.soft_labels(
            frame, judgements(["p1"], [0.5]), label_smoothing=0.05, temperature=1.0, teacher_share=0.0
        )
    with pytest.raises(DataError, match="no soft label for pair 'p5'"):
        make_rows(frame, pd.DataFrame({"pair_id": [f"p{n}" for n in range(5)], "a_logit": -0.1, "b_logit": -2.3}))


def test_a_teacher_is_mixed_in_only_out_of_sample():
    frame = pairs_frame(3).assign(winner="model_a")
    ids = frame["pair_id"].tolist()
    options = {"label_smoothing": 0.05, "temperature": 1.0, "teacher_share": 0.4}
    got = labelling.soft_labels(frame, judgements(ids, [0.5, 0.1, 0.9]), **options)
    np.testing.assert_allclose(np.exp(got["a_logit"]), 0.6 * 0.95 + 0.4 * np.array([0.5, 0.1, 0.9]))
    with pytest.raises(DataError, match="was trained on it"):
        labelling.soft_labels(frame, judgements(ids, [0.5] * 3, in_sample=True), **options)


def meta(folds, digest="d"):
    return CheckpointMeta(stage="pairwise", kind="full", base_model="x", folds_trained=folds, data_digest=digest)


def test_out_of_fold_teachers_judge_what_they_have_not_seen():
    metas = [meta([1, 2]), meta([0, 2]), meta([0, 1], digest="other")]
    folds = np.array([0.0, 1.0, 2.0, np.nan])
    ids, digests = np.array(["a", "b", "c", "d"]), np.array(["d"] * 4)
    used, inside = labelling.judges_of_rows(metas, digests, folds, ids, allow_in_sample=False)
    assert used.tolist() == [[True, False, False, True], [False, True, False, True], [True] * 4]
    assert not inside.any()
    with pytest.raises(DataError, match="trained on the fold of pair 'c'"):
        labelling.judges_of_rows(metas[:2], digests, folds, ids, allow_in_sample=False)
    used, inside = labelling.judges_of_rows(metas[:2], digests, folds, ids, allow_in_sample=True)
    assert inside.tolist() == [False, False, True, False] and used[:, 2].all()


def test_defect_wsdm_1_every_row_gets_a_probability():
    one = Margins(np.array([2.0, np.nan, 900.0, -3.0]), np.array([0.0, np.nan, 900.0, np.nan]))
    two = Margins(np.array([4.0, -1.0, 900.0, -5.0]), np.array([4.0, -1.0, 900.0, -5.0]))
    used = np.array([[True, False, True, True], [False, True, True, True]])
    logits, ab, ba = labelling.combine([one, two], used)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(
        np.exp(logits[:, 0]), [(sigmoid(2) + 0.5) / 2, sigmoid(-1), 1, (sigmoid(-3) + sigmoid(-5)) / 2]
    )
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1)
    assert np.isfinite(logits).all(), "a sure judge has no infinite logits"
    assert ab.tolist() == [2, -1, 900, -4] and np.isnan(ba[3])
    with pytest.raises(DataError, match="no probability"):
        labelling.combine([one], np.array([[True] * 4]))


def test_judgements_with_a_hole_are_refused_on_disk(tmp_path):
    frame = judgements(["a", "b"], [0.5, np.nan])
    with pytest.raises(DataError, match="a_logit is empty"):
        contracts.write_table(frame, tmp_path / "j.parquet", JUDGEMENTS)
