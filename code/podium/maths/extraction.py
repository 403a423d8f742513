r"""Finding the answer in what a model wrote.

Order: the last \boxed{}, the last sentence that announces an answer, then the last number, formula or option letter.
An announcement wins over whatever follows it, since models append explanations and remarks; the last one wins, since
they correct themselves. Every pattern is linear in the text.
"""

import re
from typing import NamedTuple

from podium.maths.quantities import GROUPED, known_unit, tidy

MAX_TEXT = 100_000


class Extraction(NamedTuple):
    """The answer as written (None if nothing looks like one) and how it was found."""

    answer: str | None
    method: str


_ADVERBS = r"(?:\s+(?:therefore|thus|then|hence|clearly|simply|here|finally|now|also|probably))*"
_ANNOUNCED = re.compile(
    rf"""(?:(?<![/\w-])answer\b|\b(?:the|final|possible)\s+answers(?=\s+(?:to\b|are\b|is\b)|[ *_]*:)
       |\b(?:correct|right|best)\s+(?:option|choice)\b)["')*_]*
    (?:\s+(?:to|of|for|in|that|we|choice|option)\b[^.\n:=]{{0,90}}?)??{_ADVERBS}
    (?:\s*["'*_]*\s*(?:
        \b(?:is|are|was|equals?|=|becomes|comes\s+to|turns\s+out\s+to\s+be|(?:would|must|should|will|can\s+only)\s+be)(?![a-z])
        |[:=]|->|→|\#)
      |[ ]*[*_]*[ ]*\n)
    |\#\#\#\#""",
    re.IGNORECASE | re.VERBOSE,
)
_REVERSED = re.compile(
    r"\b(?:is|are|as)\s+(?:indeed\s+|therefore\s+|thus\s+)?(?:the|our|my)\s+(?:final\s+|correct\s+|required\s+|desired\s+)?answer\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z\"'(\[*$\\]|\s*$)|\n|;\s")
