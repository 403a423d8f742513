"""Reading a stage's inputs: the rows to train on, to validate on and to predict for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from podium import contracts, intake, leaks, questions, rng, stage
from podium.batching.queries import QueryRows, make_rows
from podium.errors import DataError, sample

GOLD_SOURCES = {"synthetic.csv", "test_key.csv"}
"""`model` of rationales that were read from a data folder, not generated."""


@dataclass
class TrainingTables:
    """What a trainer reads: labelled training rows, validation rows, and which misconceptions count as seen."""

    train: QueryRows
    validation: QueryRows
    held: frozenset[str]
    """Query ids of the whole validation fold."""
    seen: set[int]
    folds_trained: list[int]
    data_digest: str


def read_catalogue(questions_dir: str | Path) -> pd.DataFrame:
    """The misconceptions table of a question folder."""
    return contracts.read_table(Path(questions_dir) / "misconceptions.parquet", contracts.MISCONCEPTIONS)


def read_rationales(folder: str | Path | None, gold: bool = False) -> pd.DataFrame | None:
    """The rationales table of a folder, or None for None.

    Raises:
        DataError: gold rationales where generated ones are wanted: they tell the answer.
    """
    if folder is None:
        return None
    written = contracts.read_table(Path(folder) / "rationales.parquet", contracts.RATIONALES)
    told = written[written["model"].isin(GOLD_SOURCES)]
    if not gold and len(told):
        raise DataError(
            f"{folder}: these are gold rationales ({', '.join(sorted(set(told['model'])))}), which tell the answer, of query"
            f" {sample(told['query_id'])}; give a folder written by code/generate_llm_reasoner.py"
        )
    return written


EXPLANATIONS = "explanations.json"


def read_explanations(path: str | Path, names: dict[int, str]) -> dict[int, str]:
    """Explanations of misconceptions from a CSV (MisconceptionId, Explanation).

    Raises:
        MissingFileError, DataError: unreadable, doubled or empty entries, or ids that the catalogue lacks.
    """
    frame = intake.read_csv(Path(path), ["MisconceptionId", "Explanation"])
    ids = intake.parse_ids(frame["MisconceptionId"], f"{path}: column MisconceptionId", nullable=False)
    if ids.duplicated().any():
        raise DataError(f"{path}: MisconceptionId {sample(ids[ids.duplicated()])} appears more than once")
    if unknown := sorted(set(ids) - set(names)):
        raise DataError(f"{path}: MisconceptionId {sample(unknown)} is not in the catalogue")
    if (empty := frame["Explanation"].str.strip() == "").any():
        raise DataError(f"{path}: Explanation is empty for MisconceptionId {sample(ids[empty])}")
    return dict(zip(ids.astype(int), frame["Explanation"].str.strip(), strict=True))


def checkpoint_explanations(folder: str | Path, meta: contracts.CheckpointMeta) -> dict[int, str]:
    """The explanations that a retriever was trained with; empty for one trained without."""
    if not meta.extra.get("explanations"):
        return {}
    told = contracts.read_json(Path(folder) / EXPLANATIONS, "explanations of the misconceptions")
    return {int(one): text for one, text in told.items()}


def explain(told: dict[int, str], *tables: QueryRows) -> None:
    """Let the retriever read these explanations after the names; misconceptions without one go by their name alone."""
    for rows in tables:
        rows.explanations = told
    names = tables[0].names
    if told and (bare := [one for one in names if one not in told]):
        print(
            f"{len(bare)} of {len(names)} misconceptions have no explanation and go by their name alone: {sample(bare)}"
        )


def fixed_sample(frame: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """`count` rows drawn once and for all (all for None), in table order; a smaller sample is part of a larger one."""
    if count is None or count >= len(frame):
        return frame
    drawn = rng.permutation(len(frame), "fixed_sample", len(frame))[:count]
    return frame.iloc[sorted(drawn.tolist())].reset_index(drop=True)


def read_tables(paths: list[str], rows_per_fold: int | None) -> pd.DataFrame:
    """Question tables joined for inference.

    Training rows (those with a fold) without a label are left out, since nothing is learnt or measured on them; of the
    labelled ones at most `rows_per_fold` a fold are taken, a fixed sample. Test rows are always taken, all of them.

    Raises:
        DataError: the tables share query ids.
    """
    table = pd.concat([contracts.read_table(path, contracts.QUESTIONS) for path in paths], ignore_index=True)
    contracts.validate(table, contracts.QUESTIONS, " + ".join(map(str, paths)))
    parts = [table[table["fold"].isna()]]
    labelled = questions.labelled_rows(table[table["fold"].notna()])
    for _, rows in labelled.groupby("fold"):
        parts.append(fixed_sample(rows, rows_per_fold))
    return pd.concat(parts, ignore_index=True)


def read_training_tables(
    questions_dir: str | Path,
    train_folds: list[int],
    validation_fold: int,
    validation_rows: int | None,
    full_fit: bool,
    leaking_rows: str = "refuse",
    rationales: str | Path | None = None,
    require_rationales: bool = False,
    gold_rationales: bool = False,
    artefacts: Mapping[str, str | Path | None] | None = None,
) -> TrainingTables:
    """Read and split the question table, and refuse what would carry validation answers into training.

    With `full_fit` the validation fold is trained on too; what counts as seen stays defined by `train_folds`, so that
    the split of the figures keeps its meaning, and the caller says that they are in-sample.

    Args:
        questions_dir: folder of questions.parquet and misconceptions.parquet.
        train_folds: folds that are trained on.
        validation_fold: the fold that is not.
        validation_rows: a fixed sample of its rows; None takes all.
        full_fit: train on the validation fold too.
        leaking_rows: what happens to training rows that ask validation questions: refuse | drop.
        rationales: folder of generated rationales.
        require_rationales: every query must have one.
        gold_rationales: the rationales may be gold ones.
        artefacts: everything else that the run reads; what was made with the validation fold is refused.

    Raises:
        MissingFileError, DataError: unreadable tables, a split without rows, or validation answers in training.
    """
    table = contracts.read_table(Path(questions_dir) / "questions.parquet", contracts.QUESTIONS)
    catalogue = read_catalogue(questions_dir)
    written = read_rationales(rationales, gold_rationales)
    folds = sorted({*train_folds, validation_fold}) if full_fit else sorted(train_folds)
    train = questions.training_rows(table, folds)
    validation = questions.training_rows(table, [validation_fold])
    if train.empty or validation.empty:
        there = table.loc[table["misconception_id"].notna(), "fold"].value_counts().to_dict()
        raise DataError(
            f"{questions_dir}: train_folds {train_folds} hold {len(train)} labelled rows and validation_fold"
            f" {validation_fold} holds {len(validation)}; labelled rows by fold: {there}"
        )
    digest = contracts.input_digest(Path(questions_dir) / "questions.parquet")
    if not full_fit:
        leaks.refuse(
            leaks.in_artefacts(artefacts or {}, validation_fold, digest),
            "make them with checkpoints trained without that fold, or set full_fit=true and report no validation figures",
        )
        found = leaks.in_questions(pd.concat([train, validation], ignore_index=True), validation_fold)
        if found and leaking_rows == "drop":
            print(
                f"{len(found)} training rows ask validation questions (e.g. {found[0].where} {found[0].what}); they are left out"
            )
            train = train[~train["query_id"].isin({leak.where for leak in found})].reset_index(drop=True)
        else:
            leaks.refuse(found, "mend the folds, or set data.leaking_rows=drop to train without these rows")
    names = dict(zip(catalogue["misconception_id"].astype(int), catalogue["name"], strict=True))
    labels = {int(one) for one in [*train["misconception_id"], *validation["misconception_id"]]}
    stage.require_labels_known(labels, names, str(questions_dir))
    return TrainingTables(
        train=make_rows(train, catalogue, written, require_rationales),
        validation=make_rows(fixed_sample(validation, validation_rows), catalogue, written, require_rationales),
        held=frozenset(validation["query_id"]),
        seen=questions.seen_misconceptions(table, train_folds),
        folds_trained=[int(fold) for fold in folds],
        data_digest=digest,
    )
