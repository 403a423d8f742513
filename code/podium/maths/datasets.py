"""Maths benchmarks in their published files, read into one kind of row, with their sizes checked.

Formats: gsm8k JSONL (question, answer ending in `####`), SVAMP JSON (Body, Question, Answer), AQuA JSONL (question,
options, correct), MATH JSON (question, answer = [text, number]), MMLU JSON (question, choices, answer index), the rest
JSON (question, answer). Anything else comes in by a column map.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from podium.config import nearest
from podium.errors import ArgumentError, DataError, MissingFileError, sample
from podium.maths.grading import Tolerance

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    """One problem: `gold` is the answer, a letter for `kind` "choice"; options are contents without letters."""

    id: str
    question: str
    gold: str
    kind: str
    options: tuple[str, ...] = ()
    difficulty: float | None = None


@dataclass(frozen=True)
class KnownSet:
    """A published set: file names to look for, its size, the kind of its answers, the reader of one row, its slack."""

    files: tuple[str, ...]
    count: int
    kind: str
    read: Callable[[dict[str, Any]], dict[str, Any]]
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True)
class Columns:
    """Where a set of another format keeps things; `options` and `difficulty` may be absent."""

    file: str
    kind: str
    question: str = "question"
    answer: str = "answer"
    options: str | None = None
    difficulty: str | None = None
    id: str | None = None


def _need(row: dict[str, Any], *names: str) -> None:
    if absent := [name for name in names if row.get(name) is None]:
        raise KeyError(f"column {', '.join(absent)} is missing; the row has {', '.join(sorted(row))}")


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise KeyError(f"an answer of type {type(value).__name__} ({value!r}); text or a number is needed")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "question", "answer")
    if "####" not in str(row["answer"]):
        raise KeyError("the answer has no `####` line")
    return {"question": row["question"], "gold": str(row["answer"]).rsplit("####", 1)[1].strip()}


def _svamp(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "Body", "Question", "Answer")
    body = row["Body"].strip()
    joined = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {row['Question'].strip()}"
    return {"question": joined, "gold": _text(row["Answer"]), "id": row.get("ID")}


def strip_letter(option: str) -> str:
    """An option's content without its letter: "A)10", "(B) 10", "C. 10" and "D: 10" give "10"."""
    return re.sub(r"^\s*(?:\(\s*[A-Ja-j]\s*\)|[A-J]\s*[).:])\s*", "", option).strip()


def _aqua(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "question", "options", "correct")
    return {"question": row["question"], "options": [strip_letter(o) for o in row["options"]], "gold": row["correct"]}


def _math(row: dict[str, Any]) -> dict[str, Any]:
    question = row.get("question", row.get("problem"))
    answer = row.get("answer")
    if question is None or answer is None:
        _need(row, "question", "answer")
    gold = answer[0] if isinstance(answer, list) and answer else answer
    level = re.search(r"\d", str(row.get("level", "")))
    return {"question": question, "gold": _text(gold), "difficulty": float(level.group()) if level else None}


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "question", "choices", "answer")
    answer = row["answer"]
    gold = LETTERS[answer] if isinstance(answer, int) and 0 <= answer < len(row["choices"]) else str(answer).strip()
    return {"question": row["question"], "options": [strip_letter(str(c)) for c in row["choices"]], "gold": gold}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "question", "answer")
    answer = row["answer"]
    gold = answer[0] if isinstance(answer, list) and len(answer) in (1, 2) else answer
    return {"question": row["question"], "gold": _text(gold)}


_INLINE = re.compile(r"\(([A-J])\)\s*(.*?)(?=\s*,?\s*\([A-J]\)|\s*$)", re.DOTALL)


def _sat(row: dict[str, Any]) -> dict[str, Any]:
    _need(row, "question", "answer")
    options: list[str] = list(row.get("options") or row.get("choices") or [])
    question = row["question"]
    if not options and (start := re.search(r"Answer Choices?:", question, re.IGNORECASE)):
        inline = _INLINE.findall(question[start.end() :])
        if [letter for letter, _ in inline] == list(LETTERS[: len(inline)]):
            options, question = [content for _, content in inline], question[: start.start()].strip()
    return {
        "question": question,
        "options": [strip_letter(o) for o in options],
        "gold": _text(row["answer"]).strip("() "),
    }


# decimals in these sets' answers are rounded by their authors, some to one place
_ROUNDED = Tolerance(rounding_decimals=1)
SETS: dict[str, KnownSet] = {
    "gsm8k": KnownSet(("gsm8k.jsonl", "gsm8k_test.jsonl"), 1319, "number", _gsm8k),
    "svamp": KnownSet(("SVAMP.json",), 1000, "number", _svamp),
    "math": KnownSet(("MATH.json",), 5000, "formula", _math),
    "numglue": KnownSet(("numglue.json", "NumGLUE_test.json"), 1042, "number", _plain, _ROUNDED),
    "deepmind": KnownSet(("deepmind.json",), 1000, "formula", _plain),
    "simuleq": KnownSet(("simuleq.json",), 514, "number", _plain, _ROUNDED),
    "aqua": KnownSet(("AQuA.jsonl", "aqua_test.jsonl", "aqua_dev.jsonl", "AQuA.json"), 254, "choice", _aqua, _ROUNDED),
    "sat": KnownSet(("sat.json",), 220, "choice", _sat, _ROUNDED),
    "mmlu_mathematics": KnownSet(("mmlu_mathematics.json", "mathematics.json"), 974, "choice", _mmlu, _ROUNDED),
    "mmlu_physics": KnownSet(("mmlu_physics.json", "physics.json"), 253, "choice", _mmlu, _ROUNDED),
    "mmlu_chemistry": KnownSet(("mmlu_chemistry.json", "chemistry.json"), 303, "choice", _mmlu, _ROUNDED),
    "mmlu_biology": KnownSet(("mmlu_biology.json", "biology.json"), 454, "choice", _mmlu, _ROUNDED),
}


