"""The competition's submission file: writing it, and checking one against the question table and the catalogue."""

from pathlib import Path

import pandas as pd

from podium import contracts, intake
from podium.errors import DataError, sample

HEADER = ["QuestionId_Answer", "MisconceptionId"]


def submission_frame(candidates: pd.DataFrame, query_ids: list[str], length: int) -> pd.DataFrame:
    """QuestionId_Answer and the first `length` misconception ids joined by spaces, in the order of `query_ids`.

    Raises:
        DataError: a query has fewer than `length` candidates, or none.
    """
    ordered = candidates[candidates["rank"] <= length].sort_values(["query_id", "rank"])
    lists = ordered.groupby("query_id")["misconception_id"].agg(lambda ids: " ".join(str(int(one)) for one in ids))
    counts = ordered.groupby("query_id").size()
    short = [query for query in query_ids if counts.get(query, 0) < length]
    if short:
        raise DataError(f"fewer than {length} candidates for query {sample(short)}; mine with top_k ≥ {length}")
    return pd.DataFrame({HEADER[0]: query_ids, HEADER[1]: [lists[query] for query in query_ids]})


def check_submission(path: str | Path, query_ids: list[str], catalogue: set[int], length: int) -> None:
    """Check a submission file as the competition does: columns, one row a query, known and distinct ids, not too many.

    Raises:
        MissingFileError, DataError: naming the rows.
    """
    frame = intake.read_csv(Path(path), HEADER)
    if list(frame.columns) != HEADER:
        raise DataError(f"{path}: columns are {list(frame.columns)}; must be {HEADER}")
    if (doubled := frame[HEADER[0]].duplicated()).any():
        raise DataError(f"{path}: {HEADER[0]} {sample(frame.loc[doubled, HEADER[0]])} appears more than once")
    if absent := sorted(set(query_ids) - set(frame[HEADER[0]])):
        raise DataError(f"{path}: no row for {sample(absent)}; every wrong option of the test set needs one")
    if unknown := sorted(set(frame[HEADER[0]]) - set(query_ids)):
        raise DataError(f"{path}: {sample(unknown)} is not in the test set")
    for query, text in zip(frame[HEADER[0]], frame[HEADER[1]], strict=True):
        ids = text.split(" ")
        if (
            len(ids) > length
            or len(set(ids)) != len(ids)
            or not all(one.isdigit() and int(one) in catalogue for one in ids)
        ):
            raise DataError(f"{path}: row {query} must hold at most {length} distinct catalogue ids; it holds {text!r}")


def write_submission(
    candidates: pd.DataFrame, query_ids: list[str], catalogue: set[int], length: int, path: Path
) -> None:
    """Write the file and check what was written. A catalogue smaller than `length` shortens the rows."""
    length = min(length, len(catalogue))
    contracts.write_text(path, submission_frame(candidates, query_ids, length).to_csv(index=False, lineterminator="\n"))
    check_submission(path, query_ids, catalogue, length)
