"""One set, one mode: prompts, generation, programs, extraction, votes, verdicts; a JSONL that a rerun continues.

A record is written for every problem, also where nothing was generated. Records hold the model's texts, so that
`regrade=true` judges them again without the model.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from podium import contracts, rng
from podium.errors import DataError, sample
from podium.maths import prompts
from podium.maths.datasets import LETTERS, Problem
from podium.maths.engine import Engine, Sampling
from podium.maths.extraction import Extraction, extract, extract_program_output
from podium.maths.grading import Equivalent, Tolerance, grade
from podium.maths.quantities import parse_quantity, tidy
from podium.maths.sandbox import ProgramResult
from podium.maths.statistics import wilson

RunPrograms = Callable[[list[str]], list[ProgramResult]]


@dataclass(frozen=True)
class Judge:
    """What grading needs beside the problem: tolerance of the set, formula comparison, the sandbox."""

    tolerance: Tolerance
    equivalent: Equivalent | None
    run_programs: RunPrograms | None


# --- judging ---------------------------------------------------------------------------------------------------------


def _vote_key(answer: str | None, kind: str) -> str:
    """Answers with one key are one vote: numbers by value and unit, the rest by their text."""
    if answer is None:
        return ""
    tidied = tidy(answer)
    quantity = parse_quantity(tidied)
    if quantity is not None:
        unit = quantity.unit[0] if quantity.unit else ""
        value = quantity.value * quantity.unit[1] if quantity.unit else quantity.value
        return f"{float(value):.9g} {unit}" if abs(value) < 10**300 else str(value)
    return tidied.upper().strip("() ") if kind == "choice" else "".join(tidied.split())


def majority(answers: Sequence[str | None], kind: str) -> int:
    """Index of the first answer of the largest group; answers that are None vote only if there is nothing else."""
    keys = [_vote_key(answer, kind) for answer in answers]
    counted = [key for key in keys if key] or keys
    best = max(counted, key=lambda key: (counted.count(key), -counted.index(key)))
    return keys.index(best)


def judge(
    problem: Problem,
    mode: str,
    outputs: Sequence[str],
    runs: Sequence[tuple[str | None, ProgramResult | None]],
    how: Judge,
) -> dict[str, Any]:
    """The record of one problem.

    Args:
        problem: with its gold answer.
        mode: "cot" or "pot".
        outputs: the model's texts, one a sample.
        runs: for each text its program and that program's result; (None, None) for "cot" or where it has none.
        how: comparison.
    """
    letters = LETTERS[: len(problem.options) or 5]
    samples = []
    for output, (program, result) in zip(outputs, runs, strict=True):
        entry: dict[str, Any] = {"output": output}
        error = ""
        if mode == "pot" and result is not None:
            entry |= {"program": program, "run": asdict(result)}
            error = result.error
            found = (
                extract_program_output(result.stdout, problem.kind, letters)
                if not error
                else Extraction(None, "program error")
            )
            if not error and found.answer is None:
                error = "no output"
        else:
            error = "no program" if mode == "pot" else ""
            found = extract(output, problem.kind, letters)
        if not error and found.answer is None:
            error = "no answer"
        verdict = grade(
            found.answer,
            problem.gold,
            problem.kind,
            options=problem.options,
            tolerance=how.tolerance,
            equivalent=how.equivalent,
        )
        entry |= {"answer": found.answer, "found_by": found.method, "error": error, **verdict._asdict()}
        samples.append(entry)
    chosen = samples[majority([entry["answer"] for entry in samples], problem.kind)] if samples else None
    return {
        "id": problem.id,
        "question": problem.question,
        "options": list(problem.options),
        "gold": problem.gold,
        "kind": problem.kind,
        "difficulty": problem.difficulty,
        "mode": mode,
        "answer": chosen["answer"] if chosen else None,
        "correct": bool(chosen and chosen["correct"]),
        "method": chosen["method"] if chosen else "none",
        "reason": chosen["reason"] if chosen else "the prompt is longer than the model's context",
        "error": chosen["error"] if chosen else "prompt too long",
        "votes": sum(entry["answer"] == chosen["answer"] for entry in samples) if chosen else 0,
        "samples_correct": sum(bool(entry["correct"]) for entry in samples),
        "samples": samples,
    }


def run_and_judge(
    problems: Sequence[Problem], mode: str, outputs: Sequence[Sequence[str]], how: Judge
) -> list[dict[str, Any]]:
    """Run all programs of a batch, then judge every problem."""
    programs: list[list[str | None]] = [
        [prompts.program_in(text) if mode == "pot" else None for text in texts] for texts in outputs
    ]
    sources = [program for row in programs for program in row if program is not None]
    if sources and how.run_programs is None:
        raise DataError("programs cannot be judged without a sandbox")
    results = iter(how.run_programs(sources) if sources and how.run_programs else [])
    runs = [[(program, next(results) if program is not None else None) for program in row] for row in programs]
    return [judge(p, mode, texts, row, how) for p, texts, row in zip(problems, outputs, runs, strict=True)]


def either(program_records: Sequence[dict[str, Any]], text_records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """PoT‖CoT: the program's verdict, or the text's where the program gave none.

    Raises:
        DataError: the two modes were not run on the same problems.
    """
    texts = {record["id"]: record for record in text_records}
    if set(texts) != {record["id"] for record in program_records}:
        raise DataError(
            f"{len(program_records)} programs and {len(texts)} texts are not of the same problems; run both modes alike"
        )
    return [texts[record["id"]] if record["error"] else record for record in program_records]


# --- prompts ---------------------------------------------------------------------------------------------------------


def render(problems: Sequence[Problem], mode: str, form: str, shots: int, engine: Engine) -> list[str]:
    """Prompts of a set.

    Raises:
        DataError: chat form with a model that has no chat template.
    """
    if form == "chat" and engine.render_chat is None:
        raise DataError(
            "prompt_form=chat, but the model's tokenizer has no chat template; use prompt_form=alpaca or plain"
        )
    wrap = {"alpaca": prompts.alpaca, "plain": prompts.plain, "chat": engine.render_chat}[form]
    assert_wrap: Callable[[str], str] = wrap  # type: ignore[assignment]
    return [assert_wrap(prompts.instruction(p.question, p.options, mode, shots)) for p in problems]


def too_long(
    texts: list[str], engine: Engine, context_tokens: int | None, max_new_tokens: int, allowed: bool
) -> set[int]:
    """Indices of prompts that leave no room for `max_new_tokens`.

    Raises:
        DataError: there are some and that is not allowed; names how many, the longest and the remedies.
    """
    limit = context_tokens or engine.context_tokens
    if limit is None:
        return set()
    lengths = engine.count_tokens(texts)
    over = [index for index, length in enumerate(lengths) if length + max_new_tokens > limit]
    if over and not allowed:
        raise DataError(
            f"prompt {sample(over)} of {len(texts)}: up to {max(lengths)} tokens and max_new_tokens={max_new_tokens} exceed "
            f"the context of {limit}; lower max_new_tokens or shots, or count these as wrong with allow_too_long=true"
        )
    return set(over)


# --- the file of a set and mode --------------------------------------------------------------------------------------


def read_records(path: Path) -> list[dict[str, Any]]:
    """Complete records of a file; a line that a kill cut short is dropped.

    Raises:
        DataError: a line in the middle is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break  # no newline at its end: the write was cut short
            raise DataError(f"{path}, line {number} is not JSON; delete the file to evaluate again") from None
    return records


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a whole file atomically."""
    contracts.write_text(path, "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records))


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records))
        handle.flush()
        os.fsync(handle.fileno())


def evaluate(
    problems: Sequence[Problem],
    mode: str,
    path: Path,
    engine: Engine,
    how: Judge,
    *,
    form: str,
    shots: int,
    samples: int,
    sampling: Sampling,
    context_tokens: int | None,
    allow_too_long: bool,
    problems_per_batch: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate one set in one mode, continuing what `path` holds.

    A batch's texts depend on (seed, mode, batch) only, and a batch is kept whole or not at all; so a run that was cut
    short ends with the same file as one that was not.

    Args:
        problems: in order.
        mode: "cot" or "pot".
        path: JSONL of records.
        engine: generates.
        how: judges.
        form: prompt form, "alpaca", "chat" or "plain".
        shots: worked examples in the prompt.
        samples: texts a problem.
        sampling: how to generate; its seed is combined with the batch.
        context_tokens: overrides what the model states.
        allow_too_long: count problems whose prompt does not fit as wrong.
        problems_per_batch: how many are generated, judged and saved at a time.
        on_batch: told how many problems are done, and how many of them are right.

    Raises:
        DataError: prompts do not fit, or `path` holds something else.
    """
    texts = render(problems, mode, form, shots, engine)
    skipped = too_long(texts, engine, context_tokens, sampling.max_new_tokens, allow_too_long)
    records = read_records(path)
    whole = len(records) if len(records) == len(problems) else len(records) // problems_per_batch * problems_per_batch
    expected = [problem.id for problem in problems[: len(records)]]
    if len(records) > len(problems) or [record["id"] for record in records] != expected:
        raise DataError(f"{path} holds other problems than this set's; delete it or choose another eval_results_dir")
    records = records[:whole]
    write_records(path, records)
    for start in range(whole, len(problems), problems_per_batch):
        batch = range(start, min(start + problems_per_batch, len(problems)))
        asked = [index for index in batch if index not in skipped]
        seed = rng.key(sampling.seed, mode, start) % 2**31
        stops = tuple(f"\n{stop}" for stop in prompts.STOPS)
        settings = Sampling(sampling.max_new_tokens, sampling.temperature, sampling.top_p, seed, stops)
        generated = engine.generate([texts[i] for i in asked for _ in range(samples)], settings) if asked else []
        if len(generated) != len(asked) * samples:
            raise DataError(f"the engine returned {len(generated)} texts for {len(asked) * samples} prompts")
        outputs = {
            i: [prompts.cut_at_stops(t) for t in generated[k * samples : (k + 1) * samples]]
            for k, i in enumerate(asked)
        }
        made = run_and_judge([problems[i] for i in batch], mode, [outputs.get(i, []) for i in batch], how)
        _append(path, made)
        records += made
        if on_batch is not None:
            on_batch(len(records), sum(record["correct"] for record in records))
    return records


