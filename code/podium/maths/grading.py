"""Is this answer right? One function, three kinds of answer, every verdict with its method and reason.

Numbers are compared exactly, as fractions; the only slack is the tolerance given, floating-point noise, and rounding to
the gold answer's own decimals. What is no number goes to math-verify in a process that can be killed (`equivalence`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from podium.maths.quantities import Quantity, parse_quantity, tidy

Equivalent = Callable[[str, str], "tuple[bool, str]"]
"""Decides (gold, answer) as formulas; returns the verdict and its reason."""


class Verdict(NamedTuple):
    """Right or wrong, what decided, and why."""

    correct: bool
    method: str
    reason: str


@dataclass(frozen=True)
class Tolerance:
    """What a set accepts beside the exact number. Integers are always compared exactly.

    `relative` applies to a gold fraction answered by a decimal (1/3 by .3333333). With `rounding_decimals` d, an answer
    with more digits counts if it rounds to a gold answer that is written with at least d decimals; null: never.
    """

    relative: float = 1e-6
    rounding_decimals: int | None = 2


def float_noise(gold: Fraction) -> Fraction:
    """How far a right computation in floating point may be off: 1e-9 of the value, 1e-6 at most."""
    size = abs(gold)
    return Fraction(1, 10**12) if size == 0 else min(size, Fraction(1000)) / 10**9


def _round(value: Fraction, decimals: int) -> set[Fraction]:
    """The value rounded to some decimals; both neighbours of a tie, since floating point and pupils differ there."""
    scaled = value * 10**decimals
    floor = scaled.numerator // scaled.denominator
    rest = scaled - floor
    down, up = Fraction(floor, 10**decimals), Fraction(floor + 1, 10**decimals)
    return {down} if rest < Fraction(1, 2) else {up} if rest > Fraction(1, 2) else {down, up}


def _close(gold: Quantity, answer: Quantity, scale: Fraction, tolerance: Tolerance) -> str:
    """Why two numbers count as equal, or an empty string.

    Args:
        gold: the right answer.
        answer: what was given.
        scale: what the answer is multiplied with to be in the gold's unit.
        tolerance: of the set.
    """
    value = answer.value * scale
    difference = abs(value - gold.value)
    if difference == 0:
        return "equal"
    both_written_out = gold.decimals is not None and answer.decimals is not None and scale == 1
    if both_written_out and (answer.decimals or 0) <= (gold.decimals or 0):
        return ""  # 1168.334 is not 1168.333, however near
    if difference <= float_noise(gold.value):
        return "equal up to floating-point noise"
    if (
        gold.decimals is None
        and gold.value.denominator != 1
        and difference <= abs(gold.value) * Fraction(tolerance.relative)
    ):
        return f"within {tolerance.relative:g} of a fraction"
    minimum = tolerance.rounding_decimals
    if (
        gold.decimals
        and minimum is not None
        and gold.decimals >= minimum
        and gold.value in _round(value, gold.decimals)
    ):
        return f"equal when rounded to the gold answer's {gold.decimals} decimals"
    return ""


def grade_quantities(gold: Quantity, answer: Quantity, tolerance: Tolerance) -> Verdict:
    """Compare two numbers with their units.

    A missing unit is no mistake; a wrong one is. Percentages equal their number (25) or their value (.25).
    """
    scales = [Fraction(1)]
    if gold.unit and answer.unit:
        if gold.unit[0] != answer.unit[0]:
            return Verdict(False, "unit", f"{answer.unit[0]} given, {gold.unit[0]} expected")
        scales = [answer.unit[1] / gold.unit[1]]
    elif answer.unit and answer.unit[0] == "percent":
        scales.append(Fraction(1, 100))
    elif gold.unit and gold.unit[0] == "percent":
        scales.append(Fraction(100))
    for scale in scales:
        if why := _close(gold, answer, scale, tolerance):
            return Verdict(True, "number", why)
    shown = float(answer.value * scales[0]) if abs(answer.value) < 10**300 else "a huge number"
    return Verdict(False, "number", f"{shown} is not {float(gold.value) if abs(gold.value) < 10**300 else 'the gold'}")


_WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
_NAMED = ("pi", "sqrt", "infinity", "infty", "inf", "e", "i", "x", "y", "n", "oo")


_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-df-hj-zA-Z](?![a-zA-Z])")


def _is_text(value: str) -> bool:
    """Words such as "Tuesday" or "no solution", in which there is nothing to compute."""
    return len(value) > 1 and _WORD.fullmatch(value) is not None and value.lower() not in _NAMED and "\\" not in value


def _canonical(value: str) -> str:
    """A formula's string with spaces, redundant braces and letter case of words out of the way."""
    value = re.sub(r"(?<!\\)\\(?:,|;|!|:| )", "", value)
    value = re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", value)
    value = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", value)
    value = re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", value)
    value = re.sub(r"(?<=\d)\s+(?=\d)", "_", value)  # 7 1/2 is not 71/2
    return re.sub(r"\s+", "", value)


