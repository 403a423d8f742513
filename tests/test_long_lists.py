"""Lists of 15, 25 and 52 options: their label tokens, shuffled in training, both orders averaged at inference."""

import json
import math
import string

import numpy as np
import pandas as pd
import pytest
import running

from podium import contracts, prompts, tokenization
from podium.errors import DataError


@pytest.fixture(scope="module")
def wide_groups(tmp_path_factory, tables):
    """Groups of the gold misconception (anywhere) and 59 others."""
    folder = tmp_path_factory.mktemp("wide")
    labelled = tables.questions[tables.questions["misconception_id"].notna()]
    catalogue = tables.catalogue["misconception_id"].to_numpy()
    rows = []
    for number, (query, gold) in enumerate(
        zip(labelled["query_id"], labelled["misconception_id"].astype(int), strict=True)
    ):
        others = np.random.default_rng(number).permutation(catalogue[catalogue != gold])[:59].tolist()
        others.insert(number % 50, gold)
        rows += [(query, one, rank, one == gold, None) for rank, one in enumerate(others, 1)]
    frame = pd.DataFrame(rows, columns=[column.name for column in contracts.GROUPS.columns])
    frame = frame.astype({"rank": "Int64", "teacher_score": "float64"})
    contracts.write_table(frame, folder / "groups.parquet", contracts.GROUPS)
    return folder


@pytest.fixture(scope="module")
def roomy_backbone(tmp_path_factory, questions_dir):
    """A backbone with long positions, in whose tokenizer all 52 labels are one token, as in those of Qwen and Llama."""
    folder = tmp_path_factory.mktemp("roomy")
    labels = prompts.option_labels(52)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "option_labels", lambda count: labels)
        make_backbone(folder, questions_dir)
    return folder


def make_backbone(folder, questions_dir):
    running.run(
        "make_tiny_backbone", f"questions_dir={questions_dir}", f"output_dir={folder}", "vocabulary=600",
        "hidden_size=32", "layers=2", "heads=2", "intermediate_size=64", "max_position_embeddings=4096",
    )  # fmt: skip


def test_labels_beyond_z_are_small_letters_and_one_token_each(roomy_backbone):
    tokenizer = tokenization.load_tokenizer(roomy_backbone)
    labels = prompts.option_labels(52)
    assert labels == [f" {one}" for one in string.ascii_uppercase + string.ascii_lowercase]
    assert prompts.option_labels(5) == labels[:5]
    ids = tokenization.label_token_ids(tokenizer, labels)
    assert len(set(ids)) == 52
    for label, one in zip(labels, ids, strict=True):
        assert (
            tokenizer.decode([one]) == label and tokenization.encode(tokenizer, [f"explanation:{label}"])[0][-1] == one
        )
    for count in (0, 53):
        with pytest.raises(ValueError, match="1 to 52"):
            prompts.option_labels(count)


@pytest.mark.parametrize("sizes", [[15], [25], [52], [3, 5, 15, 25, 52]])
def test_long_lists_train_and_score(sizes, wide_groups, roomy_backbone, tables, questions_dir, trainer, tmp_path):
    widest = max(sizes)
    running.run(
        "train_ranker_listwise",
        *trainer(tmp_path / "run", f"groups={wide_groups}", f"model.backbone={roomy_backbone}", f"candidates_per_group={sizes}",
                 f"validation_depth={widest}", "max_length_tokens=4000", "max_tokens_per_micro_batch=12000", "loop.max_steps=2",
                 "data.validation_rows=4", "optimizer.lr=0.01"),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and all(math.isfinite(one) for one in losses)
    if (
        len(sizes) == 1
    ):  # an untrained model knows nothing: ln N for the letters, half of that for the options beside them
        assert losses[0] == pytest.approx(1.5 * math.log(widest), rel=0.15)
    meta = contracts.read_meta(tmp_path / "run")
    assert meta.label_tokens == prompts.option_labels(widest) and len(set(meta.label_token_ids)) == widest

    def scores(name, reverse):
        held = tables.questions[(tables.questions["fold"] == 0) & tables.questions["misconception_id"].notna()].iloc[:3]
        groups = contracts.read_table(wide_groups / "groups.parquet", contracts.GROUPS)
        listed = groups[groups["query_id"].isin(held["query_id"]) & (groups["rank"] <= widest)].copy()
        if reverse:
            listed["rank"] = widest + 1 - listed["rank"]
        listed = listed.sort_values(["query_id", "rank"])[["query_id", "rank", "misconception_id"]].assign(
            score=1.0, source="t"
        )
        contracts.write_table(listed, tmp_path / name / "candidates.parquet", contracts.CANDIDATES)
        running.run(
            "score_candidates", f"checkpoint={tmp_path / 'run'}", f"candidates={tmp_path / name}", f"questions_dir={questions_dir}",
            f"tables=[{questions_dir}/questions.parquet]", f"output_dir={tmp_path / name / 'scores'}", "device=cpu", f"top_k={widest}",
        )  # fmt: skip
        made = contracts.read_table(tmp_path / name / "scores" / "scores.parquet", contracts.SCORES)
        return made.sort_values(["query_id", "misconception_id"])["score"].to_numpy()

    one, two = scores("order", False), scores("reverse", True)
    assert len(one) == 3 * widest and np.std(one) > 1e-4
    np.testing.assert_allclose(
        one, two, atol=1e-4, err_msg="both orders are averaged, so the given one does not matter"
    )


def test_a_tokenizer_that_splits_a_label_is_refused_before_any_model_loads(wide_groups, trainer, tmp_path):
    """The demo's tokenizer knows capital letters only."""
    more = [f"groups={wide_groups}", "candidates_per_group=[52]", "validation_depth=52"]
    with pytest.raises(DataError, match="' g'.* not single tokens"):
        running.run("train_ranker_listwise", *trainer(tmp_path, *more))
