"""Generation and embedding with transformers: the engine that runs on any machine."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast

from podium import rng
from podium.batching.padding import by_length
from podium.modeling import Embedder


@dataclass(frozen=True)
class Generation:
    """One completion: text before the stop string, why it ended (stop | length), and how many tokens it took."""

    text: str
    finish_reason: str
    n_tokens: int


def progress(total: int, what: str, unit: str, quiet: bool = False) -> tqdm:
    """A progress bar with rate and ETA; updated rarely where it lands in a log file."""
    interval = 0.5 if sys.stderr.isatty() else 10
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval, maxinterval=2 * interval, disable=quiet)


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    max_tokens_per_batch: int,
    stop: list[str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    skip: frozenset[int] = frozenset(),
    on_batch: Callable[[list[int], list[Generation]], None] | None = None,
    quiet: bool = False,
) -> list[Generation | None]:
    """Complete token-id prompts, in batches of similar length.

    Args:
        model: a causal LM of transformers (PEFT-wrapped or not), in eval mode.
        tokenizer: decodes; its padding side does not matter.
        prompts: token ids.
        max_new_tokens: limit of each completion.
        max_tokens_per_batch: padded prompt tokens plus room for the completions.
        stop: generation ends at any of these strings, which are cut off.
        temperature: 0 is greedy.
        top_p: nucleus, when sampling.
        seed: of the sampling, with the batch's first index: a batch's texts do not depend on those before it.
        skip: indices that are done already; a batch is left out when all of its indices are.
        on_batch: receives indices and completions of every finished batch (to save partial work).
        quiet: no progress bar.

    Returns:
        completions in the order of `prompts`, None where skipped.
    """
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=stop,
    )
    results: list[Generation | None] = [None] * len(prompts)
    chunks = list(by_length([len(ids) + max_new_tokens for ids in prompts], max_tokens_per_batch))
    with progress(len(prompts), "generate", "row", quiet) as bar:
        for chunk in chunks:
            if skip.issuperset(chunk):
                bar.update(len(chunk))
                continue
            torch.manual_seed(rng.torch_seed(seed, "generate", chunk[0]))
            width = max(len(prompts[index]) for index in chunk)
            ids_BT = torch.full((len(chunk), width), tokenizer.pad_token_id, dtype=torch.long)  # type: ignore[arg-type]
            mask_BT = torch.zeros((len(chunk), width), dtype=torch.long)
            for row, index in enumerate(chunk):
                ids_BT[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask_BT[row, width - len(prompts[index]) :] = 1
            output_BT = model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                generation_config=config,
                tokenizer=tokenizer if stop else None,
            )[:, width:].tolist()
            finished = [_finish(tokenizer, tokens, stop or [], max_new_tokens) for tokens in output_BT]
            for index, completion in zip(chunk, finished, strict=True):
                results[index] = completion
            if on_batch is not None:
                on_batch(chunk, finished)
            bar.update(len(chunk))
    return results


def _finish(tokenizer: PreTrainedTokenizerFast, tokens: list[int], stop: list[str], limit: int) -> Generation:
    """Cut at end-of-text or the first stop string."""
    count, reason = len(tokens), "length"
    if tokenizer.eos_token_id in tokens:
        count, reason = tokens.index(tokenizer.eos_token_id), "stop"
    text: str = tokenizer.decode(tokens[:count], skip_special_tokens=True)  # type: ignore[assignment]
    for ending in stop:
        if ending in text:
            text, reason = text[: text.index(ending)], "stop"
    return Generation(text.strip(), reason, min(count, limit))


@torch.inference_mode()
def embed(
    embedder: nn.Module,
    texts: list[str],
    tokenize: Callable[[list[str]], dict[str, torch.Tensor]],
    max_tokens_per_batch: int,
    what: str = "embed",
    quiet: bool = False,
) -> torch.Tensor:
    """(N, D) embeddings of the texts; each distinct text is encoded once, in batches of similar length."""
    unique = list(dict.fromkeys(texts))
    device = next(embedder.parameters()).device
    lengths = tokenize(unique)["attention_mask"].sum(1).tolist() if unique else []
    parts: list[torch.Tensor | None] = [None] * len(unique)
    with progress(len(unique), what, "text", quiet) as bar:
        for chunk in by_length(lengths, max_tokens_per_batch):
            batch = {key: value.to(device) for key, value in tokenize([unique[i] for i in chunk]).items()}
            assert_embedder: Embedder = embedder  # type: ignore[assignment]
            for index, vector in zip(chunk, assert_embedder(batch)[0].cpu(), strict=True):
                parts[index] = vector
            bar.update(len(chunk))
    position = {text: index for index, text in enumerate(unique)}
    stacked = torch.stack([part for part in parts if part is not None])
    return stacked[[position[text] for text in texts]]
