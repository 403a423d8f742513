"""engine=vllm: refusals, and, where vLLM is installed, the same scores and texts as engine=transformers."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import running

from podium import contracts
from podium.engines import vllm
from podium.errors import DataError, PrerequisiteError

HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM (requirements-vllm.txt)")


def test_adapters_and_a_missing_vllm_are_refused(tmp_path, backbone_dir):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="merge_adapter.py"):
        vllm.load(tmp_path, 100)
    if not HAS_VLLM:
        with pytest.raises(PrerequisiteError, match="requirements-vllm.txt"):
            vllm.load(backbone_dir, 100)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, questions_dir):
    """A backbone with heads of 32, the smallest that vLLM takes."""
    folder = tmp_path_factory.mktemp("wide")
    running.run(
        "make_tiny_backbone", f"questions_dir={questions_dir}", f"output_dir={folder}", "vocabulary=600",
        "hidden_size=64", "layers=2", "heads=2", "intermediate_size=64", "max_position_embeddings=512",
    )  # fmt: skip
    return folder


@pytest.fixture
def candidates(tables, tmp_path):
    """Five candidates for each of six test questions."""
    test = tables.test.head(6)
    ids = tables.catalogue["misconception_id"].tolist()[:5]
    frame = pd.DataFrame(
        [(query, rank, one, -float(rank), "drawn") for query in test["query_id"] for rank, one in enumerate(ids, 1)],
        columns=[column.name for column in contracts.CANDIDATES.columns],
    )
    contracts.write_table(test, tmp_path / "test.parquet", contracts.QUESTIONS)
    contracts.write_table(frame, tmp_path / "candidates.parquet", contracts.CANDIDATES)
    return tmp_path


@needs_vllm
@pytest.mark.parametrize("kind", ["pointwise", "listwise"])
def test_scores_are_those_of_transformers(kind, wide, trainer, candidates, groups_dir, generated_dir, questions_dir):
    ranker = candidates / "ranker"
    more = ["candidates_per_group=[5]", "validation_depth=5"] if kind == "listwise" else []
    running.run(
        f"train_ranker_{kind}", *trainer(ranker, f"model.backbone={wide}", f"groups={groups_dir}", f"rationales={generated_dir}",
        "max_length_tokens=400", "optimizer.lr=0.01", *more),
    )  # fmt: skip
    found = []
    for engine in ("transformers", "vllm"):
        running.run(
            "score_candidates", f"checkpoint={ranker}", f"candidates={candidates}", f"questions_dir={questions_dir}",
            f"tables=[{candidates}/test.parquet]", f"output_dir={candidates}/{engine}", "device=cpu", "top_k=5", f"engine={engine}",
        )  # fmt: skip
        found.append(contracts.read_table(candidates / engine / "scores.parquet", contracts.SCORES)["score"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert found[0].std() > 1e-2, "the comparison means something"


@needs_vllm
def test_greedy_rationales_are_those_of_transformers(wide, trainer, candidates):
    reasoner = candidates / "reasoner"
    running.run(
        "train_llm_reasoner", *trainer(reasoner, f"model.backbone={wide}", "max_length_tokens=400", "optimizer.lr=0.01",
        "max_new_tokens=12", "sample_generations=0"),
    )  # fmt: skip
    found = []
    for engine in ("transformers", "vllm"):
        running.run(
            "generate_llm_reasoner", f"checkpoint={reasoner}", f"tables=[{candidates}/test.parquet]",
            f"output_dir={candidates}/{engine}", "device=cpu", "max_new_tokens=12", f"engine={engine}",
        )  # fmt: skip
        found.append(contracts.read_table(candidates / engine / "rationales.parquet", contracts.RATIONALES))
    assert len(found[0]) == 6
    pd.testing.assert_frame_equal(*found)
