"""Draw the README's pictures from the real code and a finished demo.

    python tools/draw_figures.py outputs/demo

assets/pipeline.png (stages with their scores), prompt_pointwise.png and prompt_listwise.png (what the rankers read).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: E402

from podium import contracts, prompts, tables  # noqa: E402
from podium.batching.queries import make_rows  # noqa: E402

ASSETS = Path(__file__).resolve().parents[1] / "assets"
INK, BLUE, ORANGE, GREEN, PAPER = "#222222", "#2f6db3", "#d9822b", "#4d8f4d", "#ffffff"


def box(axis, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box with centred text."""
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.06", fc=PAPER, ec=colour, lw=1.6)
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.35)


def arrow(axis, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A thin arrow."""
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, lw=1.1, color="#666666"))


def pipeline(results: dict, path: Path) -> None:
    """The chain, with MAP@25 of the list as it stands after each stage."""
    score = {row["stage"]: row["map@25"]["all"] for row in results["rows"]}
    figure, axis = plt.subplots(figsize=(9.6, 3.3))
    axis.set_xlim(0, 12.2)
    axis.set_ylim(0, 4.1)
    axis.axis("off")
    count = results["data"]["misconceptions"]
    box(axis, 0.1, 2.2, 1.9, 1.1, "question,\nright answer,\nwrong answer", INK)
    box(axis, 2.6, 0.3, 2.2, 1.1, "REASONER\nwrites why a pupil\nwould answer so", ORANGE)
    box(axis, 2.6, 2.2, 2.2, 1.1, f"RETRIEVER\nranks {count}\nmisconceptions", BLUE)
    box(axis, 5.4, 2.2, 2.2, 1.1, "POINTWISE\nranker scores\nthe top 10", BLUE)
    box(axis, 8.2, 2.2, 2.2, 1.1, "LISTWISE\nranker orders\nthe top 5", BLUE)
    box(axis, 10.9, 2.2, 1.2, 1.1, "25 ids\na row", GREEN)
    for start, end in (((2.05, 2.75), (2.55, 2.75)), ((4.85, 2.75), (5.35, 2.75)), ((7.65, 2.75), (8.15, 2.75)),
                       ((10.45, 2.75), (10.85, 2.75)), ((1.05, 2.15), (2.55, 0.85)), ((3.7, 1.45), (3.7, 2.15)),
                       ((4.85, 0.85), (6.5, 2.15)), ((4.85, 0.85), (9.3, 2.15))):  # fmt: skip
        arrow(axis, start, end)
    axis.text(5.0, 0.45, "generated rationale", fontsize=8, color=ORANGE)
    for x, label, stage in ((3.7, "alone", "retriever"), (6.5, "blended", "pointwise"), (9.3, "blended", "listwise"),
                            (11.5, "final", "final")):  # fmt: skip
        axis.text(x, 3.5, f"{label}\n{score[stage]:.3f}", ha="center", fontsize=8.5, color=BLUE)
    axis.text(1.05, 3.5, f"BM25\n{score['bm25']:.3f}", ha="center", fontsize=8.5, color="#888888")
    axis.text(5.1, 3.62, f"+ rationale\n{score['retriever_rationale']:.3f}", ha="center", fontsize=8.5, color=ORANGE)
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


def prompt(parts: list[tuple[str, str]], title: str, path: Path) -> None:
    """A prompt as text, each part in its colour."""
    lines: list[list[tuple[str, str]]] = [[]]
    for text, colour in parts:
        first, *rest = text.split("\n")
        lines[-1].append((first, colour))
        lines += [[(line, colour)] for line in rest]
    figure, axis = plt.subplots(figsize=(8.6, 0.34 * len(lines) + 0.6))
    axis.set_xlim(0, 100)
    axis.set_ylim(-len(lines), 1.2)
    axis.axis("off")
    axis.text(0, 0.55, title, fontsize=10, weight="bold", color=INK)
    for row, pieces in enumerate(lines):
        column = 0.0
        for text, colour in pieces:
            axis.text(column, -row - 0.4, text, fontsize=8.6, family="monospace", color=colour)
            column += len(text) * 1.02
    figure.savefig(path, dpi=140, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Read the demo's folder, draw all three."""
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo")
    ASSETS.mkdir(exist_ok=True)
    pipeline(json.loads((demo / "results.json").read_text()), ASSETS / "pipeline.png")

    test = contracts.read_table(demo / "questions" / "test.parquet", contracts.QUESTIONS)
    test = test[test["misconception_id"].notna()].reset_index(drop=True)
    rows = make_rows(test, tables.read_catalogue(demo / "questions"), tables.read_rationales(demo / "rationales"))
    ranked = contracts.read_table(demo / "candidates" / "candidates.parquet", contracts.CANDIDATES)
    shown = min(range(40), key=lambda index: len(rows.text[index].question) + len(rows.rationales[index][0]))
    listed = ranked[ranked["query_id"] == rows.query_id[shown]].sort_values("rank")["misconception_id"].head(5)
    names = [rows.names[int(one)] for one in listed]
    rationale = rows.rationales[shown][0]
    context, _, ending = prompts.pointwise_parts(rows.text[shown], names[0], "plain", rationale=rationale)
    parts = [(context, INK)]
    for name in names[:3]:
        parts += [(f" {name}{ending}", BLUE), (" Yes | No", ORANGE), ("\n", INK)]
    prompt(parts, "pointwise: the context once, then every candidate as its own ending (blue), read at Yes | No",
           ASSETS / "prompt_pointwise.png")  # fmt: skip
    context, options, ending = prompts.listwise_parts(rows.text[shown], names, "plain", rationale=rationale)
    parts = [(context, INK), *((option, BLUE) for option in options), (ending, INK), (" A | B | C | D | E", ORANGE)]
    prompt(parts, "listwise: context, lettered options (blue), one letter", ASSETS / "prompt_listwise.png")
    print(f"wrote {', '.join(sorted(path.name for path in ASSETS.glob('*.png')))}")


if __name__ == "__main__":
    main()
