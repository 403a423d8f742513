"""Reading other people's files: the Eedi layout, checked cell by cell before anything is built on it.

Every problem of a known kind ends in one DataError that names file, column, offending values with a count, and the
remedy. Oddities that do no harm are returned as warnings, each with its count.
"""

import csv
import io
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from podium.errors import DataError, MissingFileError, sample

LETTERS = ("A", "B", "C", "D")
ANSWER = [f"Answer{letter}Text" for letter in LETTERS]
MISCONCEPTION = [f"Misconception{letter}Id" for letter in LETTERS]
QUESTION_COLUMNS = [
    "QuestionId",
    "ConstructId",
    "ConstructName",
    "SubjectId",
    "SubjectName",
    "CorrectAnswer",
    "QuestionText",
    *ANSWER,
]
UNGROUPED_FOLD = 99
"""Fold of questions that no folds file names, as in the public recipe (synthetic rows)."""


@dataclass
class Folder:
    """An Eedi folder as read: ids are Int64, everything else text; absent parts are None. With a test key, the test
    questions carry its labels.
    """

    train: pd.DataFrame
    mapping: pd.DataFrame
    test: pd.DataFrame | None = None
    test_key: pd.DataFrame | None = None
    folds: pd.DataFrame | None = None
    warnings: list[str] = field(default_factory=list)


def read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV as text, refusing what would otherwise be misread silently.

    Args:
        path: the file; BOM and CRLF are accepted.
        columns: required columns. Others are kept.

    Raises:
        MissingFileError: no such file.
        DataError: undecodable bytes, NUL bytes, no header, no rows, missing or doubled columns, ragged rows.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a CSV with columns {', '.join(columns)}")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        bad = raw[error.start : error.start + 4]
        raise DataError(f"{path}: byte {bad!r} on line {line} is not UTF-8; save the file as UTF-8") from None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise DataError(f"{path}: NUL byte on line {line} ({text.count(chr(0))} in all); save the file again as CSV")
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected columns {', '.join(columns)}")
    # not pandas.read_csv: it fills short rows with empty cells and cuts long ones
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"{path}: not a well-formed CSV ({error}, line {reader.line_num}); check quotes and commas"
        ) from None
    header, lines = lines[0][1], lines[1:]
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: column {sample(doubled)} appears more than once; keep one of each")
    if absent := [name for name in columns if name not in header]:
        raise DataError(f"{path}: column {sample(absent)} is missing; the header has {', '.join(header)}")
    if not lines:
        raise DataError(f"{path}: header only, no rows; add data or give another file")
    if ragged := [line for line, row in lines if len(row) != len(header)]:
        raise DataError(
            f"{path}: line {sample(ragged)} has more or fewer cells than the {len(header)} of the header;"
            f" check quotes and commas"
        )
    return pd.DataFrame([row for _, row in lines], columns=header, dtype=str)


def encoding_oddities(paths: list[Path]) -> list[str]:
    """Counted warnings about byte-order marks and Windows line ends, which are read as if they were not there."""
    raw = {path: path.read_bytes() for path in paths if path.is_file()}
    marked = [str(path) for path, data in raw.items() if data.startswith(b"\xef\xbb\xbf")]
    ended = {str(path): data.count(b"\r\n") for path, data in raw.items() if b"\r\n" in data}
    warnings = [f"{', '.join(marked)}: starts with a byte-order mark; ignored"] if marked else []
    if ended:
        warnings.append(f"{', '.join(ended)}: {sum(ended.values())} lines end in CRLF; read as line ends")
    return warnings


def parse_ids(values: pd.Series, where: str, nullable: bool = True) -> pd.Series:
    """Ids of one type: 12, "12" and "12.0" are one id; empty is null; 12.5, "x" and -1 are refused.

    Raises:
        DataError: naming `where`, the offending values and their count.
    """
    texts = ["" if pd.isna(value) else str(value).strip() for value in values]
    texts = ["" if text.casefold() in ("nan", "<na>", "none") else text for text in texts]
    if bad := [text for text in dict.fromkeys(texts) if text and not re.fullmatch(r"[0-9]{1,18}(\.0*)?", text)]:
        raise DataError(f"{where}: not a whole number ≥ 0: {sample(bad)}; correct the ids")
    if not nullable and "" in texts:
        rows = [row for row, text in enumerate(texts) if not text]
        raise DataError(f"{where}: empty id in data row {sample(rows)}; every row needs one")
    ids = [int(text.split(".")[0]) if text else pd.NA for text in texts]
    return pd.Series(pd.array(ids, dtype="Int64"), index=values.index)


