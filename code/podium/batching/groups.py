"""Pointwise rows: one query's context once, then every candidate as a suffix that sees the context and itself.

Prompts are tokenised whole; the longest common token prefix over the group becomes the shared part. Positions restart
after it for every suffix and siblings are invisible to each other, so scores and gradients are those of separate rows
(prefix sharing as in the MAP 2025 winning solution, tascj; measured in benchmarks/).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from podium import prompts, rng, tokenization
from podium.batching.padding import pad
from podium.batching.queries import QueryRows


@dataclass(frozen=True)
class PackedRow:
    """One query with its candidates as a single token row.

    `segment` is 0 on the shared prefix and 1 … K on the suffixes; `last` is the column whose next token is the label of
    each candidate; `names` are the columns of each candidate's name tokens, by the column that predicts them.
    """

    tokens: list[int]
    position: list[int]
    segment: list[int]
    last: list[int]
    name_read: list[list[int]]
    name_tokens: list[list[int]]


def common_prefix(rows: list[list[int]]) -> int:
    """Length of the longest common prefix that leaves at least one token to every row."""
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    for length in range(shortest):
        if any(row[length] != first[length] for row in rows):
            return length
    return shortest


def pack(prompts_ids: list[list[int]], name_spans: list[tuple[int, int]]) -> PackedRow:
    """Join whole prompts of one query into a packed row.

    Args:
        prompts_ids: token ids of each candidate's whole prompt.
        name_spans: token range of the candidate's name within its prompt.
    """
    shared = common_prefix(prompts_ids)
    tokens, position, segment = list(prompts_ids[0][:shared]), list(range(shared)), [0] * shared
    last, name_read, name_tokens = [], [], []
    for number, (ids, (start, end)) in enumerate(zip(prompts_ids, name_spans, strict=True), 1):
        offset = len(tokens) - shared  # column of token t of this prompt is t, or t + offset behind the prefix
        tokens += ids[shared:]
        position += range(shared, len(ids))
        segment += [number] * (len(ids) - shared)
        last.append(len(tokens) - 1)
        name_read.append([at - 1 if at - 1 < shared else at - 1 + offset for at in range(start, end)])
        name_tokens.append(ids[start:end])
    return PackedRow(tokens, position, segment, last, name_read, name_tokens)


def collate_packed(rows: list[PackedRow], pad_id: int) -> dict[str, Tensor]:
    """Right-padded packed rows and their attention mask.

    Returns:
        input_ids (B, T), position_ids (B, T), mask (B, 1, T, T) bool, label_read (N, 2): all rows' candidates in order.
    """
    ids_BT, valid_BT = pad([row.tokens for row in rows], pad_id)
    position_BT, _ = pad([row.position for row in rows], 0)
    segment_BT, _ = pad([row.segment for row in rows], 0)
    width = ids_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    same_BTT = (segment_BT[:, None, :] == 0) | (segment_BT[:, None, :] == segment_BT[:, :, None])
    mask_BTT = causal_TT & same_BTT & valid_BT[:, None, :].bool()
    # a padded position sees itself, so that its softmax is defined; nothing reads it
    mask_BTT |= torch.eye(width, dtype=torch.bool)
    return {
        "input_ids": ids_BT,
        "position_ids": position_BT,
        "mask": mask_BTT[:, None],
        "label_read": torch.tensor([(index, column) for index, row in enumerate(rows) for column in row.last]),
    }


@dataclass
class PointwiseRenderer:
    """Renders and tokenises a query with any candidates, its question cut once a group to fit the budget."""

    rows: QueryRows
    tokenizer: PreTrainedTokenizerFast
    style: prompts.Style
    max_length_tokens: int

    def packed(
        self, index: int, candidates: list[int], *, topic: bool = True, rationale: str | None = None
    ) -> PackedRow:
        """The packed row of one query and its candidates, in the given order."""
        query = self.rows.text[index]
        names = [self.rows.names[one] for one in candidates]
        longest = max(names, key=len)

        def render(question: str) -> str:
            shortened = dataclasses.replace(query, question=question)
            return "".join(prompts.pointwise_parts(shortened, longest, self.style, topic=topic, rationale=rationale))

        # other names may have a few tokens more than the one with most characters
        budget = self.max_length_tokens - 8
        fitted = dataclasses.replace(query, question=tokenization.fit(self.tokenizer, render, query.question, budget))
        parts = [prompts.pointwise_parts(fitted, name, self.style, topic=topic, rationale=rationale) for name in names]
        encoded = self.tokenizer(
            ["".join(part) for part in parts], add_special_tokens=False, return_offsets_mapping=True
        )
        spans = [
            name_span(offsets, len(context), len(context) + len(name))
            for offsets, (context, name, _) in zip(encoded["offset_mapping"], parts, strict=True)
        ]
        before, _ = tokenization.special_prefix_suffix(self.tokenizer)
        ids = [[*before, *one] for one in encoded["input_ids"]]
        return pack(ids, [(start + len(before), end + len(before)) for start, end in spans])


def name_span(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Token range that covers the characters start … end."""
    inside = [index for index, (a, b) in enumerate(offsets) if a < end and b > start]
    return inside[0], inside[-1] + 1