def regrade(problems: Sequence[Problem], mode: str, path: Path, how: Judge) -> list[dict[str, Any]]:
    """Judge the stored texts again, programs included, and replace the file.

    Raises:
        DataError: the file does not hold these problems.
    """
    old = {record["id"]: record for record in read_records(path)}
    if absent := [problem.id for problem in problems if problem.id not in old]:
        raise DataError(f"{path}: problem {sample(absent)} has no stored text; evaluate with regrade=false first")
    outputs = [[entry["output"] for entry in old[problem.id]["samples"]] for problem in problems]
    records = run_and_judge(problems, mode, outputs, how)
    write_records(path, records)
    return records


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with Wilson's 95 % interval, and how often each kind of failure occurred."""
    correct = sum(record["correct"] for record in records)
    low, high = wilson(correct, len(records))
    errors: dict[str, int] = {}
    for record in records:
        if record["error"]:
            kind = record["error"].split(":")[0]
            errors[kind] = errors.get(kind, 0) + 1
    texts = sum(len(record["samples"]) for record in records)
    return {
        "problems": len(records),
        "correct": correct,
        "accuracy": correct / len(records) if records else 0.0,
        "low": low,
        "high": high,
        "sample_accuracy": sum(record["samples_correct"] for record in records) / texts if texts else 0.0,
        "errors": dict(sorted(errors.items())),
    }