def read_mapping(path: Path) -> pd.DataFrame:
    """Read misconception_mapping.csv: MisconceptionId, MisconceptionName; both unique and filled.

    Raises:
        MissingFileError, DataError: as `read_csv`, or duplicate or empty ids or names.
    """
    frame = read_csv(path, ["MisconceptionId", "MisconceptionName"])
    frame["MisconceptionId"] = parse_ids(frame["MisconceptionId"], f"{path}: column MisconceptionId", nullable=False)
    if (doubled := frame["MisconceptionId"].duplicated()).any():
        ids = frame.loc[doubled, "MisconceptionId"].tolist()
        raise DataError(f"{path}: MisconceptionId {sample(ids)} appears more than once; ids must be unique")
    names = frame["MisconceptionName"].str.strip()
    if (names == "").any():
        ids = frame.loc[names == "", "MisconceptionId"].tolist()
        raise DataError(f"{path}: MisconceptionName is empty for id {sample(ids)}; give every misconception a name")
    if (doubled := names.duplicated()).any():
        raise DataError(f"{path}: MisconceptionName {sample(names[doubled])} appears more than once; merge the ids")
    return frame[["MisconceptionId", "MisconceptionName"]].assign(MisconceptionName=names)


def read_questions(path: Path, catalogue: set[int] | None, allow_empty_correct: bool) -> tuple[pd.DataFrame, list[str]]:
    """Read train.csv or test.csv.

    Args:
        path: the CSV.
        catalogue: ids that Misconception?Id may hold; None for a file without these columns (test.csv).
        allow_empty_correct: accept questions whose correct option has no text (pictures), with a warning.

    Returns:
        the table (ids Int64, Misconception?Id always present) and warnings.

    Raises:
        MissingFileError, DataError: as `read_csv`, or ids and letters that do not hold together.
    """
    labelled = catalogue is not None
    frame = read_csv(path, QUESTION_COLUMNS + (MISCONCEPTION if labelled else []))
    warnings: list[str] = []
    frame["QuestionId"] = parse_ids(frame["QuestionId"], f"{path}: column QuestionId", nullable=False)
    if (doubled := frame["QuestionId"].duplicated()).any():
        ids = frame.loc[doubled, "QuestionId"].unique().tolist()
        raise DataError(f"{path}: QuestionId {sample(ids)} appears more than once; ids must be unique")
    for column in ("ConstructId", "SubjectId"):
        frame[column] = parse_ids(frame[column], f"{path}: column {column}")

    frame["CorrectAnswer"] = frame["CorrectAnswer"].str.strip()
    if (bad := ~frame["CorrectAnswer"].isin(LETTERS)).any():
        shown = sample(frame.loc[bad, "CorrectAnswer"])
        raise DataError(f"{path}: CorrectAnswer is {shown}; it must be one of A, B, C, D")
    blank = frame[ANSWER].apply(lambda column: column.str.strip() == "")
    correct = pd.DataFrame({f"Answer{x}Text": frame["CorrectAnswer"] == x for x in LETTERS})
    if (empty := (blank & correct).any(axis=1)).any():
        ids = frame.loc[empty, "QuestionId"].tolist()
        if not allow_empty_correct:
            raise DataError(
                f"{path}: CorrectAnswer points at an empty option in QuestionId {sample(ids)}; "
                f"fill it in, or set allow_empty_correct=true if the right answer is a picture"
            )
        warnings.append(f"{path}: the correct option has no text in {len(ids)} questions, e.g. QuestionId {ids[0]}")
    if (bad := frame["QuestionText"].str.strip() == "").any():
        ids = frame.loc[bad, "QuestionId"].tolist()
        raise DataError(f"{path}: QuestionText is empty in QuestionId {sample(ids)}; every question needs its text")
    empty_distractors = (blank & ~correct).any(axis=1)
    if empty_distractors.any():
        warnings.append(f"{path}: {int(empty_distractors.sum())} questions have empty wrong options")

    on_correct = on_empty = 0
    for letter, column in zip(LETTERS, MISCONCEPTION, strict=True):
        if not labelled:
            frame[column] = pd.array([pd.NA] * len(frame), dtype="Int64")
            continue
        frame[column] = parse_ids(frame[column], f"{path}: column {column}")
        known = frame[column].isna() | frame[column].isin(catalogue or set())
        if not known.all():
            ids = frame.loc[~known, column].unique().tolist()
            raise DataError(
                f"{path}: {column} {sample(ids)} is not in misconception_mapping.csv; add it there or clear the cell"
            )
        is_correct = correct[f"Answer{letter}Text"]
        on_correct += int((is_correct & frame[column].notna()).sum())
        on_empty += int((blank[f"Answer{letter}Text"] & ~is_correct & frame[column].notna()).sum())
    if on_correct:
        warnings.append(f"{path}: {on_correct} correct options carry a misconception; ignored")
    if on_empty:
        warnings.append(f"{path}: {on_empty} empty options carry a misconception; kept")
    return frame[QUESTION_COLUMNS + MISCONCEPTION], warnings


