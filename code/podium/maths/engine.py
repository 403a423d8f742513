"""The one interface through which the evaluator generates, and its transformers engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podium.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How to generate: 0 is greedy; `stop` strings end a text and are cut off."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


Generate = Callable[[list[str], Sampling], list[str]]
"""Texts for prompts, in their order."""


@dataclass(frozen=True)
class Engine:
    """A model behind three functions, so that the evaluator knows no library."""

    generate: Generate
    count_tokens: Callable[[list[str]], list[int]]
    context_tokens: int | None
    """Tokens of prompt and completion together; None if the model states no limit."""
    render_chat: Callable[[str], str] | None = None
    """An instruction in the model's own chat template; None if it has none."""


def load_transformers(source: str, device: str, max_tokens_per_batch: int) -> Engine:
    """A Hub model or checkpoint folder, run by transformers.

    Args:
        source: Hub id or folder (full, merged or adapter).
        device: "auto" or "cpu".
        max_tokens_per_batch: padded prompts plus room for the completions.

    Raises:
        MissingFileError: no such model.
        DataError: an unreadable checkpoint.
    """
    import torch

    from podium import modeling, tokenization
    from podium.engines import transformers as engine

    tokenizer = tokenization.load_tokenizer(source)
    is_ours = (Path(source) / "meta.json").is_file()
    loaded: Any = (
        modeling.load_checkpoint(source, "causal_lm")[0] if is_ours else modeling.load_backbone(source, "causal_lm")
    )
    model = loaded.eval().to("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    prefix, _ = tokenization.special_prefix_suffix(tokenizer)
    has_template = bool(tokenizer.chat_template)

    opening = str(tokenizer.decode(prefix)) if prefix else ""

    def encode(prompts: list[str]) -> list[list[int]]:
        # a chat template writes its own special tokens
        marked = [prompt.startswith(opening) for prompt in prompts]
        return [
            ids if own else [*prefix, *ids]
            for own, ids in zip(marked, tokenization.encode(tokenizer, prompts), strict=True)
        ]

    def generate(prompts: list[str], sampling: Sampling) -> list[str]:
        done = engine.generate(
            model,
            tokenizer,
            encode(prompts),
            max_new_tokens=sampling.max_new_tokens,
            max_tokens_per_batch=max_tokens_per_batch,
            stop=list(sampling.stop) or None,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        absent = [index for index, one in enumerate(done) if one is None]
        if absent:
            raise DataError(f"the engine left out prompt {absent[:5]} ({len(absent)} in all)")
        return [one.text for one in done if one is not None]

    def render_chat(instruction: str) -> str:
        message = [{"role": "user", "content": instruction}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    return Engine(
        generate,
        lambda prompts: [len(ids) for ids in encode(prompts)],
        getattr(model.config, "max_position_embeddings", None),
        render_chat if has_template else None,
    )
