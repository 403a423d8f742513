"""Ranking the catalogue for queries with a trained embedder: evaluation, mining and interactive use share it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from podium import prompts, search
from podium.batching import retrieval
from podium.batching.queries import QueryRows
from podium.engines import transformers as engine


def embed_queries(
    embedder: Any,
    rows: QueryRows,
    tokenizer: PreTrainedTokenizerFast,
    style: prompts.Style,
    max_length_tokens: int,
    max_tokens_per_batch: int,
    *,
    use_rationale: bool,
    quiet: bool = False,
) -> torch.Tensor:
    """(Q, D) embeddings of the rows; with rationales, the mean direction over each row's samples."""
    texts, owner = [], []
    for index in range(len(rows)):
        written: Sequence[str | None] = (rows.rationales[index] or [None]) if use_rationale else [None]
        for rationale in written:
            texts.append(retrieval.query_text(rows, index, tokenizer, style, max_length_tokens, rationale=rationale))
            owner.append(index)
    vectors_ND = engine.embed(
        embedder,
        texts,
        lambda part: retrieval.tokenize_queries(tokenizer, part),
        max_tokens_per_batch,
        "embed queries",
        quiet,
    )
    sums_QD = torch.zeros(len(rows), vectors_ND.shape[1]).index_add_(0, torch.tensor(owner), vectors_ND)
    return sums_QD / torch.bincount(torch.tensor(owner), minlength=len(rows))[:, None]


def embed_catalogue(
    embedder: Any,
    names: dict[int, str],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens_per_batch: int,
    quiet: bool = False,
) -> torch.Tensor:
    """(M, D) embeddings of the catalogue, in the order of `names`."""
    return engine.embed(
        embedder,
        list(names.values()),
        lambda part: retrieval.tokenize_documents(tokenizer, part),
        max_tokens_per_batch,
        "embed names",
        quiet,
    )


def rank(
    embedder: Any,
    rows: QueryRows,
    tokenizer: PreTrainedTokenizerFast,
    style: prompts.Style,
    max_length_tokens: int,
    *,
    views: Sequence[str],
    top_k: int,
    max_tokens_per_batch: int = 32768,
    source: str = "retriever",
    quiet: bool = False,
) -> pd.DataFrame:
    """Ranked candidates of every row: cosine similarity, summed over the views.

    Args:
        embedder: an Embedder in eval mode.
        rows: queries and catalogue.
        tokenizer: the checkpoint's.
        style: prompt style of the checkpoint.
        max_length_tokens: of the checkpoint.
        views: "plain" (query alone), "rationale" (query with its rationales), or both.
        top_k: candidates a query.
        max_tokens_per_batch: padded tokens of one forward.
        source: written to the table.
        quiet: no progress bars.

    Returns:
        `contracts.CANDIDATES` rows.
    """
    documents = rows.documents()
    retrieval.check_documents(documents, tokenizer, max_length_tokens)
    document_MD = embed_catalogue(embedder, documents, tokenizer, max_tokens_per_batch, quiet)
    # the sum of two views' scores is the score of the summed embeddings
    query_QD = torch.stack(
        [
            embed_queries(
                embedder,
                rows,
                tokenizer,
                style,
                max_length_tokens,
                max_tokens_per_batch,
                use_rationale=view == "rationale",
                quiet=quiet,
            )
            for view in views
        ]
    ).sum(0)
    scores, columns = search.top_k(query_QD, document_MD, top_k)
    return search.candidates_frame(rows.query_id, list(rows.names), scores, columns, source)
