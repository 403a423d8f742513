"""Exact top-k by matrix product, and the candidates table it fills."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

MIN_QUERIES = 64
"""Queries scored at once at the least; memory is bounded by that many rows of scores."""


def top_k(query_QD: Tensor, document_MD: Tensor, k: int, max_scores: int = 2**22) -> tuple[Tensor, Tensor]:
    """Scores and columns of the k best documents of each query, best first.

    The k best documents are in the k groups with the best maxima, whatever the groups: most scores are only compared
    with their group's, which is fast, and few are sorted, which is slow.

    Args:
        query_QD: query embeddings.
        document_MD: document embeddings.
        k: at most M.
        max_scores: scores held at once, where that is at least MIN_QUERIES queries; small enough for the processor's caches.

    Returns:
        (Q, k) scores and (Q, k) int64 columns.
    """
    count = len(document_MD)
    k = min(k, count)
    size = int((count / k) ** 0.5) if k else 1
    # few queries at a time would read a large corpus from memory again and again
    block = max(MIN_QUERIES, max_scores // max(1, count))
    parts = [_best(rows @ document_MD.T, k, size) for rows in query_QD.split(block)]
    return torch.cat([values for values, _ in parts]), torch.cat([columns for _, columns in parts])


def _best(score_QM: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along the last dimension by way of groups of `size` columns."""
    groups = score_QM.shape[1] // size
    if size < 2 or groups <= k:
        values, columns = torch.topk(score_QM, k, dim=1)
        return values, columns
    # group g holds columns g, g + groups, g + 2 groups …; the few behind the last whole round stand for themselves
    rounds_QsG = score_QM[:, : groups * size].unflatten(1, (size, groups))
    chosen_Qk = torch.topk(rounds_QsG.amax(1), k, dim=1, sorted=False).indices
    start_s = torch.arange(size, device=score_QM.device) * groups
    rest = torch.arange(groups * size, score_QM.shape[1], device=score_QM.device)
    column_QC = torch.cat(
        [(chosen_Qk[:, None, :] + start_s[:, None]).flatten(1), rest.expand(len(score_QM), -1)], dim=1
    )
    values, at = torch.topk(score_QM.gather(1, column_QC), k, dim=1)
    return values, column_QC.gather(1, at)


def candidates_frame(
    query_ids: list[str], misconception_ids: list[int] | np.ndarray, scores: Any, columns: Any, source: str
) -> pd.DataFrame:
    """Top-k as a `contracts.CANDIDATES` frame.

    Args:
        query_ids: Q ids.
        misconception_ids: M ids; `columns` index into them.
        scores: (Q, k), best first.
        columns: (Q, k).
        source: what ranked.
    """
    columns, scores = np.asarray(columns), np.asarray(scores, dtype=float)
    count, k = columns.shape
    return pd.DataFrame(
        {
            "query_id": np.repeat(np.asarray(query_ids, dtype=object), k),
            "rank": np.tile(np.arange(1, k + 1), count),
            "misconception_id": np.asarray(misconception_ids, dtype=np.int64)[columns.ravel()],
            "score": scores.ravel(),
            "source": source,
        }
    )
