"""How time and peak memory grow with candidates, batch, corpus and processes; one picture and its figures."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from common import LABELS

HERE = Path(__file__).resolve().parent
BUDGET = 1024
"""Tokens of a pass of GradCache: below the smallest batch, so that its memory can be flat."""
LONG_SECONDS = 15
"""A run that takes longer is timed once."""
Figures = dict[str, dict[int, dict[str, float | None]]]
"""arm -> size -> seconds, peak_mb."""


def timed(run: Callable[[], Any]) -> dict[str, float | None]:
    """Memory and the median time of a run; of the first alone where that is long."""
    started = time.perf_counter()
    run()
    seconds = [time.perf_counter() - started]
    _, memory = common.with_peak(run)
    for _ in range(0 if seconds[0] > LONG_SECONDS else 3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "peak_mb": memory}


def candidates(sizes: list[int]) -> Figures:
    """Scoring n candidates of one query, packed and as separate rows of which 8 go together."""
    from podium.batching.groups import collate_packed, pack
    from podium.modeling import LabelScorer

    scorer, figures = LabelScorer(common.make_model()), {"shared prefix": {}, "separate rows": {}}
    for size in sizes:
        context, suffixes = common.group_of(300, 28, size, 2048)
        prompts = [[*context, *one] for one in suffixes]

        @torch.inference_mode()
        def run(together: int, min_ratio: float, prompts: list[list[int]] = prompts) -> None:
            for at in range(0, len(prompts), together):
                part = prompts[at : at + together]
                scorer(**collate_packed([pack(part, [(0, 0)] * len(part), min_ratio)]), label_ids=LABELS)

        figures["shared prefix"][size] = timed(lambda run=run, size=size: run(size, 1.3))
        figures["separate rows"][size] = timed(lambda run=run: run(8, 1e9))
    return figures


def batches(sizes: list[int]) -> Figures:
    """A contrastive step of n queries and n documents of 8–24 tokens, with and without GradCache."""
    from retriever import our_step

    from podium import losses
    from podium.modeling import Embedder

    embedder = Embedder(common.make_model().model, "last", BUDGET).train()
    figures: Figures = {"GradCache": {}, "one graph": {}}
    for size in sizes:
        draw = lambda: common.random_ids(8 + int(torch.randint(0, 17, (1,))), 2048)  # noqa: E731
        queries, documents = [draw() for _ in range(size)], [draw() for _ in range(size)]
        step, _ = our_step(embedder, queries, list(range(size)), documents, BUDGET)
        figures["GradCache"][size] = timed(step)
        if size <= 1024:  # beyond, it would need more memory than small machines have
            batch = [common.texts(queries), common.texts(documents)]

            def plain(batch: Any = batch, size: int = size) -> None:
                embedder.zero_grad(set_to_none=True)
                losses.info_nce(*embedder(*batch), torch.arange(size), 0.05)[0].div(size).backward()

            figures["one graph"][size] = timed(plain)
            embedder.zero_grad(set_to_none=True)
    return figures


def corpora(sizes: list[int]) -> Figures:
    """Top 64 of n documents for 256 queries."""
    from podium import search

    query_QD, figures = torch.randn(256, common.WIDTH), {"top 64 for 256 queries": {}}
    for size in sizes:
        document_MD = torch.randn(size, common.WIDTH)
        figures["top 64 for 256 queries"][size] = timed(
            lambda document_MD=document_MD: search.top_k(query_QD, document_MD, 64)
        )
    return figures


def processes(sizes: list[int]) -> Figures:
    """Scoring 32 queries of 16 candidates, split over n processes of one thread each; memory of all together."""
    figures: Figures = {"512 pairs scored": {}}
    for size in sizes:
        command = [sys.executable, str(HERE / "scaling.py"), "--share", str(32 // size)]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) for _ in range(size)
        ]
        for child in started:  # all are ready before any begins
            if child.stdout is None or child.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process of {size} failed")
        shares = [json.loads(child.communicate("go\n")[0].splitlines()[-1]) for child in started]
        figures["512 pairs scored"][size] = {
            "seconds": max(one["seconds"] for one in shares),
            "peak_mb": sum(one["peak_mb"] or 0.0 for one in shares),
        }
    return figures


def share(queries: int) -> None:
    """What each process of `processes` does."""
    from podium.batching.groups import collate_packed, pack
    from podium.modeling import LabelScorer

    torch.set_num_threads(1)
    scorer = LabelScorer(common.make_model())
    groups = [common.group_of(100, 20, 16, 2048) for _ in range(queries)]
    prompts = [[[*context, *one] for one in suffixes] for context, suffixes in groups]

    @torch.inference_mode()
    def run() -> None:
        for at in range(0, queries, 4):
            rows = [pack(one, [(0, 0)] * len(one)) for one in prompts[at : at + 4]]
            scorer(**collate_packed(rows), label_ids=LABELS)

    run()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(timed(run)))


def draw(figures: dict[str, Figures], path: Path) -> None:
    """Two rows of panels, time above memory, all axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

    labels = {"candidates": "candidates of one query", "batch": "queries in a contrastive step",
              "corpus": "documents searched", "processes": "processes of one thread"}  # fmt: skip
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    figure, axes = pyplot.subplots(
        2, len(figures), squeeze=False, figsize=(4 * len(figures), 6.4), constrained_layout=True
    )
    for column, (name, arms) in enumerate(figures.items()):
        for line, (key, unit) in enumerate((("seconds", "seconds"), ("peak_mb", "MB added at the peak"))):
            axis = axes[line][column]
            for arm, points in arms.items():
                sizes = [size for size, point in points.items() if point[key]]
                axis.plot(sizes, [points[size][key] for size in sizes], marker="o", label=arm)
            axis.set_xscale("log", base=10 if name == "corpus" else 2)
            axis.set_yscale("log")
            if name != "corpus":
                axis.set_xticks([size for size in next(iter(arms.values()))])
                axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(plain)
            low, high = axis.get_ylim()
            if high < 10 * low:  # a flat line is to look flat
                axis.set_ylim((low * high) ** 0.5 / 4, (low * high) ** 0.5 * 4)
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(labels[name])
            axis.set_ylabel(unit)
            axis.grid(True, alpha=0.3)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("docs"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--share", type=int, help="used by this script itself: queries that one process scores")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.share:
        share(options.share)
        return
    torch.set_num_threads(2)
    most = (lambda sizes: sizes[:2]) if options.quick else (lambda sizes: sizes)
    figures = {
        "candidates": candidates(most([8, 16, 32, 64, 128, 256])),
        "batch": batches(most([64, 256, 1024, 4096])),
        "corpus": corpora(most([1_000, 10_000, 100_000, 1_000_000])),
        "processes": processes([1, 2]),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "benchmarks_scaling.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, options.output_dir / "benchmarks_scaling.png")


if __name__ == "__main__":
    main()
