"""Inference engines behind one interface: transformers on any machine, vLLM where it is installed."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Name = Literal["transformers", "vllm"]


def load_scorer(name: Name, checkpoint: str | Path, device: Any, max_length_tokens: int) -> Any:
    """What `ranking.score` takes as its model: a LabelScorer, or vLLM with the same weights.

    Args:
        name: which engine.
        checkpoint: folder of a ranker.
        device: of transformers; vLLM finds its own.
        max_length_tokens: of the longest prompt.

    Raises:
        PrerequisiteError: vLLM is not installed.
        DataError: vLLM and an adapter folder.
    """
    if name == "vllm":
        from podium.engines import vllm

        return vllm.load(checkpoint, max_length_tokens + 1)
    from podium import modeling

    backbone, _ = modeling.load_checkpoint(checkpoint, "causal_lm")
    return modeling.LabelScorer(backbone).to(device).eval()


def load_generator(
    name: Name, checkpoint: str | Path, tokenizer: Any, device: Any, max_length_tokens: int, max_tokens_per_batch: int
) -> Callable[..., list[Any]]:
    """`transformers.generate` less its first arguments, by either engine; errors as `load_scorer`.

    Args:
        name: which engine.
        checkpoint: folder of a causal language model.
        tokenizer: of the checkpoint.
        device: of transformers; vLLM finds its own.
        max_length_tokens: of prompt and completion together.
        max_tokens_per_batch: of transformers; vLLM batches by itself.
    """
    if name == "vllm":
        from podium.engines import vllm

        return functools.partial(vllm.generate, vllm.load(checkpoint, max_length_tokens))
    from podium import modeling
    from podium.engines import transformers

    model, _ = modeling.load_checkpoint(checkpoint, "causal_lm")
    model.to(device)
    return functools.partial(transformers.generate, model, tokenizer, max_tokens_per_batch=max_tokens_per_batch)