def read_folds(path: Path, questions: pd.Series) -> tuple[pd.DataFrame, list[str]]:
    """Read folds.parquet (QuestionId, kfold), one row for every question; absent questions get fold 99.

    Raises:
        DataError: unreadable, columns missing, duplicates, folds that are no whole numbers, unknown questions.
    """
    try:
        frame = pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path}: not a readable parquet file ({reason}); produce it again, or delete it") from None
    if absent := [name for name in ("QuestionId", "kfold") if name not in frame.columns]:
        raise DataError(f"{path}: column {sample(absent)} is missing; it has {list(frame.columns)}")
    frame = frame[["QuestionId", "kfold"]].copy()
    for column in frame.columns:
        frame[column] = parse_ids(frame[column], f"{path}: column {column}", nullable=False)
    if (doubled := frame["QuestionId"].duplicated()).any():
        raise DataError(
            f"{path}: QuestionId {sample(frame.loc[doubled, 'QuestionId'].tolist())} appears more than once"
        )
    if (unknown := ~frame["QuestionId"].isin(questions)).any():
        ids = frame.loc[unknown, "QuestionId"].tolist()
        raise DataError(
            f"{path}: QuestionId {sample(ids)} is not in train.csv; produce folds.parquet for this train.csv"
        )
    warnings = []
    if absent_ids := sorted(set(questions) - set(frame["QuestionId"])):
        warnings.append(f"{path}: {len(absent_ids)} questions have no fold and get fold {UNGROUPED_FOLD}")
        rest = pd.DataFrame({"QuestionId": absent_ids, "kfold": UNGROUPED_FOLD}).astype("Int64")
        frame = pd.concat([frame, rest], ignore_index=True)
    return frame, warnings


def read_test_key(path: Path, test: pd.DataFrame, catalogue: set[int]) -> pd.DataFrame:
    """Read test_key.csv (QuestionId_Answer, MisconceptionId, optional Explanation), checked against test and catalogue.

    Raises:
        DataError: malformed or unknown keys, duplicates, unknown misconceptions.
    """
    frame = read_csv(path, ["QuestionId_Answer", "MisconceptionId"])
    frame["MisconceptionId"] = parse_ids(frame["MisconceptionId"], f"{path}: column MisconceptionId", nullable=False)
    known = {f"{question}_{letter}" for question in test["QuestionId"] for letter in LETTERS}
    if (bad := ~frame["QuestionId_Answer"].isin(known)).any():
        raise DataError(f"{path}: QuestionId_Answer {sample(frame.loc[bad, 'QuestionId_Answer'])} is not in test.csv")
    if (doubled := frame["QuestionId_Answer"].duplicated()).any():
        raise DataError(f"{path}: QuestionId_Answer {sample(frame.loc[doubled, 'QuestionId_Answer'])} appears twice")
    correct = test["QuestionId"].astype(str) + "_" + test["CorrectAnswer"]
    if (bad := frame["QuestionId_Answer"].isin(correct)).any():
        shown = sample(frame.loc[bad, "QuestionId_Answer"])
        raise DataError(f"{path}: QuestionId_Answer {shown} is the correct option in test.csv; remove the row")
    if (bad := ~frame["MisconceptionId"].isin(catalogue)).any():
        ids = frame.loc[bad, "MisconceptionId"].tolist()
        raise DataError(f"{path}: MisconceptionId {sample(ids)} is not in misconception_mapping.csv")
    return frame


