"""When two questions are the same question: exact n-grams, MinHash, and the numbers in them.

Two questions made from one template with other numbers are not the same: their answers differ. So a copy must agree in
its numbers, and may differ in case, spacing, punctuation, LaTeX dress, order of options, or a sentence before or after.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE_TOKENS = 3
RUN_TOKENS = 8
SAME_JACCARD = 0.6
CONTAINED_SHARE = 0.9
REWORDED_JACCARD = 0.25
BANDS, ROWS = 32, 2
_DRESS = [
    (re.compile(r"\\d?t?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1 / \2 "),
    (re.compile(r"\\(times|cdot)\b|[×·]"), " * "),
    (re.compile(r"\\div\b|÷"), " / "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
    (re.compile(r"\\[a-z]+"), " "),
]
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[+\-*/=<>^%]")
_NUMBER = re.compile(r"\d")


@dataclass(frozen=True)
class Text:
    """A question made comparable."""

    tokens: tuple[str, ...]
    shingles: frozenset[str]
    numbers: tuple[str, ...]
    options: frozenset[str]
    answer: str


@dataclass(frozen=True)
class Copy:
    """Row `left` of the first list is the question in row `right` of the second."""

    left: int
    right: int
    how: str


def tokenize(text: str) -> tuple[str, ...]:
    """Words, numbers and operators, free of case, punctuation and LaTeX."""
    text = unicodedata.normalize("NFKC", text).casefold()
    for pattern, plain in _DRESS:
        text = pattern.sub(plain, text)
    return tuple(_TOKEN.findall(text))


def prepare(question: str, options: Sequence[str] = (), answer: str = "") -> Text:
    """Make a question comparable.

    Args:
        question: its text.
        options: the texts of its options, in any order.
        answer: the text of the right one.
    """
    tokens = tokenize(question)
    width = min(SHINGLE_TOKENS, len(tokens)) or 1
    shingles = frozenset(" ".join(tokens[i : i + width]) for i in range(len(tokens) - width + 1))
    numbers = tuple(token for token in tokens if _NUMBER.match(token))
    plain = frozenset(" ".join(tokenize(option)) for option in options if option.strip())
    return Text(tokens, shingles, numbers, plain, " ".join(tokenize(answer)))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Share of common elements."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def same_question(left: Text, right: Text) -> str | None:
    """How two questions are the same one, or None."""
    shorter, longer = sorted((left, right), key=lambda text: len(text.tokens))
    if not shorter.tokens:
        return None
    telling = len(shorter.tokens) >= RUN_TOKENS or (len(shorter.tokens) >= 4 and len(shorter.numbers) >= 2)
    agrees = telling or (left.answer == right.answer and left.answer != "")
    if left.numbers == right.numbers and agrees and jaccard(left.shingles, right.shingles) >= SAME_JACCARD:
        return "same text"
    if sorted(left.numbers) == sorted(right.numbers):
        common = len(left.options & right.options)
        words = jaccard(frozenset(left.tokens), frozenset(right.tokens))
        if left.numbers and common >= 3 and words >= REWORDED_JACCARD:
            return "same numbers and options"
    if len(shorter.tokens) >= RUN_TOKENS and not Counter(shorter.numbers) - Counter(longer.numbers):
        match = difflib.SequenceMatcher(None, longer.tokens, shorter.tokens, autojunk=False).find_longest_match()
        if match.size >= CONTAINED_SHARE * len(shorter.tokens):
            return "contained"
    return None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def signatures(texts: Sequence[Text]) -> np.ndarray:
    """(N, BANDS × ROWS) MinHash signatures of the shingles."""
    draw = np.random.Generator(np.random.Philox(key=7))
    factors = draw.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
    offsets = draw.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
    result = np.empty((len(texts), BANDS * ROWS), dtype=np.uint64)
    for row, text in enumerate(texts):
        hashes = np.fromiter((_hash(shingle) for shingle in text.shingles or {""}), dtype=np.uint64)
        result[row] = ((hashes[:, None] * factors + offsets) >> np.uint64(32)).min(axis=0)
    return result


def _keys(texts: Sequence[Text]) -> Iterator[tuple[int, tuple]]:
    """Every key under which a row may meet its copy."""
    for row, (text, signature) in enumerate(zip(texts, signatures(texts), strict=True)):
        numbers = tuple(sorted(text.numbers))
        for band in range(BANDS):
            yield row, ("band", band, numbers, *signature[band * ROWS : (band + 1) * ROWS].tolist())
        for start in range(len(text.tokens) - RUN_TOKENS + 1):
            yield row, ("run", text.tokens[start : start + RUN_TOKENS])
        if text.numbers and text.options:
            for option in text.options:
                yield row, ("option", numbers, option)


def find_copies(texts: Sequence[Text], references: Sequence[Text]) -> list[Copy]:
    """Rows of `texts` that are a question of `references`, the first match of each, in order."""
    table: dict[tuple, list[int]] = defaultdict(list)
    for row, key in _keys(references):
        if not table[key] or table[key][-1] != row:
            table[key].append(row)
    found: dict[int, Copy] = {}
    tried: set[tuple[int, int]] = set()
    for row, key in _keys(texts):
        for other in () if row in found else table.get(key, ()):
            if (row, other) in tried:
                continue
            tried.add((row, other))
            if how := same_question(texts[row], references[other]):
                found[row] = Copy(row, other, how)
                break
    return [found[row] for row in sorted(found)]


def find_duplicates(texts: Sequence[Text]) -> list[Copy]:
    """Rows that repeat an earlier row that is itself no repeat: drop `left`, keep `right`."""
    table: dict[tuple, list[int]] = defaultdict(list)
    by_row: dict[int, list[tuple]] = defaultdict(list)
    for row, key in _keys(texts):
        by_row[row].append(key)
    copies = []
    for row in range(len(texts)):
        candidates = dict.fromkeys(other for key in by_row[row] for other in table.get(key, ()))
        match = next(((other, how) for other in candidates if (how := same_question(texts[row], texts[other]))), None)
        if match:
            copies.append(Copy(row, *match))
            continue
        for key in set(by_row[row]):
            table[key].append(row)
    return copies
