"""Engineered features of a pair: 20 of each text, similarity of both responses to the prompt, an indicator.

Counting is vectorised: a block of texts becomes one array of code points, every code point falls into one class, and
one `bincount` counts all classes of all texts. The features are sums of classes.

A feature vector is antisymmetric under swapping: swapping the responses exchanges their blocks and turns the sign of
the difference, before and after standardisation.
"""

import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from podium.errors import DataError

CHARACTERS: dict[str, str] = {
    "stops": ",.!",
    "question_marks": "?",
    "quotes": "\"'“”‘’«»",
    "emphasis": "*_",
    "arithmetic": "-+=",
    "open_curly": "{",
    "close_curly": "}",
    "open_round": "(",
    "close_round": ")",
}
"""Counts of single characters."""
TEXT_FEATURES = (
    "length", "spaces", *CHARACTERS, "symbols", "digits", "lower_share", "upper_share", "cjk_share", "round_balance",
    "curly_balance", "json", "sentiment",
)  # fmt: skip
"""Of one text. `symbols` are characters that are neither of a word nor white space."""
NAMES = (
    *(f"{part}_{name}" for part in ("prompt", "a", "b") for name in TEXT_FEATURES),
    "similarity_a", "similarity_b", "similarity_difference", "sentiment_known",
)  # fmt: skip
CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
"""Kana, Han and Hangul blocks."""
SENTIMENT_LANGUAGES = frozenset({"english", "en"})
POSITIVE = (
    "good great excellent nice best better love loved lovely happy glad helpful useful clear correct right perfect"
    " wonderful amazing fantastic enjoy enjoyed easy fine safe kind beautiful success successful improve improved"
    " win thanks thank pleased positive accurate reliable effective recommend welcome"
).split()
NEGATIVE = (
    "bad poor worse worst wrong hate hated sad sorry unhappy useless unclear incorrect terrible awful horrible hard"
    " difficult fail failed failure problem problems error errors broken dangerous ugly harm harmful negative boring"
    " confusing confused unfortunately never cannot impossible annoying angry fear afraid lose lost"
).split()
BLOCK_CHARACTERS = 1 << 20
LONGEST_SHAPE = 16
FACTOR = np.uint64(0x9E3779B97F4A7C15 | 1)


# --- counting --------------------------------------------------------------------------------------------------------


@cache
def _classes() -> tuple[np.ndarray, np.ndarray]:
    """Class of every code point (uint8), and what each class counts towards.

    Returns:
        class_of (code points,), members (classes, 8 + len(CHARACTERS)): columns spaces, symbols, digits, lower, upper,
        cjk, letters of ASCII words, "j" of json, then CHARACTERS.
    """
    size = sys.maxunicode + 1
    flags = np.zeros((size, 8 + len(CHARACTERS)), dtype=bool)
    text = "".join(map(chr, range(size)))
    for column, pattern in ((0, r"\s+"), (1, r"[^\w\s]+"), (2, r"\d+")):
        for match in re.finditer(pattern, text):
            flags[match.start() : match.end(), column] = True
    flags[:, 3] = [char.islower() for char in text]
    flags[:, 4] = [char.isupper() for char in text]
    for first, last in CJK:
        flags[first : last + 1, 5] = True
    for first, last in ((ord("a"), ord("z")), (ord("A"), ord("Z"))):
        flags[first : last + 1, 6] = True
    flags[[ord("j"), ord("J")], 7] = True
    for column, characters in enumerate(CHARACTERS.values(), 8):
        flags[[ord(char) for char in characters], column] = True
    members, class_of = np.unique(flags, axis=0, return_inverse=True)
    return class_of.reshape(-1).astype(np.uint8), members


def _blocks(texts: list[str]) -> list[list[int]]:
    """Consecutive texts in blocks of about BLOCK_CHARACTERS."""
    blocks: list[list[int]] = [[]]
    room = BLOCK_CHARACTERS
    for at, text in enumerate(texts):
        if blocks[-1] and len(text) > room:
            blocks.append([])
            room = BLOCK_CHARACTERS
        blocks[-1].append(at)
        room -= len(text)
    return blocks if texts else []


@cache
def _lexicon() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted hashes of the words with a sentiment, +1 or −1 for each, and which shapes these words have."""
    words = [*POSITIVE, *NEGATIVE]
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
    ends = np.cumsum([len(word) for word in words])
    starts = np.concatenate([[0], ends[:-1]])
    hashes = _word_hashes(codes, starts, ends)
    order = np.argsort(hashes)
    shapes = np.zeros(LONGEST_SHAPE * 32 * 32, dtype=bool)
    shapes[_shape(codes, starts, ends)] = True
    return hashes[order], np.repeat([1.0, -1.0], [len(POSITIVE), len(NEGATIVE)])[order], shapes


def _shape(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Length (everything from LONGEST_SHAPE − 1 on is one) and first two letters of words of at least two ASCII letters."""
    length = np.minimum(ends - starts, LONGEST_SHAPE - 1)
    # the low five bits of an ASCII letter are its place in the alphabet, in either case
    return (length * 32 + (codes[starts] & 31)) * 32 + (codes[starts + 1] & 31)


