"""MAP@k, recall@k, their split into seen and unseen misconceptions, and bootstrap intervals.

One misconception is relevant per query, so average precision at k is the reciprocal rank cut at k. Ranks are 1-based;
rank 0 means "not in the list". Nothing is rounded and no query is left out.
"""

from typing import Any

import numpy as np
import pandas as pd

from podium import rng
from podium.errors import DataError, sample

RECALL_AT = (1, 2, 4, 8, 16, 25, 32, 64)


def gold_ranks(candidates: pd.DataFrame, gold: pd.Series) -> np.ndarray:
    """Rank of every query's gold misconception in its candidate list.

    Args:
        candidates: `contracts.CANDIDATES` rows.
        gold: query_id -> misconception_id, one entry a query.

    Returns:
        (Q,) int64 in the order of `gold`; 0 where the list lacks the gold misconception.

    Raises:
        DataError: a query has no candidates at all, so its row would silently not count.
    """
    absent = gold.index[~gold.index.isin(candidates["query_id"])]
    if len(absent):
        raise DataError(f"no candidates for query {sample(absent)}; rank every query before scoring it")
    key = pd.MultiIndex.from_arrays([candidates["query_id"], candidates["misconception_id"].astype("int64")])
    ranks = pd.Series(candidates["rank"].to_numpy(), index=key)
    wanted = pd.MultiIndex.from_arrays([gold.index, gold.astype("int64")])
    return ranks.reindex(wanted).fillna(0).to_numpy(dtype=np.int64)


def average_precision(ranks: np.ndarray, k: int = 25) -> np.ndarray:
    """(Q,) reciprocal rank, 0 beyond k or where rank is 0."""
    ranks = np.asarray(ranks)
    hit = (ranks >= 1) & (ranks <= k)
    return np.where(hit, 1.0 / np.maximum(ranks, 1), 0.0)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """(Q,) 1.0 where the gold misconception is among the first k."""
    ranks = np.asarray(ranks)
    return ((ranks >= 1) & (ranks <= k)).astype(float)


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: (Q,) per-query figures.
        groups: (Q,) ids; whole groups are resampled, since queries of one misconception are not independent.
        seed: of the resampling.
        samples: bootstrap samples.
        level: of the interval.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return (float("nan"), float("nan"))
    generator = rng.generator(seed, "bootstrap", len(values))
    _, codes = np.unique(groups if groups is not None else np.arange(len(values)), return_inverse=True)
    sums = np.bincount(codes, weights=values)
    counts = np.bincount(codes).astype(float)
    drawn = generator.integers(0, len(sums), size=(samples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return (float(low), float(high))


def split_mean(values: np.ndarray, unseen: np.ndarray) -> dict[str, float | None]:
    """Means over all, seen and unseen queries; None where there are none (never nan)."""
    parts = {"all": np.ones(len(values), dtype=bool), "seen": ~unseen, "unseen": unseen}
    return {name: float(values[mask].mean()) if mask.any() else None for name, mask in parts.items()}


def report(candidates: pd.DataFrame, gold: pd.Series, seen: set[int], k: int = 25) -> dict[str, Any]:
    """Everything said about one ranked list.

    Args:
        candidates: `contracts.CANDIDATES` rows covering every query of `gold`.
        gold: query_id -> misconception_id.
        seen: misconceptions that occur in training rows.
        k: cut of MAP and recall.

    Returns:
        {"map@25": {all, seen, unseen}, "recall@25": {…}, "recall": {k: all}, "n": {…}, "ci95": {all: [low, high], …}};
        the intervals resample misconceptions, not rows.
    """
    ranks = gold_ranks(candidates, gold)
    labels = gold.to_numpy(dtype=np.int64)
    unseen = ~np.isin(labels, sorted(seen))
    precision = average_precision(ranks, k)
    parts = {"all": np.ones(len(ranks), dtype=bool), "seen": ~unseen, "unseen": unseen}
    return {
        f"map@{k}": split_mean(precision, unseen),
        f"recall@{k}": split_mean(recall(ranks, k), unseen),
        "recall": {str(at): float(recall(ranks, at).mean()) for at in RECALL_AT},
        "n": {name: int(mask.sum()) for name, mask in parts.items()},
        "ci95": {
            name: list(bootstrap_interval(precision[mask], labels[mask])) if mask.any() else None
            for name, mask in parts.items()
        },
    }


def paired_interval(better: np.ndarray, worse: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of two paired (Q,) figures and its bootstrap interval over whole groups."""
    difference = np.asarray(better, dtype=float) - np.asarray(worse, dtype=float)
    low, high = bootstrap_interval(difference, groups)
    return (float(difference.mean()), low, high)


def figures(candidates: pd.DataFrame, gold: pd.Series, seen: set[int]) -> dict[str, float]:
    """MAP@25 and recall of `report`, flat, for the lines of a training run; parts without rows are left out."""
    said = report(candidates, gold, seen)
    parts = {f"map@25/{part}": value for part, value in said["map@25"].items() if value is not None}
    return {"map@25": said["map@25"]["all"], **parts, **{f"recall@{k}": value for k, value in said["recall"].items()}}


def list_figures(
    lists: list[tuple[int, list[int]]], scores: list[np.ndarray], labels: list[int | None], seen: set[int]
) -> dict[str, float]:
    """MAP@25 of lists reordered by scores: a gold misconception outside its list counts 0. Ties keep the list's order.

    Args:
        lists: (row index, candidates) pairs.
        scores: one (K,) array a list.
        labels: gold id of every row.
        seen: misconceptions that occur in training rows.

    Returns:
        {"map@25", "map@25/seen", "map@25/unseen", "in_list"}, parts without rows left out.
    """
    ranks = np.zeros(len(lists), dtype=np.int64)
    gold = np.array([labels[index] for index, _ in lists])
    for at, ((_, candidates), values) in enumerate(zip(lists, scores, strict=True)):
        ordered = np.asarray(candidates)[np.argsort(-values, kind="stable")]
        found = np.flatnonzero(ordered == gold[at])
        ranks[at] = found[0] + 1 if len(found) else 0
    means = split_mean(average_precision(ranks), ~np.isin(gold.astype(np.int64), sorted(seen)))
    figures = {f"map@25/{part}": value for part, value in means.items() if value is not None and part != "all"}
    return {"map@25": float(average_precision(ranks).mean()), **figures, "in_list": float((ranks > 0).mean())}
