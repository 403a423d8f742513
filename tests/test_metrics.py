"""Metrics against brute force: nothing rounded, no row dropped."""

import math

import numpy as np
import pandas as pd
import pytest

from podium import metrics, rng
from podium.errors import DataError

CASES = 20_000


def brute_average_precision(ranked, gold, k):
    """AP@k with one relevant item, as the competition defines it: precision at each hit, summed."""
    hits = total = 0
    for position, one in enumerate(ranked[:k], start=1):
        if one == gold:
            hits += 1
            total += hits / position
    return total / 1


def random_lists(count, seed=0):
    """(candidates, gold, lists): ranked lists of random length with and without the gold one."""
    generator = rng.generator(seed, "metric cases")
    ids, gold, lists, rows = [], [], [], []
    for at in range(count):
        size = int(generator.integers(1, 40))
        ranked = generator.permutation(60)[:size].tolist()
        lists.append(ranked)
        gold.append(ranked[int(generator.integers(size))] if generator.random() < 0.7 else int(generator.integers(60)))
        ids.append(f"{at}_A")
        rows += [(ids[-1], rank, one) for rank, one in enumerate(ranked, start=1)]
    frame = pd.DataFrame(rows, columns=["query_id", "rank", "misconception_id"]).assign(score=0.0, source="s")
    return frame.sample(frac=1, random_state=0), pd.Series(gold, index=ids), lists


def test_twenty_thousand_lists_against_brute_force():
    frame, gold, lists = random_lists(CASES)
    ranks = metrics.gold_ranks(frame, gold)
    assert len(ranks) == CASES
    for k in (1, 3, 25, 64):
        mine = metrics.average_precision(ranks, k)
        assert mine.tolist() == [brute_average_precision(one, label, k) for one, label in zip(lists, gold, strict=True)]
        found = [float(label in one[:k]) for one, label in zip(lists, gold, strict=True)]
        assert metrics.recall(ranks, k).tolist() == found
    assert 0 < (ranks == 0).mean() < 1


def test_report_against_brute_force():
    frame, gold, lists = random_lists(3_000, seed=1)
    seen = set(range(0, 60, 2))
    report = metrics.report(frame, gold, seen)
    precision = np.array([brute_average_precision(one, label, 25) for one, label in zip(lists, gold, strict=True)])
    is_seen = np.array([label in seen for label in gold])
    assert report["n"] == {"all": 3_000, "seen": int(is_seen.sum()), "unseen": int((~is_seen).sum())}
    for part, mask in {"all": is_seen | True, "seen": is_seen, "unseen": ~is_seen}.items():
        assert report["map@25"][part] == pytest.approx(math.fsum(precision[mask]) / mask.sum(), abs=1e-12)
        low, high = report["ci95"][part]
        assert low < report["map@25"][part] < high
    for k in metrics.RECALL_AT:
        expected = np.mean([label in one[:k] for one, label in zip(lists, gold, strict=True)])
        assert report["recall"][str(k)] == pytest.approx(expected, abs=1e-12)


def test_nothing_is_rounded():
    ranks = np.array([3] * 2 + [1] * 100_000)
    assert metrics.split_mean(metrics.average_precision(ranks), ranks > 9)["all"] == pytest.approx(
        1 - 2 * (2 / 3) / 100_002, abs=1e-12
    )


def test_a_query_without_candidates_is_refused_not_dropped():
    frame, gold, _ = random_lists(10)
    with pytest.raises(DataError, match=r"'3_A' \(1 in all\)"):
        metrics.gold_ranks(frame[frame["query_id"] != "3_A"], gold)


def test_an_empty_unseen_part_is_none_never_nan():
    frame, gold, _ = random_lists(20)
    report = metrics.report(frame, gold, set(range(60)))
    assert report["map@25"]["unseen"] is None and report["ci95"]["unseen"] is None and report["n"]["unseen"] == 0
    assert not any(value is not None and math.isnan(value) for value in report["map@25"].values())


def test_ids_of_any_integer_type_meet():
    frame, gold, _ = random_lists(50)
    expected = metrics.gold_ranks(frame, gold).tolist()
    for kind in ("int64", "Int64", "float64"):
        assert metrics.gold_ranks(frame.astype({"misconception_id": kind}), gold.astype(kind)).tolist() == expected


def test_bootstrap_interval_against_a_loop():
    generator = np.random.default_rng(0)
    values, groups = generator.random(60), generator.integers(0, 12, 60)
    low, high = metrics.bootstrap_interval(values, groups, samples=4000)
    means = []
    for _ in range(4000):
        drawn = generator.choice(np.unique(groups), size=12)
        means.append(np.concatenate([values[groups == one] for one in drawn]).mean())
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.012)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.012)
    assert metrics.bootstrap_interval(values, groups, samples=4000) == (low, high)


def test_grouped_intervals_are_wider_when_rows_repeat():
    values = np.repeat(np.random.default_rng(1).random(20), 20)
    own = metrics.bootstrap_interval(values)
    grouped = metrics.bootstrap_interval(values, np.repeat(np.arange(20), 20))
    assert grouped[1] - grouped[0] > 3 * (own[1] - own[0])


def test_paired_interval_holds_the_difference():
    generator = np.random.default_rng(2)
    worse = generator.random(500)
    mean, low, high = metrics.paired_interval(worse + 0.1, worse, np.arange(500))
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)


def test_interval_of_nothing_is_nan():
    assert all(math.isnan(value) for value in metrics.bootstrap_interval(np.array([])))