def find_file(folder: str | Path, name: str) -> Path:
    """A known set's file below a folder, whatever its letter case.

    Raises:
        MissingFileError: none of its names is there.
        DataError: several different files have one of its names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"eval_datasets_dir {folder} is no folder; run python download_datasets.py maths")
    wanted = [candidate.lower() for candidate in SETS[name].files]
    found = sorted(path for path in folder.rglob("*.json*") if path.name.lower() in wanted)
    if not found:
        there = sorted(path.name for path in folder.rglob("*.json*"))
        raise MissingFileError(
            f"{name}: no {' or '.join(SETS[name].files)} below {folder}, which holds {sample(there)}; "
            "run python download_datasets.py maths, or describe the file under other_sets"
        )
    if len(found) > 1:
        raise DataError(f"{name}: several files below {folder} could be it: {sample(map(str, found))}; keep one")
    return found[0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON array, a JSON object of rows, or JSON lines.

    Raises:
        MissingFileError: no such file.
        DataError: not JSON, or rows that are no objects.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError:
        loaded = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    loaded.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: neither JSON nor JSON lines ({error}); download it again"
                    ) from None
    if isinstance(loaded, dict):
        is_table = loaded and all(isinstance(value, dict) for value in loaded.values())
        loaded = list(loaded.values()) if is_table else [loaded]  # rows by id, or JSON lines with a single line
    if not isinstance(loaded, list) or not loaded:
        raise DataError(f"{path}: holds no rows; download it again")
    if bad := [index for index, row in enumerate(loaded) if not isinstance(row, dict)]:
        raise DataError(f"{path}: row {sample(bad)} is no object; every row needs named columns")
    return loaded


def _by_columns(columns: Columns) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(row: dict[str, Any]) -> dict[str, Any]:
        _need(
            row, *[c for c in (columns.question, columns.answer, columns.options, columns.difficulty, columns.id) if c]
        )
        options = [strip_letter(str(option)) for option in row[columns.options]] if columns.options else []
        answer = row[columns.answer]
        if columns.kind == "choice" and isinstance(answer, int) and 0 <= answer < len(options):
            answer = LETTERS[answer]
        return {
            "question": row[columns.question],
            "gold": _text(answer),
            "options": options,
            "difficulty": float(row[columns.difficulty]) if columns.difficulty else None,
            "id": row[columns.id] if columns.id else None,
        }

    return read


def read_set(
    name: str, folder: str | Path, *, check_count: bool = True, limit: int | None = None, columns: Columns | None = None
) -> tuple[list[Problem], Path]:
    """The problems of a set, and the file they came from.

    Args:
        name: a known set, or any name with `columns`.
        folder: where known sets are looked for; `columns.file` is relative to it.
        check_count: insist on the published number of problems.
        limit: only the first so many.
        columns: layout of a set that is not known.

    Raises:
        ArgumentError: an unknown name without `columns`.
        MissingFileError: its file is not there.
        DataError: wrong number of rows, missing columns, impossible answers; names rows and counts.
    """
    if columns is None and name not in SETS:
        raise ArgumentError(
            f"eval_dataset `{name}` is unknown; {nearest(name, list(SETS))}; others go under other_sets"
        )
    path = Path(folder) / columns.file if columns else find_file(folder, name)
    kind, reader = (columns.kind, _by_columns(columns)) if columns else (SETS[name].kind, SETS[name].read)
    rows = read_rows(path)
    if columns is None and check_count and len(rows) != SETS[name].count:
        raise DataError(
            f"{path}: {len(rows)} problems, but {name} has {SETS[name].count}; download it again, "
            "or set check_counts=false if this is meant"
        )
    problems, wrong = [], []
    for index, row in enumerate(rows):
        try:
            values = reader(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong.append(f"row {index}: {error.args[0] if error.args else error}")
            continue
        options = tuple(str(option) for option in values.get("options") or ())
        if kind == "choice" and values["gold"] not in LETTERS[: len(options) or 5]:
            wrong.append(f"row {index}: answer {values['gold']!r} is no option letter")
        elif not str(values["question"]).strip() or not values["gold"]:
            wrong.append(f"row {index}: question or answer is empty")
        else:
            identity = str(values["id"]) if values.get("id") is not None else str(index)
            problems.append(
                Problem(
                    identity, str(values["question"]).strip(), values["gold"], kind, options, values.get("difficulty")
                )
            )
    if wrong:
        raise DataError(f"{path}: {sample(wrong)}; mend these rows")
    doubled = (
        sorted({p.id for p in problems if sum(q.id == p.id for q in problems) > 1})
        if len({p.id for p in problems}) < len(problems)
        else []
    )
    if doubled:
        raise DataError(f"{path}: id {sample(doubled)} is not unique; every problem needs its own")
    return problems[:limit], path
