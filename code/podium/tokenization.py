"""Tokenizers: loading, label tokens, and truncation to an exact budget that never cuts the answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from podium.errors import DataError, MissingFileError

CUT = " … "
prompts_fitted = prompts_cut = 0
"""How many prompts were fitted into their budget in this process, and how many lost text; reported by dry runs."""


def count_fitted(is_cut: bool) -> None:
    """Note that a prompt was fitted into its budget, and whether text was cut for it."""
    global prompts_fitted, prompts_cut
    prompts_fitted += 1
    prompts_cut += is_cut


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or Hub id; make sure that it has pad and end-of-text tokens.

    Raises:
        MissingFileError: no such folder, and not in the Hub or its cache.
        DataError: unreadable files, no fast tokenizer, or one without an end-of-text token.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
    except OSError as error:
        first = str(error).splitlines()[0]
        raise MissingFileError(
            f"tokenizer of {source}: no such folder, and not in the Hub or its cache ({first}); check the name, or run"
            f" `hf download {source}` on a machine with network"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"tokenizer of {source} cannot be read ({reason[:200]}); get or produce it again") from None
    if not tokenizer.is_fast:
        raise DataError(
            f"{source}: no fast tokenizer; offsets are needed for exact truncation (is tokenizer.json there?)"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DataError(f"{source}: the tokenizer has neither pad nor end-of-text token; set one in its config")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, no special tokens added."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []  # type: ignore[return-value]


def special_prefix_suffix(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Special tokens the tokenizer puts before and after one text, e.g. ([CLS], [SEP]) or (<s>, [])."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    marked: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]  # type: ignore[assignment]
    at = next(at for at in range(len(marked)) if marked[at : at + len(bare)] == bare)
    return marked[:at], marked[at + len(bare) :]


def label_token_ids(tokenizer: PreTrainedTokenizerFast, labels: list[str]) -> list[int]:
    """The single token of each label text.

    Raises:
        DataError: a label is not exactly one token, or two labels share one.
    """
    ids = encode(tokenizer, labels)
    split = [label for label, tokens in zip(labels, ids, strict=True) if len(tokens) != 1]
    if split:
        raise DataError(f"label texts {split} are not single tokens of this tokenizer; choose other label texts")
    flat = [tokens[0] for tokens in ids]
    if len(set(flat)) != len(flat):
        raise DataError(f"label texts {labels} do not have distinct tokens")
    return flat


def longer_than(tokenizer: PreTrainedTokenizerFast, texts: list[str], budgets: list[int]) -> list[int]:
    """Positions of the texts that have more tokens than their budget."""
    # a token covers at least one byte, so short texts need no count
    asked = [at for at, text in enumerate(texts) if len(text.encode()) > budgets[at]]
    counted = encode(tokenizer, [texts[at] for at in asked])
    return [at for at, ids in zip(asked, counted, strict=True) if len(ids) > budgets[at]]


def fit(tokenizer: PreTrainedTokenizerFast, render: Callable[[str], str], question: str, budget: int) -> str:
    """The longest middle-cut of `question` for which `render(question)` has at most `budget` tokens.

    Only the question is ever cut: two thirds of what is kept come from its start, one third from its end, joined by
    an ellipsis. Cuts fall between tokens at character offsets, so no character is broken and nothing is decoded.

    Args:
        tokenizer: counts tokens of the rendered text.
        render: puts the question into the full prompt.
        question: text that may be cut.
        budget: tokens the rendered prompt may have, special tokens not counted.

    Returns:
        the question to render.

    Raises:
        DataError: the prompt exceeds the budget even without the question.
    """

    def length(text: str) -> int:
        return len(encode(tokenizer, [render(text)])[0])

    # a token covers at least one byte, so a short text cannot exceed the budget: skip the count
    if len(render(question).encode()) <= budget or length(question) <= budget:
        count_fitted(is_cut=False)
        return question
    count_fitted(is_cut=True)
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def cut(kept: int) -> str:
        if kept == 0:
            return CUT
        head = kept - kept // 3
        tail = kept // 3
        return question[: offsets[head - 1][1]] + CUT + (question[offsets[len(offsets) - tail][0] :] if tail else "")

    if length(cut(0)) > budget:
        raise DataError(
            f"a prompt needs {length(cut(0))} tokens without its question, more than max_length_tokens={budget}; "
            f"raise max_length_tokens (question: {question[:60]!r})"
        )
    low, high = 0, len(offsets) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(cut(middle)) <= budget else (low, middle - 1)
    return cut(low)