_UNIT = r"(?:\s?[%°¢]|\s?\\%|[ -]?(?:square |cubic |sq\.? |cu\.? )?[A-Za-z]+(?:/[A-Za-z]+|\^[23]|[²³]| per [a-z]+)?)"
_CURRENCY = r"(?:\\?\$|€|£|₹|Rs\.?\s?)"
_DIGITS = rf"(?:{GROUPED}|\d+)(?:\.\d+)?|\.\d+"
_FRACTION = r"\\[dt]?frac\s*(?:\{-?[\d.,]+\}\s*\{-?[\d.,]+\}|\d\s*\d)"
_POWER = r"(?:\s*(?:\*|×|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?\(?[-+]?\d+\)?\}?|[eE][-+]?\d+)"
_NUMBER = re.compile(
    rf"""(?:(?<![\w.)\]}}])[-−+]\s?)?{_CURRENCY}?\s?-?
    (?:\d+\s*{_FRACTION}|{_FRACTION}|\d+[ ]\d+/\d+|(?<![\d.])(?:{_DIGITS})(?:{_POWER}|\s*/\s*\d[\d,]*(?:\.\d+)?)?)
    (?:\s(?:thousand|million|billion|trillion)\b)?(?P<unit>{_UNIT})?""",
    re.VERBOSE,
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|equals|equal to|be|of|than|to|have|has|had|gives|needs?)\b|[:=≈])[\s*_$\\(]*", re.IGNORECASE
)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{…} or \fbox{…}, braces balanced."""
    end = len(text)
    while (start := max(text.rfind("\\boxed{", 0, end), text.rfind("\\fbox{", 0, end))) >= 0:
        opening = text.index("{", start)
        depth = 0
        for position in range(opening, len(text)):
            if text[position] == "{":
                depth += 1
            elif text[position] == "}":
                depth -= 1
                if depth == 0:
                    return text[opening + 1 : position]
        end = start
    return None


def _sentence(text: str, start: int) -> str:
    """From `start` to the end of the sentence or line; the next line if this one holds nothing."""
    rest = text[start : start + 1000].lstrip(" \t*_:=")
    if rest.startswith("\n"):
        rest = rest.lstrip()
    end = _SENTENCE_END.search(rest)
    return rest[: end.start()] if end else rest


_CLOSING = re.compile(r"[^$\n]{0,20}\$(?!\s?\d)")


def _written(number: re.Match[str]) -> str:
    """A matched number with its unit, or without the word behind it that is no unit."""
    unit = number["unit"]
    text = number.group()
    if unit is not None and known_unit(unit.lstrip(" -").replace("\\", "")) is None:
        text = text[: -len(unit)]
    text = text.strip()
    if text.startswith("$") and _CLOSING.match(number.string, number.end()):
        text = text[1:].strip()  # it opens a formula and is no currency
    return text


def _number_in(sentence: str) -> str | None:
    """The number a sentence states: behind the last "=", at its beginning, behind its last verb, else its last."""
    if "=" in sentence:
        after = sentence.rsplit("=", 1)[1]
        if found := _NUMBER.search(after):
            return _written(found)
    numbers = list(_NUMBER.finditer(sentence))
    if not numbers:
        return None
    if not sentence[: numbers[0].start()].strip(" $\\(*_\"'~≈"):
        return _written(numbers[0])
    behind_a_verb = {match.end() for match in _COPULA.finditer(sentence)}
    stated = [number for number in numbers if number.start() in behind_a_verb or number.start() + 1 in behind_a_verb]
    return _written((stated or numbers)[-1])


def _formula_in(sentence: str) -> str | None:
    """The formula a sentence states: its last one between math delimiters, else the whole if it is short, else a number."""
    formulas = list(_MATH.finditer(sentence))
    if formulas:
        return next(group for group in formulas[-1].groups() if group is not None).strip()
    bare = tidy(sentence)
    if bare and len(bare.split()) <= 6:
        return bare
    return _number_in(sentence)


def _letter_in(sentence: str, letters: str) -> str | None:
    """The option letter a sentence states: parenthesised, followed by ")" or ".", behind "option", or standing alone."""
    bare = tidy(sentence).strip("() ")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    if found := list(re.finditer(rf"\(([{letters}{letters.lower()}])\)", sentence)):
        return found[-1].group(1).upper()
    if found := list(
        re.finditer(rf"\b(?:option|choice|answer|letter)s?\s+['\"*]*([{letters}])\b", sentence, re.IGNORECASE)
    ):
        return found[-1].group(1).upper()
    if at_start := re.match(
        rf"[\s*_$\\({{\"']*(?:text\{{)?([{letters}])(?=[).:,*_}}\"'$]|\s*$|\s+(?:is|because|since|as|[-–—=]))", sentence
    ):
        if not sentence[at_start.end() :].startswith("'s"):
            return at_start.group(1)
    # a capital that is no article: "the correct one is D"
    standing = re.findall(rf"(?<![A-Za-z\\'’])([{letters.replace('A', '')}])(?![A-Za-z'’])", sentence)
    return standing[-1] if standing and len(set(standing)) == 1 and len(sentence) < 80 else None


def _announcements(text: str) -> list[tuple[int, str]]:
    """Sentences that announce an answer, with their places: what follows the words, or, reversed, what precedes them."""
    lowered = text.lower()
    places = [place for word in ("answer", "####", "option", "choice") if (place := lowered.find(word)) >= 0]
    if not places:
        return []
    start = max(0, min(places) - 40)  # the patterns are dear, so they begin at the first word they can match
    found = [(match.end(), _sentence(text, match.end())) for match in _ANNOUNCED.finditer(text, start)]
    for match in _REVERSED.finditer(text, start):
        following = _sentence(text, match.end()).strip()
        if not following or not any(character.isdigit() for character in following):
            before = text[max(0, match.start() - 300) : match.start()]
            parts = [part for part in _SENTENCE_END.split(before) if part and part.strip()]
            if parts:
                found.append((match.end(), parts[-1]))
    return sorted(found)


def extract(text: str, kind: str, letters: str = "ABCDE") -> Extraction:
    """The answer a text ends up with.

    Args:
        text: a model's solution.
        kind: "number", "formula" or "choice".
        letters: the options' letters, for "choice".
    """
    text = text[-MAX_TEXT:]
    if (boxed := last_boxed(text)) is not None and boxed.strip():
        inner = boxed.strip()
        if kind == "choice":
            letter = _letter_in(inner, letters)
            return Extraction(letter or tidy(inner), "boxed")
        return Extraction(inner.rsplit("=", 1)[-1].strip() if kind == "number" else inner, "boxed")
    reader = {"number": _number_in, "formula": _formula_in}.get(kind)
    for _, sentence in reversed(_announcements(text)):
        if not sentence.strip():
            continue
        if kind == "choice":
            answer = _letter_in(sentence, letters) or _content(sentence)
        else:
            answer = reader(sentence) if reader else None
        if answer:
            return Extraction(answer, "announced")
    if kind == "choice":
        return _unannounced_choice(text, letters)
    if kind == "formula":
        formulas = list(_MATH.finditer(text[-2000:]))
        if formulas:
            last = next(group for group in formulas[-1].groups() if group is not None)
            if not _NUMBER.search(text[-2000:][formulas[-1].end() :]):
                return Extraction(last.strip(), "last formula")
    return _last_number(text)


def _last_number(text: str) -> Extraction:
    for window in (200, 2000):  # the last number is near the end of nearly every text
        numbers = list(_NUMBER.finditer(text, max(0, len(text) - window)))
        if numbers:
            return Extraction(_written(numbers[-1]), "last number")
    return Extraction(None, "none")


def _content(sentence: str) -> str | None:
    """The content of an option, stated in words or numbers: the whole sentence if short, else its number."""
    bare = tidy(sentence)
    return bare if bare and len(bare) <= 60 else _number_in(sentence)


def _unannounced_choice(text: str, letters: str) -> Extraction:
    lines = [line for line in text[-2000:].splitlines() if line.strip()]
    if not lines:
        return Extraction(None, "none")
    letter = _letter_in(lines[-1], letters)
    if letter:
        return Extraction(letter, "last letter")
    return _last_number(text)


def extract_program_output(output: str, kind: str, letters: str = "ABCDE") -> Extraction:
    """The answer a program printed: its last line that holds something."""
    lines = [line.strip() for line in output[-MAX_TEXT:].splitlines() if line.strip()]
    if not lines:
        return Extraction(None, "no output")
    last = lines[-1]
    if re.search(r"\banswers?\b|\\boxed", last, re.IGNORECASE):
        return extract(last, kind, letters)
    if kind == "number":
        number = _number_in(last)
        whole = re.fullmatch(r"[\[({]?[^a-zA-Z]*[\])}]?", last)
        return Extraction(last if whole or number is None else number, "program output")
    return Extraction(last.rsplit("=", 1)[-1].strip() if kind == "choice" else last, "program output")
