"""Example queries of a candidate misconception, shown beside it in ranker prompts, without telling the label.

How many examples a candidate shows depends on the candidate alone: one less than the distinct questions that training
has of it (at most `per_misconception`), whether or not the query at hand is one of them. If it depended on the query,
the gold misconception (whose pool lacks the query itself) could be told from its negatives by counting. Examples come
from training rows only, never from the query's own question, and the same rule holds in training and at inference.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from podium import contracts, leaks, prompts, rng
from podium.batching.queries import QueryRows, make_rows
from podium.errors import DataError

FILE = "demos.parquet"


def question_key(text: str) -> str:
    """What counts as the same question: its text without case and spacing."""
    return " ".join(text.split()).casefold()


@dataclass
class DemoPool:
    """Training queries by misconception and question."""

    rows: QueryRows
    per_misconception: int
    max_characters: int
    by_misconception: dict[int, dict[str, list[int]]]
    """misconception id -> question -> row indices."""

    def shown(self, misconception: int, query: prompts.Query, key: tuple[int | str, ...]) -> list[str]:
        """The example texts of one candidate beside one query, drawn by `key`."""
        questions = self.by_misconception.get(misconception, {})
        count = min(self.per_misconception, len(questions) - 1)
        if count <= 0:
            return []
        own = question_key(query.question)
        generator = rng.generator(*key, "demo", misconception, own)
        others = sorted(one for one in questions if one != own)
        chosen = [others[at] for at in generator.choice(len(others), size=count, replace=False)]
        picked = [questions[one][int(generator.integers(len(questions[one])))] for one in chosen]
        return [prompts.demo_text(self.rows.text[at], self.max_characters) for at in picked]

    def settings(self) -> dict[str, int]:
        """What a checkpoint's meta keeps of the pool."""
        return {"per_misconception": self.per_misconception, "max_characters": self.max_characters}

    def write(self, folder: Path, questions: pd.DataFrame) -> None:
        """Save the pool's rows beside a checkpoint, as part of the question table."""
        own = questions[questions["query_id"].isin(self.rows.query_id)]
        contracts.write_table(own, folder / FILE, contracts.QUESTIONS)


def make_pool(
    rows: QueryRows, per_misconception: int, max_characters: int, unlabelled_sources: list[str] | None = None
) -> DemoPool:
    """A pool of the labelled rows, those of `unlabelled_sources` left out.

    Args:
        rows: training rows, of no validation fold.
        per_misconception: examples a candidate shows at most.
        max_characters: of one example's question; longer ones lose their middle.
        unlabelled_sources: rows whose label is a guess.
    """
    pool: dict[int, dict[str, list[int]]] = {}
    for at, label in enumerate(rows.label):
        if label is not None and rows.source[at] not in (unlabelled_sources or ()):
            pool.setdefault(label, {}).setdefault(question_key(rows.text[at].question), []).append(at)
    return DemoPool(rows, per_misconception, max_characters, pool)


def read_pool(folder: str | Path, meta: contracts.CheckpointMeta, names: dict[int, str]) -> DemoPool | None:
    """The pool that a checkpoint was trained with; None for one trained without.

    Raises:
        MissingFileError: its demos.parquet is gone.
        DataError: the meta does not describe a pool, or it holds rows that were not trained on.
    """
    settings: dict[str, Any] | None = meta.extra.get("demos")
    if settings is None:
        return None
    fields = {field.name for field in dataclasses.fields(DemoPool)} - {"rows", "by_misconception"}
    if set(settings) != fields:
        raise DataError(f"{folder}/{contracts.META}: extra.demos needs {sorted(fields)}; export the checkpoint again")
    table = contracts.read_table(Path(folder) / FILE, contracts.QUESTIONS)
    leaks.refuse(leaks.in_demos(table, meta.folds_trained), f"take the {FILE} that was trained with {folder}")
    catalogue = pd.DataFrame({"misconception_id": list(names), "name": list(names.values())})
    return make_pool(make_rows(table, catalogue), **settings)