_BRACKETS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


def _split(value: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of a list, tuple, interval or set of at least two; None for anything else."""
    value = value.strip()
    kind = ""
    for opening in ("\\{", "(", "[", "{"):
        if value.startswith(opening):
            closing = next((end for end in ("\\}", ")", "]", "}") if value.endswith(end)), None)
            if closing is None:
                return None
            kind = (opening + closing).replace("\\", "")
            value = value[len(opening) : -len(closing)]
            break
    parts, depth, start = [], 0, 0
    for position, character in enumerate(value):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and (character == "," or character == ";"):
            parts.append(value[start:position])
            start = position + 1
    parts.append(value[start:])
    parts = [part.strip() for part in parts]
    if not kind and len(parts) == 1 and re.search(r"\s(?:and|or)\s", value):
        parts = [part.strip() for part in re.split(r"\s(?:and|or)\s", value)]
    elif not kind and len(parts) > 1:
        last = re.sub(r"^(?:and|or)\s+", "", parts[-1])
        parts[-1:] = [part.strip() for part in re.split(r"\s(?:and|or)\s", last)]
    if len(parts) < 2 or not all(parts) or (not kind and re.fullmatch(r"\d{1,3}(,\d{3})+", value)):
        return None
    return kind, parts


def _grade_lists(
    gold: tuple[str, list[str]], answer: tuple[str, list[str]], tolerance: Tolerance, equivalent: Equivalent | None
) -> Verdict:
    """Element by element: sets and bare lists in any order, tuples and intervals in theirs with the same brackets."""
    (gold_kind, gold_parts), (answer_kind, answer_parts) = gold, answer
    unordered = gold_kind in ("", "{}")
    if unordered and answer_kind not in ("", "{}", "[]", "()"):
        return Verdict(False, "list", f"brackets {answer_kind} given, a set expected")
    if (
        not unordered
        and answer_kind != gold_kind
        and answer_kind != ""
        and not (gold_kind == "()" and len(gold_parts) > 2)
    ):
        return Verdict(False, "list", f"brackets {answer_kind} given, {gold_kind} expected")
    if unordered:  # {1, 1, 2} is {1, 2}
        gold_parts, answer_parts = (
            list(dict.fromkeys(_canonical(part) for part in parts)) for parts in (gold_parts, answer_parts)
        )
    if len(gold_parts) != len(answer_parts):
        return Verdict(False, "list", f"{len(answer_parts)} elements given, {len(gold_parts)} expected")
    left = list(answer_parts)
    for part in gold_parts:
        candidates = left if unordered else left[:1]
        match = next((c for c in candidates if _grade_formula(part, c, tolerance, equivalent).correct), None)
        if match is None:
            return Verdict(False, "list", f"element {part} is missing")
        left.remove(match)
    return Verdict(True, "list", "the same elements")


def _side(value: str) -> str:
    """What a lone "x = …" states; the whole if both sides compute something."""
    match = re.fullmatch(r"\\?[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?\s*(?:=|\\in|≈|\\approx)\s*([^=]+)", value)
    return match.group(1).strip() if match else value


def _grade_formula(gold: str, answer: str, tolerance: Tolerance, equivalent: Equivalent | None) -> Verdict:
    if _canonical(gold) == _canonical(answer):
        return Verdict(True, "string", "the same text")
    if "=" not in gold or _side(gold) != gold:
        gold, answer = _side(gold), _side(answer)
    gold_number, answer_number = parse_quantity(gold), parse_quantity(answer)
    if gold_number and answer_number:
        return grade_quantities(gold_number, answer_number, tolerance)
    if _canonical(gold) == _canonical(answer):
        return Verdict(True, "string", "the same text")
    if _is_text(gold):
        same = gold.lower().split() == answer.lower().split()
        return Verdict(same, "text", "the same words" if same else "other words")
    gold_list, answer_list = _split(gold), _split(answer)
    if gold_list and answer_list:
        return _grade_lists(gold_list, answer_list, tolerance, equivalent)
    if bool(gold_list) != bool(answer_list) and (gold_number or answer_number):
        return Verdict(False, "list", "one value against several")
    if gold_number and (variable := _VARIABLE.search(answer)):
        return Verdict(False, "number", f"a variable, {variable.group()}, where a number is expected")
    if equivalent is None:
        return Verdict(False, "string", "different text, and no formula comparison is available")
    correct, reason = equivalent(gold, answer)
    return Verdict(correct, "math-verify", reason)


def _option_letter(answer: str, letters: str) -> str | None:
    """The letter if the answer is one, alone or before its content: "C", "(c)", "C) 12", "C. 12"; not the article "A"."""
    if len(answer) == 1:
        return answer.upper() if answer.upper() in letters else None
    match = re.match(
        rf"\(\s*([{letters}{letters.lower()}])\s*\)|(?:[Oo]ption|[Cc]hoice)\s*\(?([{letters}])\b|([{letters}])\s*[).:]",
        answer,
    )
    return next(group for group in match.groups() if group).upper() if match else None


def grade_choice(
    answer: str, gold: str, options: Sequence[str], tolerance: Tolerance, equivalent: Equivalent | None = None
) -> Verdict:
    """Compare a letter, or an option's content, with the right letter.

    Args:
        answer: letter or content.
        gold: the right letter.
        options: contents without their letters, A first; may be empty where only letters can be given.
        tolerance: for contents that are numbers.
        equivalent: for contents that are formulas.
    """
    answer = tidy(answer)
    letters = "ABCDEFGHIJ"[: len(options) or 5]
    if (letter := _option_letter(answer, letters)) is not None:
        return Verdict(letter == gold, "letter", f"{letter} given, {gold} expected")
    contents = [tidy(option) for option in options]
    exact = [
        index for index, content in enumerate(contents) if _canonical(content).lower() == _canonical(answer).lower()
    ]
    method = "content"
    matches = exact
    if not matches:
        graded = [(i, _grade_formula(c, answer, tolerance, None)) for i, c in enumerate(contents)]
        matches = [i for i, verdict in graded if verdict.correct and verdict.reason == "equal"]
        matches = matches or [i for i, verdict in graded if verdict.correct]
    if not matches and equivalent is not None and parse_quantity(answer) is None and len(answer) <= 60:
        formulas = [i for i, c in enumerate(contents) if parse_quantity(c) is None and not _is_text(c)]
        matches = [i for i in formulas if equivalent(contents[i], answer)[0]]
        method = "content by math-verify"
    named = sorted({letters[index] for index in matches})
    if not named:
        return Verdict(False, "no option", "the answer is neither a letter nor an option's content")
    if gold in named:
        right = contents[letters.index(gold)]
        if all(_canonical(contents[letters.index(name)]) == _canonical(right) for name in named):
            return Verdict(True, method, f"the content of option {gold}")
        return Verdict(False, method, f"the content of several options ({', '.join(named)})")
    return Verdict(False, method, f"the content of option {', '.join(named)}, {gold} expected")


def grade(
    answer: str | None,
    gold: str,
    kind: str,
    *,
    options: Sequence[str] = (),
    tolerance: Tolerance | None = None,
    equivalent: Equivalent | None = None,
) -> Verdict:
    """Judge one extracted answer.

    Args:
        answer: as extracted; None is wrong.
        gold: the right answer, a letter for "choice".
        kind: "number", "formula" or "choice".
        options: contents of the options, for "choice".
        tolerance: of the set.
        equivalent: formula comparison (`equivalence.Comparer.equivalent`); without it formulas count as strings.
    """
    tolerance = tolerance or Tolerance()
    if answer is None or not answer.strip():
        return Verdict(False, "none", "no answer was found")
    if kind == "choice":
        return grade_choice(answer, gold, options, tolerance, equivalent)
    return _grade_formula(tidy(gold), tidy(answer), tolerance, equivalent)
