"""Rankings without training."""

import re

import numpy as np
import pandas as pd

from podium import rng, search
from podium.batching.queries import QueryRows

# BM25 has no use for words that occur in every text; the list is short on purpose, since stems and names are too
STOP_WORDS = {"a", "an", "and", "are", "as", "at", "by", "do", "does", "for", "from", "how", "in", "is", "it", "of", "on", "or",
              "the", "then", "to", "what", "when", "which", "with"}  # fmt: skip


def tokenize(text: str) -> list[str]:
    """Lower-case words and numbers, stop words removed."""
    return [word for word in re.findall(r"[a-z]+|\d+", text.casefold()) if word not in STOP_WORDS]


def bm25(rows: QueryRows, top_k: int) -> pd.DataFrame:
    """BM25 of topic, question and answers against the names of the catalogue (bm25s, Lucene's variant)."""
    import bm25s

    ids = list(rows.names)
    index = bm25s.BM25()
    index.index([tokenize(name) or ["_"] for name in rows.names.values()], show_progress=False)
    asked = [tokenize(" ".join([q.subject, q.construct, q.question, q.correct, q.wrong])) or ["_"] for q in rows.text]
    columns, scores = index.retrieve(asked, k=min(top_k, len(ids)), show_progress=False)
    return search.candidates_frame(rows.query_id, ids, scores, columns, "bm25")


def construct_oracle(train: pd.DataFrame, test: pd.DataFrame, ids: list[int], seed: int) -> pd.DataFrame:
    """Rank the misconceptions that occur with a query's construct, in training or test labels, in random order.

    It knows the construct perfectly and nothing of the wrong answer: what a model reaches without any diagnosis.
    The rest of the catalogue follows at random, so that every query has a full list.
    """
    labelled = pd.concat([train, test])
    labelled = labelled[labelled["misconception_id"].notna()]
    possible = labelled.groupby("ConstructName")["misconception_id"].agg(lambda column: sorted(set(column.astype(int))))
    columns = np.empty((len(test), len(ids)), dtype=np.int64)
    position = {one: column for column, one in enumerate(ids)}
    for row, (query_id, construct) in enumerate(zip(test["query_id"], test["ConstructName"], strict=True)):
        generator = rng.generator(seed, "construct_oracle", query_id)
        known = possible.get(construct, [])
        rest = sorted(set(ids) - set(known))
        ordered = [*generator.permutation(known).tolist(), *generator.permutation(rest).tolist()]
        columns[row] = [position[int(one)] for one in ordered]
    scores = np.tile(-np.arange(len(ids), dtype=float), (len(test), 1))
    return search.candidates_frame(test["query_id"].tolist(), ids, scores, columns, "construct_oracle")
