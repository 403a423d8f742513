"""How numbers look in questions, options and rationales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

Number = int | Fraction

_PLACEHOLDER = re.compile(r"<(\w+)>")


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
    """Replace every ``<name>`` of a template; braces stay free for LaTeX. ``+ -3`` is tidied to ``- 3``."""
    text = _PLACEHOLDER.sub(lambda match: plain_number(values[match.group(1)]), template)
    return text.replace("+ -", "- ").replace("- -", "+ ") if " + -" in text or " - -" in text else text
