"""Collectives that carry gradients."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def repeated(ids_M: Tensor) -> Tensor:
    """(M,) True where an earlier column holds the same id: two processes may bring the same document."""
    equal_MM = ids_M[:, None] == ids_M[None, :]
    return equal_MM.tril(diagonal=-1).any(dim=1)


def gather_documents(accelerator: Any, document_MD: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor, int]:
    """All processes' documents, differentiable, and where the own ones start.

    The backward of the gather sums every process's gradient for a document, so the documents of one process learn from
    the queries of all. Uneven counts are padded for the collective and the padding is cut out again.

    Args:
        accelerator: of the run.
        document_MD: own embeddings.
        ids_M: own misconception ids.

    Returns:
        (ΣM, D) embeddings, (ΣM,) ids, offset of the own ones.
    """
    if accelerator.num_processes == 1 or isinstance(document_MD, FakeTensor):  # a dry run's have nothing to send
        return document_MD, ids_M, 0
    from torch.distributed.nn.functional import all_gather

    counts = accelerator.gather(torch.tensor([len(ids_M)], device=ids_M.device)).tolist()
    widest = max(counts)
    padded_MD = torch.nn.functional.pad(document_MD, (0, 0, 0, widest - len(ids_M)))
    padded_M = torch.nn.functional.pad(ids_M, (0, widest - len(ids_M)), value=-1)
    parts = all_gather(padded_MD)
    id_parts = accelerator.gather(padded_M).split(widest)
    kept = [part[:count] for part, count in zip(parts, counts, strict=True)]
    kept_ids = [part[:count] for part, count in zip(id_parts, counts, strict=True)]
    return torch.cat(kept), torch.cat(kept_ids), sum(counts[: accelerator.process_index])