def group_targets(
    groups: list[tuple[int, list[int], int]], labelled: list[bool], teacher: list[dict[int, float]] | None
) -> dict[str, Tensor]:
    """What the group loss needs of (row index, candidates, position of the gold one) triples.

    Returns:
        valid (G, K) bool, target (G,), labelled (G,) bool and, with a teacher, teacher (G, K): nan where it has no score.
    """
    widest = max(len(candidates) for _, candidates, _ in groups)
    result = {
        "valid": torch.tensor([[at < len(candidates) for at in range(widest)] for _, candidates, _ in groups]),
        "target": torch.tensor([target for _, _, target in groups]),
        "labelled": torch.tensor([labelled[index] for index, _, _ in groups]),
    }
    if teacher is not None:
        result["teacher"] = torch.tensor(
            [
                [teacher[index].get(c[at], float("nan")) if at < len(c) else 0.0 for at in range(widest)]
                for index, c, _ in groups
            ]
        )
    return result


@dataclass
class PointwiseCollator:
    """Training groups: gold and negatives drawn from the query's pool, order shuffled, all keyed by (seed, epoch, id)."""

    renderer: PointwiseRenderer
    pools: list[list[int]]
    """Negatives of each row, hardest first, never its gold."""
    teacher: list[dict[int, float]] | None
    labelled: list[bool]
    candidates_per_group: list[int]
    max_tokens_per_micro_batch: int
    seed: int
    topic_dropout: float = 0.0
    rationale_dropout: float = 0.0

    def group(self, epoch: int, index: int) -> tuple[list[int], int, PackedRow]:
        """Candidates in shuffled order, position of the gold one, and the packed row."""
        rows = self.renderer.rows
        query_id, gold = rows.query_id[index], rows.label[index]
        generator = rng.generator(self.seed, epoch, "group", query_id)
        size = int(generator.choice(self.candidates_per_group))
        take = min(size - 1, len(self.pools[index]))
        negatives = [self.pools[index][at] for at in generator.choice(len(self.pools[index]), size=take, replace=False)]
        members = [*([gold] if gold is not None else []), *negatives]
        candidates = [members[at] for at in generator.permutation(len(members))]
        topic = bool(generator.random() >= self.topic_dropout)
        rationale = rows.draw_rationale(index, self.rationale_dropout, self.seed, epoch)
        packed = self.renderer.packed(index, candidates, topic=topic, rationale=rationale)
        return candidates, candidates.index(gold) if gold is not None else 0, packed

    def __call__(self, epoch: int, ids: np.ndarray) -> list[dict[str, Any]]:
        """Micro-batches of whole groups within the token budget; weight = groups."""
        groups = [(index, *self.group(epoch, index)) for index in ids.tolist()]
        groups.sort(key=lambda one: (len(one[3].tokens), one[0]))
        batches: list[dict[str, Any]] = []
        chunk: list[tuple[int, list[int], int, PackedRow]] = []
        for one in groups:
            if chunk and len(one[3].tokens) * (len(chunk) + 1) > self.max_tokens_per_micro_batch:
                batches.append(self._micro(chunk))
                chunk = []
            chunk.append(one)
        batches.append(self._micro(chunk))
        return batches

    def _micro(self, groups: list[tuple[int, list[int], int, PackedRow]]) -> dict[str, Any]:
        packed = [row for _, _, _, row in groups]
        batch: dict[str, Any] = collate_packed(packed, self.renderer.tokenizer.pad_token_id)  # type: ignore[arg-type]
        batch |= group_targets([one[:3] for one in groups], self.labelled, self.teacher)
        # auxiliary language-model loss on the gold name: every group counts once, whatever the name's length
        reads, tokens, weights = [], [], []
        for number, (index, _, target, row) in enumerate(groups):
            if self.labelled[index]:
                reads += [(number, column) for column in row.name_read[target]]
                tokens += row.name_tokens[target]
                weights += [1.0 / len(row.name_tokens[target])] * len(row.name_tokens[target])
        batch["lm_read"] = torch.tensor(reads, dtype=torch.long).reshape(-1, 2)
        batch["lm_target"], batch["lm_weight"] = torch.tensor(tokens, dtype=torch.long), torch.tensor(weights)
        batch["weight"] = float(len(groups))
        return batch
