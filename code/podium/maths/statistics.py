"""Intervals and tests of the evaluator: Wilson's interval, McNemar's exact test, Holm's correction.

Sources: Wilson 1927; McNemar 1947 (exact binomial form); Holm 1979.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054


def wilson(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Bounds of a share at 95 %; (0, 1) where there is nothing to count."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == total else middle + half


@dataclass(frozen=True)
class Paired:
    """Two runs on the same problems: how many only one of them solved, the difference, its 95 % bounds, p."""

    problems: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def binomial_two_sided(successes: int, trials: int) -> float:
    """Exact two-sided p of a fair coin."""
    if trials == 0:
        return 1.0
    tail = sum(math.comb(trials, k) for k in range(min(successes, trials - successes) + 1))
    return min(1.0, 2 * tail / 2**trials)


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Second minus first, on the same problems in the same order.

    Raises:
        ValueError: different lengths, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} verdicts; the same problems are needed, at least one")
    count = len(first)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    difference = (only_second - only_first) / count
    # Wald on discordant pairs with Agresti and Min's (2005) added halves: holds its level at small counts too
    p12, p21, n = (only_first + 0.5) / (count + 2), (only_second + 0.5) / (count + 2), count + 2
    half = Z95 * math.sqrt(max(0.0, p12 + p21 - (p21 - p12) ** 2) / n)
    centre = p21 - p12
    p = binomial_two_sided(only_second, only_first + only_second)
    return Paired(count, only_first, only_second, difference, centre - half, centre + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of tests, in the same order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted
