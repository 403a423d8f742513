"""Answers that are one number, read exactly: signs, commas, fractions, mixed numbers, powers of ten, percent, units."""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_TEXT = 200
MAX_EXPONENT = 300

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "‒": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
        "∕": "/",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "’": "'",
        "“": '"',
        "”": '"',
        "π": "\\pi ",
        "∞": "\\infty ",
        "√": "\\sqrt ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "∪": "\\cup ",
        "½": " 1/2",
        "¼": " 1/4",
        "¾": " 3/4",
        "⅓": " 1/3",
        "⅔": " 2/3",
        "²": "^2",
        "³": "^3",
        "º": "°",
    }
)
_LATEX = [
    (re.compile(r"\\(?:d|t|c)frac"), r"\\frac"),
    (re.compile(r"\\(?:left|right|displaystyle|limits|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degrees?|\\circ(?![a-z])"), "°"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])"), "*"),
    (re.compile(r"(?<!\\)\\[!,;: ]|\\quad|\\qquad|~"), " "),
    (re.compile(r"\s+(?=\^)"), ""),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge "),
]
_WRAPPERS = [("**", "**"), ("__", "__"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`")]
_WRAPPERS += [('"', '"'), ("'", "'"), ("*", "*")]


def tidy(text: str) -> str:
    """An answer without mark-up: one notation for each sign, no math delimiters, bold, quotes or closing full stop."""
    text = text.strip()
    if text.isascii() and text.isalnum():
        return text
    text = text.translate(_CHARACTERS)
    if "\\" in text or "{,}" in text:
        if text.startswith("\\boxed{") and text.endswith("}"):
            text = text[7:-1]
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    changed = True
    while changed:
        text = text.strip()
        changed = False
        stripped = text.rstrip(".,;:").rstrip() if not text.endswith(("\\,", "\\;", "\\:", "\\!")) else text
        if stripped and stripped != text:
            text, changed = stripped, True
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
                if opening.strip("*_`") and opening[0] in inner and opening in ("$", "'", '"'):
                    continue  # "$5$ and $6$" is not one formula
                text, changed = inner, True
    return re.sub(r"\s+", " ", text)


# unit: (dimension, how many base units)
_UNITS: dict[str, tuple[str, Fraction]] = {}


def _units(dimension: str, table: dict[str, str]) -> None:
    for factor, names in table.items():
        for name in names.split("|"):
            _UNITS[name] = (dimension, Fraction(factor))


_units("dollars", {"1": "$|dollar|dollars|usd|us dollars|bucks", "1/100": "cent|cents|¢"})
_units("rupees", {"1": "rs|rs.|rupee|rupees|inr|₹"})
_units("pounds sterling", {"1": "£|gbp", "1/100": "pence"})
_units("euros", {"1": "€|euro|euros|eur"})
_units("percent", {"1": "%|percent|per cent|pct|percentage"})
_units("degrees", {"1": "°|degree|degrees|deg"})
_units("radians", {"1": "radian|radians|rad"})
_units(
    "length",
    {
        "1": "m|meter|meters|metre|metres|mtr|mts",
        "1000": "km|kilometer|kilometers|kilometre|kilometres|kms",
        "1/100": "cm|centimeter|centimeters|centimetre|centimetres|cms",
        "1/1000": "mm|millimeter|millimeters|millimetre|millimetres",
        "0.3048": "ft|foot|feet",
        "0.0254": "inch|inches",
        "0.9144": "yd|yard|yards",
        "1609.344": "mi|mile|miles",
    },
)
_units(
    "time",
    {
        "1": "s|sec|secs|second|seconds",
        "60": "min|mins|minute|minutes",
        "3600": "h|hr|hrs|hour|hours",
        "86400": "day|days",
        "604800": "week|weeks",
    },
)
_units("calendar", {"1": "month|months", "12": "year|years|yr|yrs"})
_units(
    "mass",
    {
        "1": "kg|kgs|kilogram|kilograms|kilo|kilos",
        "1/1000": "g|gm|gms|gram|grams",
        "1/1000000": "mg|milligram|milligrams",
        "1000": "tonne|tonnes",
        "0.45359237": "lb|lbs|pound|pounds",
        "0.028349523125": "oz|ounce|ounces",
    },
)
_units("volume", {"1": "l|liter|liters|litre|litres|lt", "1/1000": "ml|milliliter|milliliters|millilitre|millilitres"})
_units("gallons", {"1": "gallon|gallons|gal", "1/4": "quart|quarts", "1/8": "pint|pints"})
_units(
    "area",
    {
        "1": "m^2|sq m|sq.m|square meters|square metres|square meter|square metre|sqm",
        "1/10000": "cm^2|sq cm|sq.cm|square centimeters|square centimetres|square centimeter|square centimetre",
        "0.09290304": "ft^2|sq ft|square feet|square foot",
        "0.00064516": "in^2|sq in|square inches|square inch",
        "1000000": "km^2|sq km|square kilometers|square kilometres",
    },
)
_units(
    "cubic",
    {
        "1": "m^3|cu m|cubic meters|cubic metres|cubic meter|cubic metre",
        "1/1000000": "cm^3|cc|cubic centimeters|cubic centimetres",
        "0.028316846592": "ft^3|cubic feet|cubic foot",
    },
)
_units(
    "speed",
    {
        "1": "m/s|mps|m/sec|meters per second|metres per second",
        "5/18": "km/h|kmph|kph|km/hr|kmh|kilometers per hour|kilometres per hour|km per hour",
        "0.44704": "mph|miles per hour|miles/hour|mi/h",
        "26.8224": "miles per minute",
        "0.3048": "ft/s|feet per second",
    },
)

_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_WORDS += " seventeen eighteen nineteen twenty"
NUMBER_WORDS = {word: value for value, word in enumerate(_WORDS.split())}
_INEXACT = r"\b(and|or|point|hal(f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?|to)\b"
_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "hundred": 100, "dozen": 12}

GROUPED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?![\d])"  # also India's 12,34,567
DIGITS = rf"(?:{GROUPED}|\d+)(?:\.\d*)?|\.\d+"
_CURRENCY = r"(?:US\$|\$|€|£|₹|Rs\.?|USD|INR)"
_SHAPE = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?P<currency>{_CURRENCY})?\s*
    (?P<inner_sign>-?)
    (?:
      (?P<whole>\d+)\s*(?:\\frac\s*(?:\{{(?P<mixed_top>\d+)\}}|(?P<mixed_top_digit>\d))\s*(?:\{{(?P<mixed_bottom>\d+)\}}|(?P<mixed_bottom_digit>\d))
                         |(?:(?<=\d)\s+|\s+and\s+)(?P<mixed_top_plain>\d+)\s*/\s*(?P<mixed_bottom_plain>\d+))
      |\\frac\s*\{{\s*(?P<top>-?(?:{DIGITS}))\s*\}}\s*\{{\s*(?P<bottom>-?(?:{DIGITS}))\s*\}}
      |\\frac\s*(?P<top_digit>\d)\s*(?P<bottom_digit>\d)
      |\(?(?P<over_top>(?:{DIGITS}))\)?\s*/\s*\(?(?P<over_bottom>-?(?:{DIGITS}))\)?
      |(?P<mantissa>{DIGITS})\s*(?:[eE]\s*(?P<exponent>[-+]?\d+)
                                  |\*\s*10\s*(?:\^|\*\*)\s*\{{?\s*\(?(?P<power>[-+]?\d+)\)?\s*\}}?)
      |(?P<plain>{DIGITS})
    )
    \s*(?P<multiplier>thousand|million|billion|trillion|hundred|dozen)?
    \s*(?P<unit>[-%°¢$€£₹]?\s*[A-Za-z'][-A-Za-z.,/^0-9²³'() ]*|[%°¢$€£₹])?""",
    re.VERBOSE,
)
_INTEGER = re.compile(r"-?\d{1,18}")


class Quantity(NamedTuple):
    """One number as written.

    `decimals` is how many digits follow the point, None for a fraction. `unit` is (dimension, base units) or None where
    there is none or it is a noun ("apples").
    """

    value: Fraction
    decimals: int | None
    unit: tuple[str, Fraction] | None = None


def known_unit(text: str) -> tuple[str, Fraction] | None:
    """The unit a phrase begins with: the longest known name of up to three words."""
    words = text.strip().strip("().").replace(",", " ").split()
    words = words[1:] if words and words[0].lower() == "of" else words
    for count in range(min(3, len(words)), 0, -1):
        name = " ".join(words[:count])
        found = _UNITS.get(name) or _UNITS.get(name.lower()) or _UNITS.get(name.lower().rstrip("."))
        if found:
            return found
    return None


def _decimal(text: str) -> tuple[Fraction, int]:
    text = text.replace(",", "")
    point = text.find(".")
    return Fraction(text if not text.endswith(".") else text + "0"), 0 if point < 0 else len(text) - point - 1


def parse_quantity(text: str) -> Quantity | None:
    r"""The number that a tidied answer consists of, or None if it is anything else ("3x", "2 or 3", "\sqrt{2}").

    Args:
        text: what `tidy` returned.
    """
    if _INTEGER.fullmatch(text):
        return Quantity(Fraction(int(text)), 0)
    if len(text) > MAX_TEXT:
        return None
    match = _SHAPE.fullmatch(text)
    if match is None:
        word = NUMBER_WORDS.get(text.lower().split(" ")[0]) if text else None
        rest = text.lower().split(" ", 1)[1] if " " in text else ""
        if word is None or (rest and not re.fullmatch(r"[a-z ]+", rest)) or re.search(_INEXACT, rest):
            return None
        if rest.split(" ")[0] in (*_MULTIPLIERS, *NUMBER_WORDS):
            return None
        return Quantity(Fraction(word), 0, known_unit(rest))
    found = match.groupdict()
    value = _value(found)
    if value is None:
        return None
    number, decimals = value
    if found["sign"] == "-":
        number = -number
    if found["inner_sign"] == "-":
        number = -number
    if found["multiplier"]:
        number *= _MULTIPLIERS[found["multiplier"]]
        decimals = None if decimals else decimals
    unit = None
    if found["unit"]:
        phrase = found["unit"].strip().lstrip("-")
        unit = known_unit(phrase)
        if unit is None and not _is_noun(phrase):
            return None
    if found["currency"]:
        currency = (
            _UNITS[found["currency"].lower().removeprefix("us") or "usd"] if found["currency"] != "USD" else _UNITS["$"]
        )
        unit = unit if unit and unit[0] == currency[0] else currency
    return Quantity(number, decimals, unit)


def _is_noun(phrase: str) -> bool:
    """Whether what follows a number is words rather than algebra: "apples", "pairs of shoes"; not "x", "pi", "n + 1"."""
    words = phrase.split()
    return (
        bool(words)
        and len(words) <= 6
        and all(re.fullmatch(r"\(?[A-Za-z][A-Za-z'’.-]+[,)]?", w) for w in words)
        and (
            words[0].lower()
            not in ("pi", "sqrt", "or", "and", "to", "log", "ln", "sin", "cos", "tan", "exp", "xy", "ab")
        )
        and not {"or", "and", "to"} & {word.lower() for word in words}
    )


def _value(found: dict[str, str | None]) -> tuple[Fraction, int | None] | None:
    """Value and written decimals of a matched shape; None for a zero denominator or an exponent out of bounds."""
    if whole := found["whole"]:
        top = found["mixed_top"] or found["mixed_top_digit"] or found["mixed_top_plain"]
        bottom = found["mixed_bottom"] or found["mixed_bottom_digit"] or found["mixed_bottom_plain"]
        if top is None or bottom is None or int(bottom) == 0:
            return None
        return int(whole) + Fraction(int(top), int(bottom)), None
    for top, bottom in (("top", "bottom"), ("top_digit", "bottom_digit"), ("over_top", "over_bottom")):
        numerator, denominator = found[top], found[bottom]
        if numerator is not None and denominator is not None:
            below = _decimal(denominator)[0]
            return None if below == 0 else (_decimal(numerator)[0] / below, None)
    if mantissa := found["mantissa"]:
        exponent = int(found["exponent"] or found["power"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        number, decimals = _decimal(mantissa)
        return number * Fraction(10) ** exponent, max(0, decimals - exponent)
    plain = found["plain"]
    return None if plain is None else _decimal(plain)
