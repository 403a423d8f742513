"""Bi-encoder batches: queries, the distinct misconceptions they need, and which column is whose."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from podium import prompts, rng, tokenization
from podium.batching.padding import pad
from podium.batching.queries import QueryRows
from podium.errors import DataError, sample


@dataclass
class RetrievalCollator:
    """Collate one step of retriever training. Every draw is keyed by (seed, epoch, query id)."""

    rows: QueryRows
    tokenizer: PreTrainedTokenizerFast
    style: prompts.Style
    max_length_tokens: int
    seed: int
    topic_dropout: float = 0.0
    rationale_dropout: float = 0.0
    hard_negatives: dict[str, list[int]] | None = None
    """query id -> misconception ids, hardest first; replaced when negatives are mined online."""
    hard_negatives_per_query: int = 0
    teacher: dict[tuple[str, int], float] | None = None
    corpus_share: tuple[int, int] | None = None
    """(process, processes): every batch holds this process's share of the whole catalogue; None: what it needs."""

    def __post_init__(self) -> None:
        self.documents = self.rows.documents()

    def query_text(self, index: int, *, topic: bool, rationale: str | None) -> str:
        """The prompt of one query, its question cut to fit max_length_tokens."""
        return query_text(
            self.rows, index, self.tokenizer, self.style, self.max_length_tokens, topic=topic, rationale=rationale
        )

    def check(self) -> None:
        """Refuse documents that do not fit, and queries that do not even without their question, before training starts.

        Raises:
            DataError: naming them.
        """
        check_documents(self.documents, self.tokenizer, self.max_length_tokens)
        bare = [
            prompts.retrieval_query(
                dataclasses.replace(query, question=tokenization.CUT),
                self.style,
                rationale=max(written, key=len, default=None),
            )
            for query, written in zip(self.rows.text, self.rows.rationales, strict=True)
        ]
        before, after = tokenization.special_prefix_suffix(self.tokenizer)
        room = self.max_length_tokens - len(before) - len(after)
        if crowded := tokenization.longer_than(self.tokenizer, bare, [room] * len(bare)):
            raise DataError(
                f"answers and rationale of {sample(self.rows.query_id[index] for index in crowded)} leave no room for"
                f" a question in max_length_tokens={self.max_length_tokens}; raise it"
            )

    def __call__(self, epoch: int, ids: np.ndarray) -> list[dict[str, Any]]:
        """One micro-batch: the local share of the step's queries.

        The documents are the distinct misconceptions of the queries, then of their hard negatives, so no document
        occurs twice and no query meets its own misconception as a negative. With `corpus_share` they are the
        catalogue: all processes' shares together are every misconception once.
        """
        texts, gold, extra = [], [], []
        for index in ids.tolist():
            query_id, label = self.rows.query_id[index], self.rows.label[index]
            generator = rng.generator(self.seed, epoch, "retrieval", query_id)
            topic = generator.random() >= self.topic_dropout
            rationale = self.rows.draw_rationale(index, self.rationale_dropout, self.seed, epoch)
            texts.append(self.query_text(index, topic=bool(topic), rationale=rationale))
            gold.append(label)
            pool = [one for one in (self.hard_negatives or {}).get(query_id, []) if one != label]
            if pool and self.hard_negatives_per_query:
                take = min(self.hard_negatives_per_query, len(pool))
                extra += [pool[position] for position in generator.choice(len(pool), size=take, replace=False)]
        documents = list(dict.fromkeys([*gold, *extra]))
        if self.corpus_share is not None:
            process, processes = self.corpus_share
            documents = sorted(self.rows.names)[process::processes]
        batch = {
            "query": tokenize_queries(self.tokenizer, texts),
            "document": tokenize_documents(self.tokenizer, [self.documents[one] for one in documents]),
            "document_ids": torch.tensor(documents),
            "gold_ids": torch.tensor(gold),
            "indices": ids.tolist(),
            "weight": float(len(ids)),
        }
        return [batch]

    def teacher_scores(self, indices: list[int], documents: list[int]) -> torch.Tensor | None:
        """(Q, M) teacher scores of queries by row index, for the documents of all processes; None without a teacher.

        A query with some scores treats the documents without one as far below its weakest; a query with none is nan.
        """
        if self.teacher is None:
            return None
        queries = [self.rows.query_id[index] for index in indices]
        scores_QM = torch.tensor([[self.teacher.get((q, d), float("nan")) for d in documents] for q in queries])
        known_QM = ~torch.isnan(scores_QM)
        some_Q1 = known_QM.any(dim=1, keepdim=True)
        return torch.where(some_Q1 & ~known_QM, torch.tensor(-10.0), scores_QM)


def check_documents(documents: dict[int, str], tokenizer: PreTrainedTokenizerFast, max_length_tokens: int) -> None:
    """Refuse documents (names with their explanations) that have no room in max_length_tokens: they are never cut.

    Raises:
        DataError: naming their misconceptions.
    """
    room = max_length_tokens - len(_document_frame(tokenizer)[0]) - len(_document_frame(tokenizer)[1])
    texts = [prompts.retrieval_document(text) for text in documents.values()]
    if long := tokenization.longer_than(tokenizer, texts, [room] * len(texts)):
        ids = list(documents)
        raise DataError(
            f"name or explanation of misconception {sample(ids[at] for at in long)} needs more than max_length_tokens="
            f"{max_length_tokens}; shorten it, or train with a larger max_length_tokens"
        )


def query_text(
    rows: QueryRows,
    index: int,
    tokenizer: PreTrainedTokenizerFast,
    style: prompts.Style,
    max_length_tokens: int,
    *,
    topic: bool = True,
    rationale: str | None = None,
) -> str:
    """The retrieval prompt of one query, its question cut so that special tokens included it fits the budget."""
    query = rows.text[index]
    before, after = tokenization.special_prefix_suffix(tokenizer)

    def render(question: str) -> str:
        shortened = dataclasses.replace(query, question=question)
        return prompts.retrieval_query(shortened, style, topic=topic, rationale=rationale)

    budget = max_length_tokens - len(before) - len(after)
    return render(tokenization.fit(tokenizer, render, query.question, budget))


def _with_specials(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, torch.Tensor]:
    before, after = tokenization.special_prefix_suffix(tokenizer)
    encoded = [[*before, *ids, *after] for ids in tokenization.encode(tokenizer, texts)]
    ids_BT, mask_BT = pad(encoded, tokenizer.pad_token_id)  # type: ignore[arg-type]
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def _document_frame(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Tokens before and after a document's text."""
    before, after = tokenization.special_prefix_suffix(tokenizer)
    return before, after or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])  # type: ignore[list-item]


def tokenize_queries(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, torch.Tensor]:
    """Right-padded query ids and mask. The last token is that of the prompt's own ending."""
    return _with_specials(tokenizer, texts)


def tokenize_documents(tokenizer: PreTrainedTokenizerFast, names: list[str]) -> dict[str, torch.Tensor]:
    """Right-padded document ids and mask; a document ends with the end-of-text token where the tokenizer has one.

    The pooled token is then the same for every backbone, whether or not its tokenizer adds one by itself.
    """
    before, ending = _document_frame(tokenizer)
    texts = [prompts.retrieval_document(name) for name in names]
    encoded = [[*before, *ids, *ending] for ids in tokenization.encode(tokenizer, texts)]
    ids_BT, mask_BT = pad(encoded, tokenizer.pad_token_id)  # type: ignore[arg-type]
    return {"input_ids": ids_BT, "attention_mask": mask_BT}
