"""GradCache (Gao et al. 2021): a contrastive step whose memory does not grow with its batch.

All texts are embedded chunk by chunk without a graph; the loss of all embeddings gives the gradient of each; then every
chunk is embedded again, with a graph, and backpropagates its embeddings' gradients. Dropout is replayed: each chunk
starts from the random state that it had the first time. No gradient checkpointing is needed beside it.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from podium.batching.padding import by_tokens
from podium.losses import Loss
from podium.training import Batch, MicroStep

Texts = dict[str, Tensor]
"""Right-padded {"input_ids": (B, T), "attention_mask": (B, T)}."""
EmbeddingLoss = Callable[[Tensor, Tensor, Batch], Loss]
"""(query embeddings, document embeddings, batch) -> loss; gathers other processes' documents differentiably."""


def chunks(texts: Texts, max_tokens: int) -> list[tuple[list[int], Texts]]:
    """Rows of similar length in chunks of at most max_tokens tokens, each cut to its own width."""
    lengths = texts["attention_mask"].sum(1).tolist()
    made = []
    for rows in by_tokens(lengths, max_tokens):
        width = max(lengths[row] for row in rows)
        made.append((rows, {name: tensor[rows, :width] for name, tensor in texts.items()}))
    return made


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def cached(loss: EmbeddingLoss, accelerator: Any, max_tokens: int) -> MicroStep:
    """The micro-step with cached gradients.

    Args:
        loss: of all embeddings of the batch.
        accelerator: of the run.
        max_tokens: tokens of one pass with a graph; what memory depends on, and nothing else does.

    Returns:
        a micro-step for batches with "query" and "document" texts; its gradients are those of `training.plain` on an
        Embedder with the same max_tokens, dropout included.
    """

    def micro_step(model: nn.Module, batch: Batch, scale: float) -> tuple[float, dict[str, float]]:
        parts = [(kind, *chunk) for kind in ("query", "document") for chunk in chunks(batch[kind], max_tokens)]
        device = batch["query"]["input_ids"].device
        states, vectors = [], []
        kept: Tensor | None = None
        for number, (_, _, texts) in enumerate(parts):
            states.append(_random_state(device))
            # the last chunk may keep its graph; under DDP a forward with a graph has to be followed by its backward
            keep = number + 1 == len(parts) and accelerator.num_processes == 1
            with contextlib.nullcontext() if keep else torch.no_grad():
                (vectors_BD,) = model(texts)
            kept = vectors_BD if keep else None
            vectors.append(vectors_BD.detach())
        after = _random_state(device)

        inputs = {}
        for kind in ("query", "document"):
            rows = [row for name, rows, _ in parts if name == kind for row in rows]
            joined = torch.cat([one for (name, _, _), one in zip(parts, vectors, strict=True) if name == kind])
            order = torch.tensor(rows, device=device).argsort()
            inputs[kind] = joined[order].requires_grad_()
        loss_sum, _, metrics = loss(inputs["query"], inputs["document"], batch)
        (loss_sum * scale).backward()

        # the last chunk first: its graph is gone before another is built
        for number, (kind, rows, texts) in reversed(list(enumerate(parts))):
            gradient_BD = inputs[kind].grad[rows]  # type: ignore[index]
            with accelerator.no_sync(model) if number else contextlib.nullcontext():
                if kept is not None:
                    vectors_BD, kept = kept, None
                else:
                    _restore(states[number], device)
                    (vectors_BD,) = model(texts)
                accelerator.backward((vectors_BD * gradient_BD).sum())
        _restore(after, device)
        return loss_sum.item(), metrics

    return micro_step
