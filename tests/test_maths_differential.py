"""Our grader against a second, plain one that shares no line with it, and against gold solutions of public sets."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from podium.maths.grading import grade

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PODIUM_MATHS_DATA", ROOT.parent / "shared" / "data" / "maths"))


# --- the plain grader: text to floats, nothing else ------------------------------------------------------------------


def plain_value(text: str) -> float | None:
    """A float from a plain number, fraction or percentage; None for anything else."""
    text = text.replace("\\$", "").replace("$", "").replace(",", "").replace("\\%", "%").strip().rstrip(".")
    text = re.sub(r"\\d?frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", text)
    if text.endswith("%"):
        inner = plain_value(text[:-1])
        return None if inner is None else inner / 100
    if "/" in text:
        top, _, bottom = text.partition("/")
        try:
            return float(top) / float(bottom)
        except (ValueError, ZeroDivisionError):
            return None
    try:
        return float(text)
    except ValueError:
        return None


def plain_grade(answer: str, gold: str) -> bool:
    """Equal floats up to 1e-9, a percentage counting as its number too; lists of them in any order."""
    if gold.startswith("\\{"):
        mine = sorted(plain_value(part) or 0.0 for part in answer.strip("\\{}").split(","))
        theirs = sorted(plain_value(part) or 0.0 for part in gold.strip("\\{}").split(","))
        return sorted(set(mine)) == sorted(set(theirs))
    first, second = plain_value(answer), plain_value(gold)
    if first is None or second is None:
        return answer.strip() == gold.strip()
    candidates = [first] if "%" in gold or "%" not in answer else [first, first * 100]
    if "%" in gold and "%" not in answer:
        candidates = [first, first / 100]
    return any(abs(value - second) <= 1e-9 * max(1e-3, abs(second)) for value in candidates)


def random_number(draw: np.random.Generator) -> str:
    kind = int(draw.integers(7))
    small = int(draw.integers(-40, 40))
    if kind == 0:
        return str(small)
    if kind == 1:
        return f"{int(draw.integers(0, 10**7)):,}"
    if kind == 2:
        return f"{small}.{int(draw.integers(0, 100)):02d}"
    if kind == 3:
        return f"{small}/{int(draw.integers(1, 12))}"
    if kind == 4:
        return f"\\frac{{{abs(small)}}}{{{int(draw.integers(1, 12))}}}"
    if kind == 5:
        return f"{abs(small)}%"
    return f"${abs(small)}.{int(draw.integers(0, 10))}0"


def rewritten(text: str, draw: np.random.Generator) -> str:
    """Another way to write about the same number; often the same value, sometimes not."""
    value = plain_value(text)
    choice = int(draw.integers(5))
    if value is None or choice == 0:
        return text
    if choice == 1:
        return repr(value) if "e" not in repr(value) else text
    if choice == 2 and float(value).is_integer():
        return f"{int(value)}.0"
    if choice == 3:
        return f"{value:.2f}"
    return f"{2 * value:g}/2" if "e" not in f"{2 * value:g}" and float(2 * value).is_integer() else text


def test_both_graders_agree_on_numbers():
    draw = np.random.default_rng(5)
    disagreements, equal = [], 0
    for _ in range(6000):
        gold = random_number(draw)
        answer = rewritten(gold, draw) if draw.random() < 0.5 else random_number(draw)
        ours, theirs = grade(answer, gold, "number").correct, plain_grade(answer, gold)
        equal += theirs
        if ours != theirs:
            disagreements.append((gold, answer, ours))
    assert 1500 < equal < 4500  # both verdicts occur often
    # ours alone accepts a gold answer of two decimals for its unrounded value; nothing else may differ
    unexplained = [
        case
        for case in disagreements
        if not (case[2] and re.search(r"\.\d\d$", case[0]) and len(case[1]) > len(case[0]))
    ]
    assert not unexplained


def test_both_graders_agree_on_sets():
    draw = np.random.default_rng(6)
    equal = 0
    for _ in range(1000):
        gold = [int(n) for n in draw.integers(-4, 5, size=int(draw.integers(2, 4)))]
        answer = (
            list(draw.permutation(gold))
            if draw.random() < 0.6
            else [int(n) for n in draw.integers(-4, 5, size=len(gold))]
        )
        texts = ["\\{" + ",".join(map(str, numbers)) + "\\}" for numbers in (gold, answer)]
        expected = plain_grade(texts[1], texts[0])
        equal += expected
        assert grade(texts[1], texts[0], "formula").correct == expected, texts
    assert 300 < equal < 950


def test_the_plain_grader_is_no_dummy():
    assert plain_grade("0.50", "1/2") and plain_grade("50%", "0.5") and not plain_grade("3.4", "3")


# --- gold solutions --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there; set PODIUM_MATHS_DATA")
def test_gold_solutions_are_right_and_corrupted_ones_wrong(capsys):
    specification = importlib.util.spec_from_file_location("bench_grading", ROOT / "benchmarks" / "grading.py")
    bench = importlib.util.module_from_spec(specification)
    sys.modules["bench_grading"] = bench
    specification.loader.exec_module(bench)
    items = bench.read_items(DATA)
    assert len(items) == 2000 + 1319 + 1000 + 254
    shares = bench.check(items, None)
    printed = capsys.readouterr().out
    missed = sum(share["of"] - share["good"] for key, share in shares.items() if key in ("right", "wrong"))
    assert printed.count("MISS") == missed  # every miss is listed
    for key in ("right", "wrong"):
        assert shares[key]["of"] > 20_000
        assert shares[key]["good"] / shares[key]["of"] >= 0.995, printed
    for key, share in shares.items():
        assert share["good"] / share["of"] >= 0.99, (key, printed)
