"""How numbers look in questions, options and rationales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

Number = int | Fraction

_PLACEHOLDER = re.compile(r"<(\w+)>")
_PENCE = re.compile(r"(£\d+\.\d)\b")
_VOWEL_NUMBER = re.compile(r"\b([Aa]) (?=(?:8\d*|11|18)\b)")


def plain_number(value: Number) -> str:
    """An integer or a terminating decimal in plain digits; raises ValueError for any other number."""
    if isinstance(value, int):
        return str(value)
    if not has_short_decimal(value):
        raise ValueError(f"{value} has no decimal of at most two places")
    hundredths = value * 100
    sign = "-" if hundredths < 0 else ""
    whole, part = divmod(abs(int(hundredths)), 100)
    return f"{sign}{whole}.{part:02d}".rstrip("0")


def has_short_decimal(value: Number) -> bool:
    """Whether the value can be written exactly with at most two decimal places."""
    return isinstance(value, int) or 100 % value.denominator == 0


def fill(template: str, values: Mapping[str, Number]) -> str:
    """Replace every ``<name>`` of a template; braces stay free for LaTeX.

    What numbers do to the text around them is put right: ``+ -3`` to ``- 3``, ``a 8`` to ``an 8``, ``£2.5`` to ``£2.50``.
    """
    text = _PLACEHOLDER.sub(lambda match: plain_number(values[match.group(1)]), template)
    if " + -" in text or " - -" in text:
        text = text.replace("+ -", "- ").replace("- -", "+ ")
    if "£" in text:
        text = _PENCE.sub(r"\g<1>0", text)
    return _VOWEL_NUMBER.sub(r"\1n ", text) if "a " in text or "A " in text else text
