"""Every benchmark runs all of its arms, which agree, and writes what the page is made of."""

import importlib.util
import json
import subprocess
import sys

import pytest
from running import ROOT

PEERS = ("sentence_transformers", "trl", "faiss", "datasets")
ARMS = {"score": 5, "train": 4, "retriever": 3, "encode": 2, "top_k": 6, "sft": 2, "pairwise": 2, "planner": 3}


@pytest.mark.long
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PEERS), reason="pip install -r requirements-bench.txt"
)
@pytest.mark.parametrize("script", sorted(ARMS))
def test_all_arms_run_and_agree(script, tmp_path):
    path = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--smoke", "--json", str(path)],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    entries = json.loads(path.read_text())
    assert len(entries) == ARMS[script]
    for entry in entries:
        assert {"row", "arms", "ratio", "limit", "max_abs_diff"} <= set(entry)
        assert len(entry["arms"]) == 2 and all(arm["seconds"] > 0 for arm in entry["arms"].values())
        assert entry["max_abs_diff"] is None or entry["max_abs_diff"] < 2e-4
    assert any(entry["max_abs_diff"] is not None for entry in entries)


def gpu_rows(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments], capture_output=True, text=True, timeout=300
    )


def test_gpu_rows_say_that_they_need_one():
    done = gpu_rows()
    assert done.returncode != 0 and done.stderr.splitlines()[-1].startswith("benchmarks/gpu.py needs a GPU")
    assert "Traceback" not in done.stderr


def test_gpu_rows_all_run_on_a_tiny_model(tmp_path):
    done = gpu_rows("--smoke", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 8 and all(row["seconds"] > 0 and row["tokens_per_second"] > 0 for row in rows)