def _word_hashes(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """64-bit hash of every word codes[start:end], from one running polynomial sum (arithmetic modulo 2^64)."""
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    length = ends - starts
    result = np.zeros(len(starts), dtype=np.uint64)
    for place in range(int(length.max())):
        longer = length > place
        result[longer] = result[longer] * FACTOR + codes[starts[longer] + place].astype(np.uint64)
    return result


def _sentiment(codes: np.ndarray, is_letter: np.ndarray, owner_starts: np.ndarray, count: int) -> np.ndarray:
    """(texts,) (positive − negative) / (positive + negative) words of each text; 0 without any."""
    edges = np.flatnonzero(is_letter[1:] != is_letter[:-1]) + 1
    if len(is_letter) and is_letter[0]:
        edges = np.concatenate([[0], edges])
    if len(is_letter) and is_letter[-1]:
        edges = np.append(edges, len(is_letter))
    starts, ends = edges[::2], edges[1::2]
    # a run of letters may span two texts of the block
    inner = owner_starts[(owner_starts > 0) & (owner_starts < len(codes))]
    inner = inner[is_letter[inner] & is_letter[inner - 1]]
    if len(inner):
        starts, ends = np.sort(np.concatenate([starts, inner])), np.sort(np.concatenate([ends, inner]))
    known, polarity, shapes = _lexicon()
    # few words have the length and the first two letters of one in the lexicon, and only those are hashed
    starts, ends = (edge[ends - starts >= 2] for edge in (starts, ends))
    likely = shapes.take(_shape(codes, starts, ends))
    starts, ends = starts[likely], ends[likely]
    hashes = _word_hashes(codes | 0x20, starts, ends)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    hit = known[place] == hashes
    owner = np.searchsorted(owner_starts, starts[hit], side="right") - 1
    signs = polarity[place[hit]]
    total = np.bincount(owner, minlength=count)
    return np.bincount(owner, weights=signs, minlength=count) / np.maximum(total, 1)


def text_features(texts: list[str], with_sentiment: np.ndarray) -> np.ndarray:
    """(N, 20) raw features of texts, columns as TEXT_FEATURES.

    Args:
        texts: any Unicode, lone surrogates and empty texts included.
        with_sentiment: (N,) bool; where False (a language without lexicon) sentiment is 0.
    """
    class_of, members = _classes()
    kinds = len(members)
    counts = np.zeros((len(texts), members.shape[1]))
    length = np.array([len(text) for text in texts], dtype=np.int64)
    json = np.zeros(len(texts))
    sentiment = np.zeros(len(texts))
    for block in _blocks(texts):
        first, last = block[0], block[-1] + 1
        codes = np.frombuffer("".join(texts[first:last]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        sizes = length[first:last]
        starts = np.cumsum(sizes) - sizes
        kind = class_of.take(codes)
        owner = np.repeat(np.arange(len(block), dtype=np.int32) * kinds, sizes)
        table = np.bincount(owner + kind, minlength=len(block) * kinds).reshape(len(block), kinds)
        counts[first:last] = table @ members
        json[first:last] = _json(codes, members[:, 7].take(kind), starts, sizes)
        wanted = with_sentiment[first:last]
        if wanted.any():
            found = _sentiment(codes, members[:, 6].take(kind), starts, len(block))
            sentiment[first:last] = np.where(wanted, found, 0.0)
    safe = np.maximum(length, 1)
    spaces, symbols, digits, lower, upper, cjk = counts[:, :6].T
    single = dict(zip(CHARACTERS, counts[:, 8:].T, strict=True))
    return np.stack(
        [length, spaces, *single.values(), symbols, digits, lower / safe, upper / safe, cjk / safe,
         single["open_round"] - single["close_round"], single["open_curly"] - single["close_curly"], json, sentiment],
        axis=1,
    )  # fmt: skip


def _json(codes: np.ndarray, is_j: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(texts,) occurrences of the ASCII word part "json" in any case."""
    at = np.flatnonzero(is_j)
    at = at[at + 4 <= len(codes)]
    for place, letter in enumerate("son", 1):
        at = at[(codes[at + place] | 0x20) == ord(letter)]
    # `starts` may repeat (empty texts): the last text that starts there is the one with characters
    owner = np.searchsorted(starts, at, side="right") - 1
    inside = at + 4 <= (starts + sizes)[owner]
    return np.bincount(owner[inside], minlength=len(starts)).astype(float)


# --- similarity ------------------------------------------------------------------------------------------------------

HASHED_TERMS = 1 << 14
ROWS_AT_ONCE = 20_000
# words, but every Han, Kana or Hangul character by itself: those scripts put no space between words
TERM = r"(?u)[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W぀-ヿ㐀-䶿一-鿿가-힯]+"


def _terms(texts: list[str]) -> Any:
    """(N, HASHED_TERMS) sparse counts of terms."""
    vectorizer = HashingVectorizer(
        n_features=HASHED_TERMS, token_pattern=TERM, norm=None, alternate_sign=False, lowercase=True
    )
    return vectorizer.transform(texts)


def fit_idf(texts: list[str]) -> np.ndarray:
    """(HASHED_TERMS,) inverse document frequencies of a corpus, smoothed as in scikit-learn."""
    documents = np.zeros(HASHED_TERMS)
    for start in range(0, len(texts), ROWS_AT_ONCE):
        documents += np.asarray((_terms(texts[start : start + ROWS_AT_ONCE]) > 0).sum(axis=0)).reshape(-1)
    return np.log((1 + len(texts)) / (1 + documents)) + 1


def similarity(left: list[str], right: list[str], idf: np.ndarray) -> np.ndarray:
    """(N,) cosine of the TF-IDF vectors of left[i] and right[i]; 0 where one has no terms."""
    if len(left) > ROWS_AT_ONCE:
        starts = range(0, len(left), ROWS_AT_ONCE)
        return np.concatenate(
            [similarity(left[at : at + ROWS_AT_ONCE], right[at : at + ROWS_AT_ONCE], idf) for at in starts]
        )
    one, two = _terms(left).multiply(idf).tocsr(), _terms(right).multiply(idf).tocsr()
    dot = np.asarray(one.multiply(two).sum(axis=1)).reshape(-1)
    norms = [np.sqrt(np.asarray(part.multiply(part).sum(axis=1)).reshape(-1)) for part in (one, two)]
    scale = norms[0] * norms[1]
    return np.divide(dot, scale, out=np.zeros_like(dot), where=scale > 0)


# --- pairs -----------------------------------------------------------------------------------------------------------


def oriented(vectors: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """Feature vectors (N, F) with the responses exchanged where `swapped`."""
    width = len(TEXT_FEATURES)
    turned = vectors.copy()
    turned[:, width : 2 * width], turned[:, 2 * width : 3 * width] = (
        vectors[:, 2 * width : 3 * width],
        vectors[:, width : 2 * width],
    )
    at = 3 * width
    turned[:, at], turned[:, at + 1], turned[:, at + 2] = vectors[:, at + 1], vectors[:, at], -vectors[:, at + 2]
    return np.where(swapped[:, None], turned, vectors)


@dataclass
class FeatureSet:
    """What is fitted on training pairs: term frequencies, and mean and deviation of every feature."""

    idf: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def raw(
        self, prompts: list[str], responses_a: list[str], responses_b: list[str], languages: list[str | None]
    ) -> np.ndarray:
        """(N, F) features before standardisation, columns as NAMES."""
        known = np.array([(one or "").casefold() in SENTIMENT_LANGUAGES for one in languages], dtype=bool)
        blocks = [text_features(texts, known) for texts in (prompts, responses_a, responses_b)]
        a, b = (similarity(prompts, responses, self.idf) for responses in (responses_a, responses_b))
        return np.concatenate([*blocks, np.stack([a, b, a - b, known.astype(float)], axis=1)], axis=1)

    def standardised(self, *texts: Any) -> np.ndarray:
        """(N, F) features with mean 0 and deviation 1 on the training pairs in both orders."""
        return (self.raw(*texts) - self.mean) / self.deviation

    def as_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back, exactly."""
        return {"names": list(NAMES), "idf": self.idf.tolist(), "mean": self.mean.tolist(),
                "deviation": self.deviation.tolist()}  # fmt: skip


def from_json(values: dict[str, Any], where: str) -> FeatureSet:
    """A saved feature set.

    Raises:
        DataError: of another version of the features.
    """
    if values.get("names") != list(NAMES):
        raise DataError(f"{where}: its features are not those of this version; train the checkpoint again")
    return FeatureSet(*(np.array(values[name]) for name in ("idf", "mean", "deviation")))


def fit(prompts: list[str], responses_a: list[str], responses_b: list[str], languages: list[str | None]) -> FeatureSet:
    """Fit on training pairs. Mean and deviation are those of both orders, so that swapping commutes with them."""
    idf = fit_idf([*prompts, *responses_a, *responses_b])
    made = FeatureSet(idf, np.zeros(len(NAMES)), np.ones(len(NAMES)))
    raw = made.raw(prompts, responses_a, responses_b, languages)
    both = np.concatenate([raw, oriented(raw, np.ones(len(raw), dtype=bool))])
    deviation = both.std(axis=0)
    made.mean, made.deviation = both.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
    return made
