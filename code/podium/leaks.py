"""Ways a validation answer can reach training, each looked for where its table or artefact is read.

| what would tell | found by | called where |
|---|---|---|
| a training row, real or synthetic, that asks a validation question | `in_questions` | `tables.read_training_tables` |
| candidates, scores, rationales, groups of a checkpoint that saw the validation fold | `in_artefacts` | the same |
| explanations written by somebody who knew the answer | | `tables.read_rationales` |
| the gold misconception among its own negatives, wrong labels | `in_groups` | `ranker_data.ranker_rows` |
| validation rows as examples in prompts | `in_demos` | `demos.read_pool` |
| gold ones added to validation lists that missed them | `in_lists` | `export_published.py` |
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from podium import contracts
from podium.errors import DataError, sample
from podium.synthetic.similarity import tokenize

TRAINED_ON = "trained_on"
"""Key in an artefact's manifest: digest of a question table -> its folds that the checkpoints behind were trained on."""


@dataclass(frozen=True)
class Leak:
    """One leak: what kind, where, and what it gives away."""

    kind: str
    where: str
    what: str


def refuse(found: list[Leak], remedy: str) -> None:
    """Raise a DataError that counts the leaks by kind and shows some, unless there are none."""
    if found:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in Counter(leak.kind for leak in found).items())
        shown = sample(f"{leak.where} {leak.what}" for leak in found)
        raise DataError(f"validation answers would reach training ({kinds}): {shown}; {remedy}")


def fingerprint(question: str, correct: str) -> str:
    """What makes two questions one: the same words and numbers, in whatever order and dress, and the same answer."""
    return " ".join([*sorted(tokenize(question)), "=", *sorted(tokenize(correct))])


def in_questions(table: pd.DataFrame, validation_fold: int) -> list[Leak]:
    """Training rows (synthetic ones included) that are validation questions under another id, or rows of the same question."""
    is_held = table["fold"].eq(validation_fold).fillna(False).astype(bool)
    prints = table[["QuestionText", "CorrectAnswerText"]].drop_duplicates()
    prints["print"] = list(map(fingerprint, prints["QuestionText"], prints["CorrectAnswerText"]))
    table = table.merge(prints, "left", ["QuestionText", "CorrectAnswerText"]).set_axis(table.index)
    held, rest = table[is_held], table[~is_held]
    asked = dict(zip(held["print"], held["query_id"], strict=True))
    ids = set(held["QuestionId"])
    suspects = rest[rest["QuestionId"].isin(ids) | rest["print"].isin(asked)]
    leaks = []
    for row in suspects.itertuples():
        if row.QuestionId in ids:
            leaks.append(
                Leak("question", row.query_id, f"is of question {row.QuestionId}, which fold {validation_fold} has too")
            )
        else:
            kind = "synthetic copy" if row.source == "synthetic" else "duplicate"
            leaks.append(Leak(kind, row.query_id, f"asks what validation query {asked[row.print]} asks"))
    return leaks


def in_demos(pool: pd.DataFrame, folds_trained: list[int]) -> list[Leak]:
    """Examples of a checkpoint (its demos.parquet) that are rows of no fold it was trained on: validation or test rows."""
    strange = pool.loc[~pool["fold"].isin(folds_trained).fillna(False).astype(bool), "query_id"]
    return [Leak("example", query, "was no training row") for query in strange]


def in_groups(groups: pd.DataFrame, gold: Mapping[str, int | None]) -> list[Leak]:
    """Gold misconceptions among their own negatives and others marked as gold, in the groups of the queries in `gold`."""
    known = groups[groups["query_id"].isin(gold.keys())]
    answer = known["query_id"].map(dict(gold)).astype("Int64")
    is_gold = (known["misconception_id"].astype("Int64") == answer).fillna(False).astype(bool)
    marked = known["label"].astype(bool)
    wrong = known[is_gold != marked]
    return [
        Leak("wrong label", query, f"has misconception {one} as {'gold' if label else 'a negative'} in its group")
        for query, one, label in zip(wrong["query_id"], wrong["misconception_id"], wrong["label"], strict=True)
    ]


def in_lists(groups: pd.DataFrame, held: set[str], candidates: pd.DataFrame) -> list[Leak]:
    """Ranked entries of validation lists that the retriever had not found.

    A gold entry without a rank is no leak: it is read by a full fit only, never by an evaluation.
    """
    keys = ["query_id", "misconception_id"]
    ranked = groups[groups["query_id"].isin(held) & groups["rank"].notna()]
    found = set(zip(*(candidates[key] for key in keys), strict=True))
    return [
        Leak("helped list", query, f"has misconception {one}, which its candidates lack")
        for query, one in zip(*(ranked[key] for key in keys), strict=True)
        if (query, one) not in found
    ]


# --- artefacts of checkpoints ----------------------------------------------------------------------------------------


def trained_on(meta: contracts.CheckpointMeta | None, *artefacts: str | Path | None) -> dict[str, Any]:
    """What the manifest of an artefact says of the checkpoint that made it and of the artefacts it was made from."""
    folds = {meta.data_digest: set(meta.folds_trained)} if meta and meta.data_digest else {}
    for folder in artefacts:
        for digest, trained in _recorded(folder).items():
            folds.setdefault(digest, set()).update(trained)
    return {TRAINED_ON: {digest: sorted(trained) for digest, trained in folds.items()}}


def _recorded(folder: str | Path | None) -> dict[str, list[int]]:
    if folder is None or not (Path(folder) / contracts.MANIFEST).is_file():
        return {}
    return contracts.read_manifest(folder).get(TRAINED_ON, {})


def in_artefacts(artefacts: Mapping[str, str | Path | None], validation_fold: int, data_digest: str) -> list[Leak]:
    """Inputs of a training run that were made with checkpoints trained on the validation fold of its question table."""
    return [
        Leak("artefact", f"{name} {folder}", f"is the work of a checkpoint trained on fold {validation_fold}")
        for name, folder in artefacts.items()
        if validation_fold in _recorded(folder).get(data_digest, [])
    ]
