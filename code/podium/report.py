"""The results table, results.json and the plots of a chain, from the candidates that its stages left on disk."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from podium import metrics  # noqa: E402

SEEN, UNSEEN, ALL = "#2f6db3", "#d9822b", "#555555"


def rows_of(candidates: dict[str, pd.DataFrame], gold: pd.Series, seen: set[int]) -> list[dict[str, Any]]:
    """One report a stage, in order, each with its name."""
    return [{"stage": name, **metrics.report(frame, gold, seen)} for name, frame in candidates.items()]


def paired_gains(
    candidates: dict[str, pd.DataFrame], gold: pd.Series, pairs: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Paired difference in MAP@25 of each (better, worse) pair of stages, intervals over misconceptions."""
    labels = gold.to_numpy(dtype=np.int64)
    precision = {
        name: metrics.average_precision(metrics.gold_ranks(candidates[name], gold))
        for name in {one for pair in pairs for one in pair}
    }
    gains = []
    for better, worse in pairs:
        mean, low, high = metrics.paired_interval(precision[better], precision[worse], labels)
        gains.append({"stage": better, "over": worse, "gain": mean, "ci95": [low, high]})
    return gains


def exact_match(
    written: pd.DataFrame, gold: pd.DataFrame, labels: pd.Series, seen: set[int]
) -> dict[str, float | None]:
    """Share of gold rationales that the first written sample equals word for word, split by seen and unseen."""
    first = written[written["sample"] == 0].set_index("query_id")["text"]
    told = gold.set_index("query_id")["text"].reindex(labels.index).dropna()
    hits = np.array([" ".join(first.get(query, "").split()) == " ".join(text.split()) for query, text in told.items()])
    unseen = ~labels.reindex(told.index).isin(seen).to_numpy()
    return metrics.split_mean(hits.astype(float), unseen)


def _figure(value: float | None) -> str:
    return "    –" if value is None else f"{value:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """The results as text: MAP@25 (all, interval, seen, unseen) and recall@25."""
    counts = rows[0]["n"]
    lines = [
        f"{'stage':<20} {'MAP@25':>7} {'95% interval':>15} {'seen':>7} {'unseen':>7} {'recall@25':>10}",
        f"{'rows':<20} {counts['all']:>7} {'':>15} {counts['seen']:>7} {counts['unseen']:>7}",
    ]
    for row in rows:
        value, interval = row["map@25"], row["ci95"]["all"]
        between = f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"
        lines.append(
            f"{row['stage']:<20} {_figure(value['all']):>7} {between:>15} {_figure(value['seen']):>7}"
            f" {_figure(value['unseen']):>7} {_figure(row['recall@25']['all']):>10}"
        )
    return "\n".join(lines)


def _finish(figure: Any, axes: Any, path: Path) -> Path:
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def plot_stages(rows: list[dict[str, Any]], path: Path) -> Path:
    """MAP@25 by stage, seen and unseen side by side with their intervals."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.15 * len(rows), 3.6))
    place = np.arange(len(rows))
    for offset, part, colour in ((-0.2, "seen", SEEN), (0.2, "unseen", UNSEEN)):
        kept = [(at, row) for at, row in zip(place, rows, strict=True) if row["map@25"][part] is not None]
        if not kept:
            continue
        height = [row["map@25"][part] for _, row in kept]
        spread = np.array([row["ci95"][part] for _, row in kept]).T
        error = np.abs(spread - np.array(height))
        at = np.array([at for at, _ in kept]) + offset
        count = rows[0]["n"][part]
        axis.bar(at, height, 0.38, color=colour, label=f"{part} (n = {count})", yerr=error, ecolor="#333333", capsize=2)
        for x, y, top in zip(at, height, spread[1], strict=True):
            axis.text(x, top + 0.015, f"{y:.2f}".lstrip("0"), ha="center", fontsize=8)
    axis.set_xticks(place, [row["stage"].replace("_", "\n") for row in rows], fontsize=8)
    axis.set_ylim(0, 1.08)
    axis.set_ylabel("MAP@25 on test rows")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return _finish(figure, axis, path)


def plot_recall(rows: list[dict[str, Any]], path: Path) -> Path:
    """Recall@k of every stage."""
    figure, axis = plt.subplots(figsize=(5.4, 3.6))
    for index, row in enumerate(rows):
        at = [int(k) for k in row["recall"]]
        axis.plot(at, list(row["recall"].values()), marker="o", ms=3, color=plt.cm.viridis(index / max(1, len(rows) - 1) * 0.9),
                  label=row["stage"])  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(at, [str(k) for k in at])
    axis.set_xlabel("k")
    axis.set_ylabel("recall@k on test rows")
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False, fontsize=8)
    return _finish(figure, axis, path)


def read_losses(run_folder: str | Path) -> tuple[list[int], list[float]]:
    """Steps and training losses from a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (Path(run_folder) / "metrics.jsonl").read_text().splitlines()]
    kept = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    return [step for step, _ in kept], [loss for _, loss in kept]


def plot_losses(runs: dict[str, str], path: Path) -> Path:
    """Training loss of every trained stage, smoothed over a fiftieth of the run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(3.4 * len(runs), 2.9), squeeze=False)
    for axis, (name, folder) in zip(axes[0], runs.items(), strict=True):
        steps, losses = read_losses(folder)
        window = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axis.plot(steps, losses, color="#cccccc", lw=0.6)
        axis.plot(steps[window - 1 :], smooth, color=SEEN, lw=1.4)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("training loss")
    figure.tight_layout()
    return _finish(figure, axes[0], path)
