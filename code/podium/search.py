"""Exact top-k by matrix product, and the candidates table it fills."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def top_k(query_QD: Tensor, document_MD: Tensor, k: int, block: int = 4096) -> tuple[Tensor, Tensor]:
    """Scores and columns of the k best documents of each query, best first.

    Args:
        query_QD: query embeddings.
        document_MD: document embeddings.
        k: at most M.
        block: queries scored at once; bounds memory to block × M.

    Returns:
        (Q, k) scores and (Q, k) int64 columns.
    """
    k = min(k, len(document_MD))
    parts = [torch.topk(rows @ document_MD.T, k, dim=1) for rows in query_QD.split(block)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


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
