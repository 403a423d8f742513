"""Generation and label log-probabilities with vLLM, in an environment that has it (requirements-vllm.txt).

vLLM batches continuously and keeps the keys of prefixes that prompts share, so prompts go to it whole, a query's
candidates one after another. It reads full, merged and quantised checkpoints.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from podium import modeling, rng
from podium.engines.transformers import Generation, progress
from podium.errors import PrerequisiteError

INSTALL = "python3 -m venv .venv-vllm && .venv-vllm/bin/pip install -r requirements-vllm.txt"
PART = 1024
"""Prompts that go to vLLM together: between two of them finished completions are saved and progress is shown."""


@dataclass(frozen=True)
class Engine:
    """A loaded model; `ranking` takes it in place of a LabelScorer."""

    llm: Any
    packing_refusal: str = "vLLM shares prefixes by itself"
    """Prompts are handed over one by one, not packed into rows."""

    def label_logits(self, prompts: list[list[int]], label_ids: list[int], quiet: bool = False) -> np.ndarray:
        """(N, L) log-probabilities of the label tokens right after each prompt; their differences are the logits'."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=label_ids)
        with progress(len(prompts), "score", "prompt", quiet) as bar:
            found = [one.logprobs[0] for part in _parts(prompts) for one in _ask(self.llm, part, asked, bar)]
        return np.array([[told[label].logprob for label in label_ids] for told in found]).reshape(-1, len(label_ids))


def load(checkpoint: str | Path, max_length_tokens: int, dtype: str | None = None) -> Engine:
    """Start vLLM with the weights of a checkpoint folder.

    Args:
        checkpoint: full, merged or quantised.
        max_length_tokens: of prompt and completion together.
        dtype: float32 | bfloat16 | float16; None takes `modeling.default_dtype`, as transformers does here.

    Raises:
        PrerequisiteError: vLLM is not installed here.
        DataError: an adapter folder, or more tokens than the model has positions.
    """
    modeling.refuse_adapter(checkpoint)
    if importlib.util.find_spec("vllm") is None:
        raise PrerequisiteError(
            f"engine=vllm needs vLLM, in an environment of its own: {INSTALL}; or engine=transformers"
        )
    modeling.check_positions(checkpoint, max_length_tokens)
    from vllm import LLM

    chosen = dtype or str(modeling.default_dtype()).removeprefix("torch.")
    return Engine(
        LLM(
            str(checkpoint), dtype=chosen, max_model_len=max_length_tokens, enable_prefix_caching=True, seed=0,
            enforce_eager=not torch.cuda.is_available(),
        )
    )  # fmt: skip


def generate(
    engine: Engine,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop: list[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    skip: frozenset[int] = frozenset(),
    on_batch: Callable[[list[int], list[Generation]], None] | None = None,
    quiet: bool = False,
) -> list[Generation | None]:
    """Complete token-id prompts; arguments and result as `transformers.generate`.

    Greedy completions are those of transformers up to rounding; sampled ones depend on (seed, index) alone.
    """
    from vllm import SamplingParams

    eos = engine.llm.get_tokenizer().eos_token_id
    results: list[Generation | None] = [None] * len(prompts)
    todo = [at for at in range(len(prompts)) if at not in skip]
    with progress(len(todo), "generate", "row", quiet) as bar:
        for part in _parts(todo):
            asked = [
                SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=stop,
                               seed=rng.torch_seed(seed, "generate", at) if temperature else None)
                for at in part
            ]  # fmt: skip
            finished = []
            for one in _ask(engine.llm, [prompts[at] for at in part], asked, bar):
                count = len(one.token_ids) - (list(one.token_ids[-1:]) == [eos])
                finished.append(Generation(one.text.strip(), one.finish_reason, count))
            for at, completion in zip(part, finished, strict=True):
                results[at] = completion
            if on_batch is not None:
                on_batch(part, finished)
    return results


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    """Consecutive parts of at most PART items."""
    for start in range(0, len(items), PART):
        yield items[start : start + PART]


def _ask(llm: Any, prompts: list[list[int]], asked: Any, bar: Any) -> list[Any]:
    """The single completion of each prompt."""
    # vLLM's own bar divides by its time, which is 0 where bars are switched off
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
    bar.update(len(prompts))
    return [one.outputs[0] for one in outputs]
