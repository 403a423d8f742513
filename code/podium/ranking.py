"""Scoring candidates with trained rankers, and reordering lists by scores."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from podium import contracts, demos
from podium.batching.groups import (
    MIN_TOKEN_RATIO,
    PackedRow,
    PointwiseRenderer,
    chunks_of,
    collate_packed,
    pack,
    split_documents,
)
from podium.batching.lists import ListRenderer
from podium.batching.queries import QueryRows
from podium.contracts import CheckpointMeta
from podium.engines import vllm
from podium.engines.transformers import progress
from podium.errors import DataError, sample
from podium.training import to_device

Lists = list[tuple[int, list[int]]]
"""(row index, candidates best first) pairs."""


def read_candidates(folder: str | Path) -> pd.DataFrame:
    """Ranked candidates of a folder: those of its groups where it holds groups, gold ones that were never ranked last.

    So a teacher scores exactly what a student's groups will ask it for.
    """
    if not (Path(folder) / "groups.parquet").is_file():
        return contracts.read_table(Path(folder) / "candidates.parquet", contracts.CANDIDATES)
    groups = contracts.read_table(Path(folder) / "groups.parquet", contracts.GROUPS)
    groups = groups.sort_values(["query_id", "rank"], na_position="last", kind="stable").reset_index(drop=True)
    rank = groups.groupby("query_id").cumcount() + 1
    return groups[["query_id"]].assign(
        rank=rank, misconception_id=groups["misconception_id"], score=-rank.astype(float), source="groups"
    )


def candidate_lists(candidates: pd.DataFrame, query_ids: list[str], top_k: int) -> Lists:
    """The first top_k candidates of each query, in the order of `query_ids`.

    Raises:
        DataError: a query has no candidates.
    """
    ordered = candidates[candidates["rank"] <= top_k].sort_values(["query_id", "rank"])
    lists = ordered.groupby("query_id")["misconception_id"].agg(list).to_dict()
    if absent := [query for query in query_ids if query not in lists]:
        raise DataError(f"no candidates for query {sample(absent)}; mine candidates for these tables first")
    return [(index, [int(one) for one in lists[query]]) for index, query in enumerate(query_ids)]


def group_scores(label_logits_N2: Tensor, valid_GK: Tensor) -> Tensor:
    """(G, K) logit(Yes) − logit(No); −inf where not valid."""
    empty_GK = torch.full(valid_GK.shape, float("-inf"), device=valid_GK.device)
    return empty_GK.masked_scatter(valid_GK, label_logits_N2[:, 0] - label_logits_N2[:, 1])


def _views(rationales: list[str], use_rationale: bool) -> list[str | None]:
    """What a query is read with: every one of its rationales, or none."""
    return list(rationales) if use_rationale and rationales else [None]


@torch.inference_mode()
def label_logits(
    model: Any, rows: list[PackedRow], label_ids: list[int], pad_id: int | None, max_tokens: int, quiet: bool
) -> list[np.ndarray]:
    """(n, L) label logits, up to a constant a prompt, after each of the n prompts of every row.

    Args:
        model: LabelScorer in eval mode, or `engines.vllm.Engine`.
        rows: packed only if the model takes packed rows.
        label_ids: tokens that are read.
        pad_id: pads prompts that go one a row.
        max_tokens: of one forward.
        quiet: no progress bar.
    """
    counts = np.cumsum([len(row.last) for row in rows])[:-1]
    if isinstance(model, vllm.Engine):
        prompts = [prompt for row in rows for prompt in split_documents(row.tokens, row.groups)]
        return np.split(model.label_logits(prompts, label_ids, quiet), counts)
    device = next(model.parameters()).device
    packing = model.packing_refusal is None
    labels = torch.tensor(label_ids, device=device)
    found: dict[int, np.ndarray] = {}
    with progress(len(rows), "score", "row", quiet) as bar:
        for chunk in chunks_of(rows, packing, max_tokens):
            batch = to_device(collate_packed([rows[at] for at in chunk], None if packing else pad_id), device)
            logits, _ = model(**batch, label_ids=labels)
            ends = np.cumsum([len(rows[at].last) for at in chunk])[:-1]
            found |= dict(zip(chunk, np.split(logits.cpu().double().numpy(), ends), strict=True))
            bar.update(len(chunk))
    return [found[at] for at in range(len(rows))]


def score_pointwise(
    model: Any,
    renderer: PointwiseRenderer,
    lists: Lists,
    label_ids: list[int],
    *,
    use_rationale: bool,
    max_tokens_per_batch: int,
    quiet: bool = False,
) -> list[np.ndarray]:
    """logit(Yes) − logit(No) of every candidate, averaged over the query's rationales; context computed once a query.

    Args:
        model: LabelScorer in eval mode, or `engines.vllm.Engine`.
        renderer: of the checkpoint's tokenizer, style and length.
        lists: what to score.
        label_ids: tokens of Yes and No.
        use_rationale: read the query with its generated rationales.
        max_tokens_per_batch: tokens of one forward.
        quiet: no progress bar.

    Returns:
        one (K,) array a list, in its order.
    """
    renderer = dataclasses.replace(renderer, packing=model.packing_refusal is None)
    rows: list[PackedRow] = []
    owner: list[int] = []
    for number, (index, candidates) in enumerate(lists):
        for rationale in _views(renderer.rows.rationales[index], use_rationale):
            rows.append(renderer.packed(index, candidates, rationale=rationale))
            owner.append(number)
    sums = [np.zeros(len(candidates)) for _, candidates in lists]
    pad_id: Any = renderer.tokenizer.pad_token_id
    found = label_logits(model, rows, label_ids, pad_id, max_tokens_per_batch, quiet)
    for number, logits_KL in zip(owner, found, strict=True):
        sums[number] += logits_KL[:, 0] - logits_KL[:, 1]
    counts = np.bincount(owner, minlength=len(lists))
    return [total / count for total, count in zip(sums, counts, strict=True)]


def score_listwise(
    model: Any,
    renderer: ListRenderer,
    lists: Lists,
    letter_ids: list[int],
    *,
    use_rationale: bool,
    max_tokens_per_batch: int,
    quiet: bool = False,
) -> list[np.ndarray]:
    """Log-probability of every option's letter, averaged over both orders of the list and the query's rationales.

    Args and returns as in `score_pointwise`; letter_ids holds a token for each position of the longest list.
    """
    min_ratio = MIN_TOKEN_RATIO if model.packing_refusal is None else math.inf
    rows: list[PackedRow] = []
    owner: list[int] = []
    for number, (index, candidates) in enumerate(lists):
        for rationale in _views(renderer.rows.rationales[index], use_rationale):
            both = [renderer.row(index, order, rationale=rationale).tokens for order in (candidates, candidates[::-1])]
            # the two orders share the context where that pays
            rows.append(pack(both, [(0, 0), (0, 0)], min_ratio))
            owner.append(number)
    sums = [np.zeros(len(candidates)) for _, candidates in lists]
    pad_id: Any = renderer.tokenizer.pad_token_id
    found = label_logits(model, rows, letter_ids, pad_id, max_tokens_per_batch, quiet)
    for number, (forward, backward) in zip(owner, found, strict=True):
        count = len(sums[number])
        sums[number] += log_softmax(forward[:count]) + log_softmax(backward[:count])[::-1]
    counts = 2 * np.bincount(owner, minlength=len(lists))
    return [total / count for total, count in zip(sums, counts, strict=True)]


def score(
    model: Any,
    checkpoint: str | Path,
    meta: CheckpointMeta,
    tokenizer: PreTrainedTokenizerFast,
    rows: QueryRows,
    lists: Lists,
    *,
    use_rationale: bool,
    max_tokens_per_batch: int,
    quiet: bool = False,
) -> list[np.ndarray]:
    """Scores as a checkpoint's kind gives them, with the prompts, examples and label tokens that it was trained with.

    Args:
        model: LabelScorer with the checkpoint's weights, in eval mode, or `engines.vllm.Engine`.
        checkpoint: folder of a pointwise or listwise ranker, for its examples.
        meta: of the checkpoint.
        tokenizer: of the checkpoint.
        rows: queries with their catalogue.
        lists: what to score.
        use_rationale: read the queries with their generated rationales.
        max_tokens_per_batch: tokens of one forward.
        quiet: no progress bar.

    Returns:
        one (K,) array a list, in its order.
    """
    style: Any = meta.prompt_style
    pool = demos.read_pool(checkpoint, meta, rows.names)
    given: Any = {"use_rationale": use_rationale, "max_tokens_per_batch": max_tokens_per_batch, "quiet": quiet}
    if meta.stage == "pointwise":
        pairs = PointwiseRenderer(rows, tokenizer, style, meta.max_length_tokens, demos=pool)
        return score_pointwise(model, pairs, lists, meta.label_token_ids, **given)
    options = ListRenderer(rows, tokenizer, style, meta.max_length_tokens, demos=pool)
    return score_listwise(model, options, lists, meta.label_token_ids, **given)


def scores_frame(lists: Lists, scores: Sequence[np.ndarray], query_ids: list[str], model: str) -> pd.DataFrame:
    """Scores as `contracts.SCORES` rows."""
    return pd.DataFrame(
        {
            "query_id": [query_ids[index] for index, candidates in lists for _ in candidates],
            "misconception_id": [one for _, candidates in lists for one in candidates],
            "model": model,
            "score": np.concatenate(scores) if len(scores) else [],
        }
    )


def reorder(candidates: pd.DataFrame, scores: pd.DataFrame, source: str) -> pd.DataFrame:
    """Order scored candidates by score (ties by their old rank), unscored ones behind them as they were.

    Args:
        candidates: `contracts.CANDIDATES` rows.
        scores: query_id, misconception_id, score: one row a scored candidate.
        source: written to the table.

    Returns:
        the same candidates with new ranks; unscored ones get scores below every scored one of their query.
    """
    joined = candidates.drop(columns="score").merge(scores[["query_id", "misconception_id", "score"]], how="left",
                                                    on=["query_id", "misconception_id"])  # fmt: skip
    lowest = joined.groupby("query_id")["score"].transform("min").fillna(0.0)
    joined["score"] = joined["score"].fillna(lowest - joined["rank"])
    joined = joined.sort_values(["query_id", "score", "rank"], ascending=[True, False, True], kind="stable")
    joined["rank"] = joined.groupby("query_id").cumcount() + 1
    return joined.assign(source=source)[["query_id", "rank", "misconception_id", "score", "source"]].reset_index(
        drop=True
    )
