"""Tables between the synthetic scripts, and what may be shown to a model of the data at hand."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa

from podium import intake
from podium.contracts import QUESTIONS, Column, Table, read_json, read_table
from podium.errors import DataError, sample
from podium.intake import ANSWER, LETTERS, MISCONCEPTION
from podium.synthetic.similarity import Text, find_copies, prepare

DRAFTS = Table(
    "drafts",
    ("draft_id",),
    (
        Column("draft_id", pa.string(), "item address and place in its answer"),
        Column("cluster", pa.int64(), "row of diverse_clusters.json it was asked for"),
        Column("model", pa.string(), "who wrote it"),
        Column("SubjectName", pa.string(), "broad topic"),
        Column("ConstructName", pa.string(), "what the question tests"),
        Column("QuestionText", pa.string(), "stem"),
        Column("CorrectAnswer", pa.string(), "A-D"),
        *(Column(name, pa.string(), "text of an option") for name in ANSWER),
        *(Column(name, pa.int64(), "misconception of an option", nullable=True) for name in MISCONCEPTION),
        Column("Solution", pa.string(), "the model's worked solution"),
    ),
)
JUDGEMENTS = Table(
    "judgements",
    ("draft_id", "letter", "judge"),
    (
        Column("draft_id", pa.string(), "the draft"),
        Column("letter", pa.string(), "the wrong option judged"),
        Column("misconception_id", pa.int64(), "the misconception it is said to show"),
        Column("judge", pa.string(), "model, or second:model"),
        Column("score", pa.int64(), "0-10"),
        Column("correct_option", pa.string(), "the judge's own key: A-D or none"),
        Column("explanation", pa.string(), "the judge's reasons"),
    ),
)
COT_INPUT = Table(
    "cot_input",
    ("query_id",),
    (
        Column("query_id", pa.string(), "{QuestionId}_{Letter}"),
        Column("SubjectName", pa.string(), "broad topic"),
        Column("ConstructName", pa.string(), "what the question tests"),
        Column("QuestionText", pa.string(), "stem"),
        Column("AllOptionText", pa.string(), "the four options, lettered"),
        Column("CorrectAnswerText", pa.string(), "text of the right option"),
        Column("InCorrectAnswerText", pa.string(), "text of this row's wrong option"),
        Column("misconception_id", pa.int64(), "gold label"),
        Column("MisconceptionName", pa.string(), "its name"),
        Column("related", pa.list_(pa.string()), "names of misconceptions easily taken for it"),
    ),
)


def read_data(data_dir: str, questions: str | None) -> intake.Folder:
    """An Eedi folder with its folds, from folds.parquet or from the question table that the trainers use.

    Questions that the table leaves out (a carved test fold) count as held out: fold -1.

    Raises:
        MissingFileError, DataError: as `intake.read_folder` and `contracts.read_table`.
    """
    folder = intake.read_folder(data_dir)
    if questions is not None:
        table = read_table(questions, QUESTIONS).drop_duplicates("QuestionId").set_index("QuestionId")["fold"]
        ids = folder.train["QuestionId"]
        folder.folds = pd.DataFrame({"QuestionId": ids, "kfold": ids.map(table).fillna(-1).astype("Int64")})
    return folder


def read_clusters(path: str | Path, catalogue: set[int]) -> list[list[int]]:
    """Read diverse_clusters.json: a list of lists of misconception ids (strings or numbers).

    Raises:
        MissingFileError: no such file.
        DataError: another shape, ids outside the catalogue, or an empty list.
    """
    raw = read_json(path, "clusters (cluster_misconceptions.py writes them)")
    if not isinstance(raw, list) or not raw or not all(isinstance(row, list) and row for row in raw):
        raise DataError(f"{path}: expected a list of non-empty lists of misconception ids")
    try:
        clusters = [[int(value) for value in row] for row in raw]
    except (TypeError, ValueError):
        raise DataError(f"{path}: a misconception id is not a whole number") from None
    unknown = sorted({value for row in clusters for value in row} - catalogue)
    if unknown:
        raise DataError(f"{path}: misconception {sample(unknown)} is not in misconception_mapping.csv; cluster again")
    return clusters


def texts_of(questions: pd.DataFrame) -> list[Text]:
    """Questions in the Eedi layout (or drafts), made comparable."""
    rows = questions[["QuestionText", "CorrectAnswer", *ANSWER]].fillna("").to_dict("records")
    return [
        prepare(row["QuestionText"], [row[name] for name in ANSWER], row.get(f"Answer{row['CorrectAnswer']}Text", ""))
        for row in rows
    ]


def held_out(folder: intake.Folder, validation_fold: int | None) -> pd.DataFrame:
    """Questions whose answers must not reach training: the validation fold's and the test set's.

    Raises:
        DataError: a validation fold is named but the folder has no folds.parquet.
    """
    parts = [] if folder.test is None else [folder.test]
    if validation_fold is not None:
        if folder.folds is None:
            raise DataError(
                "the data folder has no folds.parquet, so its validation questions are not known; set "
                "questions=outputs/…/questions.parquet (prepare_questions.py), or validation_fold=null to hold out "
                "the test set only"
            )
        held = folder.folds.loc[folder.folds["kfold"].isin([validation_fold, -1]), "QuestionId"]
        parts.append(folder.train[folder.train["QuestionId"].isin(held)])
    return pd.concat(parts, ignore_index=True) if parts else folder.train.iloc[:0]


def showable(folder: intake.Folder, validation_fold: int | None) -> pd.DataFrame:
    """Training questions that a model may be shown: not held out, nor a copy of one that is."""
    held = held_out(folder, validation_fold)
    rest = folder.train[~folder.train["QuestionId"].isin(held["QuestionId"])].reset_index(drop=True)
    copies = {copy.left for copy in find_copies(texts_of(rest), texts_of(held))}
    return rest[~rest.index.isin(copies)].reset_index(drop=True)


def shown_question(row: dict, names: dict[int, str], allowed: set[int] | None) -> dict[str, str]:
    """A reference question as the prompts show it; labels outside `allowed` are blanked (None: all are shown)."""
    shown = {
        "SubjectName": row["SubjectName"],
        "ConstructName": row["ConstructName"],
        "QuestionText": row["QuestionText"],
        "CorrectAnswer": row["CorrectAnswer"],
    }
    for letter, answer, label in zip(LETTERS, ANSWER, MISCONCEPTION, strict=True):
        shown[answer] = row[answer]
        value = row[label]
        hidden = pd.isna(value) or (allowed is not None and int(value) not in allowed) or letter == row["CorrectAnswer"]
        shown[f"Misconception{letter}Name"] = "" if hidden else names[int(value)]
    return shown


def as_json_lines(rows: list[dict]) -> str:
    """Rows as JSON, one a line, keys in their order: stable text for prompts."""
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def labelled_options(questions: pd.DataFrame) -> pd.Series:
    """Misconception id -> number of wrong options that carry it."""
    parts = [questions.loc[questions["CorrectAnswer"] != x, f"Misconception{x}Id"] for x in LETTERS]
    return pd.concat(parts).dropna().astype("int64").value_counts()


def lettered(row: dict) -> str:
    """The four options, lettered, one a line."""
    return "\n".join(f"{letter}. {row[f'Answer{letter}Text']}" for letter in LETTERS)
