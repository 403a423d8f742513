"""Run every row of the benchmarks and write docs/benchmarks.md, its plots and its JSON.

python benchmarks/run_all.py            # all rows and the scaling plots, about half an hour on 2 quiet cores
python benchmarks/run_all.py --quick    # small shapes
python benchmarks/run_all.py --keep     # rows that output_dir has figures of are not run again
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
ROWS = ("score", "train", "retriever", "encode", "top_k", "sft", "pairwise", "planner", "pair_features")
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers", "trl", "faiss-cpu")
NAMES = {"ratio": "ratio", "of_limit": "of the limit", "memory": "× less memory"}


def machine() -> str:
    """Cores, processor, memory and system."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kind = names[0] if names else platform.processor()
    return f"{os.cpu_count()} CPU cores, {kind}, {memory:.0f} GiB, {platform.system()}"


def run(script: str, path: Path, arguments: list[str], keep: bool) -> None:
    """One script, unless what it writes is there; its failure ends everything."""
    if keep and path.is_file():
        print(f"== {script}: kept", flush=True)
        return
    print(f"== {script}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, str(HERE / f"{script}.py"), *arguments], check=True)
    print(f"{script}: {time.perf_counter() - started:.0f} s", flush=True)


def promised(entry: dict) -> str:
    """The target, and whether it was met."""
    if not entry["target"]:
        return "–"
    text = ", ".join(f"{NAMES[name]} ≥ {least:.2g}" for name, least in entry["target"].items())
    return f"{text}: {'?' if entry['met'] is None else 'met' if entry['met'] else '**missed**'}"


def table(entries: list[dict]) -> str:
    """Markdown: every ratio with its limit beside it."""
    lines = [
        "| row | against | ours | theirs | ratio | limit | of the limit | target | largest difference | memory ours / theirs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        ours, theirs = entry["arms"].values()
        row, peer = entry["row"].split(" | ", 1)
        apart = "–" if entry["max_abs_diff"] is None else f"{entry['max_abs_diff']:.0e}"
        memory = " / ".join("–" if arm["peak_mb"] is None else f"{arm['peak_mb']:.0f}" for arm in (ours, theirs))
        lines.append(
            f"| {row} | {peer} | {ours['seconds']:.3f} s | {theirs['seconds']:.3f} s | **{entry['ratio']:.2f}** |"
            f" {entry['limit']:.2f} | {entry['ratio'] / entry['limit']:.2f} | {promised(entry)} | {apart} | {memory} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Rows, scaling, page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmarks"), help="figures of each script")
    parser.add_argument("--docs_dir", type=Path, default=DOCS, help="where the page goes")
    options = parser.parse_args()
    folder, docs = options.output_dir, options.docs_dir
    folder.mkdir(parents=True, exist_ok=True)
    quick = ["--quick"] if options.quick else []
    entries = []
    for script in ROWS:
        path = folder / f"{script}.json"
        run(script, path, ["--json", str(path), *quick], options.keep)
        entries += json.loads(path.read_text())
    run("scaling", folder / "benchmarks_scaling.json", ["--output_dir", str(folder), *quick], options.keep)
    docs.mkdir(parents=True, exist_ok=True)
    for name in ("benchmarks_scaling.json", "benchmarks_scaling.png"):
        (docs / name).write_bytes((folder / name).read_bytes())
    (docs / "benchmarks.json").write_text(json.dumps(entries, indent=1) + "\n")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    reached = [entry["met"] for entry in entries if entry["met"] is not None]
    notes = HERE / "notes.md"
    page = f"""# Benchmarks

Written by `benchmarks/run_all.py` (`make bench`) on {datetime.date.today()}; {machine()}; {versions}; shapes: {"--quick, small" if options.quick else "full"}.
Random Qwen2 of 6 layers × 384 (6 heads, 2 key-value heads), fp32. All arms of a row run in one process on the same weights and tokens,
interleaved after a warm-up; seconds are medians of five or more (pair_features: three), ratios are medians of neighbouring runs. Only ratios count. A limit is the ratio
of floating-point operations of linear layers and head, so it leaves attention and the loss out, and a ratio can pass it. "Memory" is what the
tensors of a run add to the process at its peak. {sum(reached)} of {len(reached)} targets were met. The raw figures are in benchmarks.json.

{table(entries)}

{notes.read_text() if notes.is_file() else ""}
## Scaling

![Scaling](benchmarks_scaling.png)

The corpus panel searches embeddings that are there; encoding a million texts would take this machine hours.

## One GPU

`python benchmarks/gpu.py --json outputs/benchmarks/gpu.json` measures scoring, encoding, LoRA, SFT and contrastive steps of 7B shapes in
absolute figures. No GPU was at hand so far: it has only been run with a tiny model on the CPU (`--smoke`).
"""
    (docs / "benchmarks.md").write_text(page)
    print(f"wrote {docs / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
