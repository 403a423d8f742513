"""Cutting prompt and responses to an exact token budget: short parts stay whole, long ones lose their middle.

Everything happens on token ids with their character offsets. Nothing is decoded and encoded again, and a cut never
falls inside a character, so multi-byte text stays intact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from podium import tokenization
from podium.errors import DataError

PROMPT_SHARE, RESPONSE_SHARE = 0.2, 0.4
"""Weights of the parts when all of them are too long; a part that needs less leaves the rest to the others."""
HEAD_SHARE = 0.7


@dataclass(frozen=True)
class Tokens:
    """Token ids of a text and the (start, end) characters each covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def split_budget(lengths: Sequence[int], budget: int, weights: Sequence[float]) -> list[int]:
    """Tokens each part may keep: parts below their share whole, what they leave shared out again by weight.

    Args:
        lengths: tokens of each part.
        budget: tokens of all parts together.
        weights: of the parts, positive.

    Returns:
        one budget a part; they add up to min(budget, sum(lengths)), and none exceeds its part's length.
    """
    allowed = [0] * len(lengths)
    open_parts = [at for at, length in enumerate(lengths) if length > 0]
    left = budget
    while open_parts and left > 0:
        total = sum(weights[at] for at in open_parts)
        fitting = [at for at in open_parts if lengths[at] <= left * weights[at] / total]
        if fitting:
            for at in fitting:
                allowed[at] = lengths[at]
                left -= lengths[at]
            open_parts = [at for at in open_parts if at not in fitting]
            continue
        for at in open_parts:
            allowed[at] = int(left * weights[at] / total)
        # what rounding leaves goes to the heaviest parts, one token each
        rest = left - sum(allowed[at] for at in open_parts)
        for at in sorted(open_parts, key=lambda one: (-weights[one], one))[:rest]:
            allowed[at] += 1
        break
    return allowed


def _is_border(tokens: Tokens, at: int) -> bool:
    """True if no character lies on both sides of the border before token `at`."""
    return at in (0, len(tokens.ids)) or tokens.offsets[at - 1][1] <= tokens.offsets[at][0]


def cut_middle(tokens: Tokens, allowed: int, encode_marker: Callable[[int], list[int]]) -> list[int]:
    """At most `allowed` token ids: head, a marker that says how many tokens are missing, tail.

    Where there is no room for a marker with something on both sides, the head alone is kept.
    """
    count = len(tokens.ids)
    if count <= allowed:
        return tokens.ids
    widest = len(encode_marker(count))
    room = allowed - widest
    if room < 2:
        head = allowed
        while not _is_border(tokens, head):
            head -= 1
        return tokens.ids[:head]
    head = max(1, int(room * HEAD_SHARE))
    start = count - (room - head)
    while not _is_border(tokens, head):
        head -= 1
    while not _is_border(tokens, start):
        start += 1
    # a marker with fewer digits than the widest one leaves a token or two unused
    return [*tokens.ids[:head], *encode_marker(start - head), *tokens.ids[start:]]


def fit_parts(
    prompt: Tokens, response_a: Tokens, response_b: Tokens, budget: int, encode_marker: Callable[[int], list[int]]
) -> tuple[list[int], list[int], list[int]]:
    """The three parts of a pair with at most `budget` tokens together.

    Raises:
        DataError: no room for a token of each part: the wrapper alone fills max_length_tokens.
    """
    parts = (prompt, response_a, response_b)
    if budget < len(parts):
        raise DataError(f"max_length_tokens leaves {budget} tokens for prompt and responses; raise it")
    lengths = [len(part.ids) for part in parts]
    tokenization.count_fitted(is_cut=sum(lengths) > budget)
    if sum(lengths) <= budget:
        return prompt.ids, response_a.ids, response_b.ids
    allowed = split_budget(lengths, budget, (PROMPT_SHARE, RESPONSE_SHARE, RESPONSE_SHARE))
    first, second, third = (cut_middle(part, one, encode_marker) for part, one in zip(parts, allowed, strict=True))
    return first, second, third