def read_folder(folder: str | Path, allow_empty_correct: bool = False) -> Folder:
    """Read a folder in the Eedi layout: train.csv and misconception_mapping.csv, and, where present, test.csv,
    test_key.csv and folds.parquet.

    Raises:
        MissingFileError: the folder or one of its two required files is not there.
        DataError: any file is invalid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; it should hold train.csv and misconception_mapping.csv")
    mapping = read_mapping(folder / "misconception_mapping.csv")
    catalogue = set(mapping["MisconceptionId"])
    train, warnings = read_questions(folder / "train.csv", catalogue, allow_empty_correct)
    if train[MISCONCEPTION].isna().all(axis=None):
        raise DataError(f"{folder / 'train.csv'}: no row carries a misconception id; there is nothing to learn from")
    files = ("train.csv", "misconception_mapping.csv", "test.csv", "test_key.csv", "synthetic.csv")
    result = Folder(train, mapping, warnings=encoding_oddities([folder / name for name in files]) + warnings)
    if (path := folder / "folds.parquet").exists():
        result.folds, more = read_folds(path, train["QuestionId"])
        result.warnings += more
    if (path := folder / "test.csv").exists():
        result.test, more = read_questions(path, None, allow_empty_correct)
        result.warnings += more
        if (shared := result.test["QuestionId"].isin(train["QuestionId"])).any():
            ids = result.test.loc[shared, "QuestionId"].tolist()
            raise DataError(f"{path}: QuestionId {sample(ids)} is also in train.csv; a test question must be a new one")
        if (key := folder / "test_key.csv").exists():
            result.test_key = read_test_key(key, result.test, catalogue)
            gold = result.test_key.set_index("QuestionId_Answer")["MisconceptionId"]
            for letter, column in zip(LETTERS, MISCONCEPTION, strict=True):
                ids = result.test["QuestionId"].astype(str) + "_" + letter
                result.test[column] = ids.map(gold).astype("Int64")
    return result


def read_explanations(folder: str | Path, known: set[str]) -> pd.DataFrame | None:
    """Read synthetic.csv (query_id, Explanation), the reasoner's targets, as a rationales table; None if absent.

    Raises:
        DataError: malformed, doubled or unknown query ids, or empty explanations.
    """
    path = Path(folder) / "synthetic.csv"
    if not path.exists():
        return None
    frame = read_csv(path, ["query_id", "Explanation"])
    if (doubled := frame["query_id"].duplicated()).any():
        raise DataError(f"{path}: query_id {sample(frame.loc[doubled, 'query_id'])} appears more than once")
    if (unknown := ~frame["query_id"].isin(known)).any():
        raise DataError(f"{path}: query_id {sample(frame.loc[unknown, 'query_id'])} is no wrong option of train.csv")
    if (empty := frame["Explanation"].str.strip() == "").any():
        raise DataError(f"{path}: Explanation is empty for query_id {sample(frame.loc[empty, 'query_id'])}")
    return explanations_table(frame["query_id"], frame["Explanation"], path.name)


def explanations_table(query_ids: pd.Series, texts: pd.Series, source: str) -> pd.DataFrame:
    """Gold explanations as a `contracts.RATIONALES` frame."""
    return pd.DataFrame(
        {
            "query_id": query_ids,
            "model": source,
            "sample": 0,
            "text": texts.str.strip(),
            "finish_reason": "stop",
            "n_tokens": 0,
        }
    )
