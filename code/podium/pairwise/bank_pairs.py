"""Pairs from the misconception bank: the right working against a faulty one, style and length being a nuisance.

Right and faulty working have equally many lines and equal character counts (every feature of `features.text_features`), and
every response is dressed by a writer drawn for it alone. So neither length nor looks nor counting signs tells which
one is right; reading does. Labels are wrong on purpose in some of the training pairs only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from podium import contracts, rng
from podium.pairwise.features import text_features
from podium.pairwise.pairs import prompt_key
from podium.procedural.bank import Task, catalogue, tasks
from podium.procedural.items import Numbers, number_draws, question_text
from podium.procedural.operations import OPERATIONS
from podium.procedural.programs import tell

SOURCE = "bank"
DRAWS_AT_ONCE = 64
FITTING_SHARE = 0.25
"""Constructs in which fewer of the first draws have a faulty working that looks like the right one are left out."""
WRITERS: dict[str, tuple[str, str, str, list[str]]] = {
    "terse": ("", ", ", "", ["English"]),
    "lines": ("", "\n", "", ["English"]),
    "bullets": ("- ", "\n- ", "", ["English"]),
    "bold": ("**", ", then ", "**", ["English"]),
    "chatty": ("Sure! ", ", then ", ". Hope it helps!", ["English"]),
    "doubtful": ("", ", ", " I think, but do check", ["English"]),
    "german": ("Klar: ", ", dann ", ". Fertig!", ["German"]),
}
"""Writer -> text before, between and after the lines of working, and the language that the writer knows."""


def dressed(lines: list[str], writer: str) -> str:
    """The working as this writer puts it."""
    before, between, after, _ = WRITERS[writer]
    return before + between.join(lines) + after


@dataclass(frozen=True)
class MatchedWorkings:
    """Lines of the right working, and of the faulty ones that look like it, by misconception id; never none."""

    numbers: Numbers
    right: list[str]
    wrong: dict[int, list[str]]


def matched_workings(task: Task, seed: int, test: bool) -> Iterator[MatchedWorkings | None]:
    """Without end, one item a draw of numbers: None where every faulty working differs from the right one at a glance."""
    draws = number_draws(task, rng.generator(seed, "pairs", "test" if test else "train", task.construct_id), test)
    while True:
        portion: list[MatchedWorkings] = []
        for found in islice(draws, DRAWS_AT_ONCE):
            right = tell(task.right, found.numbers)[0]
            told = {key: tell(task.faulty[key], found.numbers)[0] for key in found.identifiable}
            alike = {key: lines for key, lines in told.items() if len(lines) == len(right)}
            portion.append(MatchedWorkings(found.numbers, right, alike))
        texts = [dressed(lines, "terse") for one in portion for lines in (one.right, *one.wrong.values())]
        looks = iter(map(bytes, text_features(texts, np.zeros(len(texts), dtype=bool))))
        for one in portion:
            wanted = next(looks)
            wrong = {key: lines for key, lines in one.wrong.items() if next(looks) == wanted}
            yield MatchedWorkings(one.numbers, one.right, wrong) if wrong else None


def usable_tasks(seed: int) -> Iterator[Task]:
    """Constructs with enough matched workings, for numbers of training and of test alike."""
    for task in tasks():
        firsts = [islice(matched_workings(task, seed, test), DRAWS_AT_ONCE) for test in (False, True)]
        if all(sum(one is not None for one in first) >= FITTING_SHARE * DRAWS_AT_ONCE for first in firsts):
            yield task


def draw_pairs(
    count: int, seed: int, *, test: bool, label_noise: float, constructs: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs with their labels, and a rationale a pair: what the faulty one did.

    Args:
        count: pairs.
        seed: of everything that is drawn.
        test: numbers from the test part of the bank, which training pairs never show.
        label_noise: share of labels that are turned round.
        constructs: only the first so many of the constructs that have such pairs; None takes all.

    Returns:
        rows as `pairs.PAIRS` without `fold`, and rows of `pairs.PAIR_RATIONALES`.
    """
    purpose = "test" if test else "train"
    sources = [
        (task, filter(None, matched_workings(task, seed, test))) for task in islice(usable_tasks(seed), constructs)
    ]
    rows: list[dict[str, object]] = []
    told: list[dict[str, str]] = []
    for turn in range(count):
        task, workings = sources[turn % len(sources)]
        name = f"{SOURCE}-{purpose}-{turn}"
        row, rationale = _pair(task, next(workings), label_noise, rng.generator(seed, "pair", purpose, turn))
        rows.append({"pair_id": name, **row})
        told.append({"pair_id": name, "text": rationale})
    return pd.DataFrame(rows), pd.DataFrame(told)


def _pair(
    task: Task, workings: MatchedWorkings, label_noise: float, drawn: np.random.Generator
) -> tuple[dict[str, object], str]:
    writers = [list(WRITERS)[at] for at in drawn.integers(len(WRITERS), size=2)]
    wrong_id = int(drawn.choice(sorted(workings.wrong)))
    wrong = workings.wrong[wrong_id]
    right_first = bool(drawn.random() < 0.5)
    is_flipped = bool(drawn.random() < label_noise)
    first, second = (workings.right, wrong) if right_first else (wrong, workings.right)
    prompt = question_text(task, workings.numbers, int(drawn.integers(len(task.construct.stems))))
    row: dict[str, object] = {
        "prompt_id": prompt_key(prompt),
        "prompt": prompt,
        "response_a": dressed(first, writers[0]),
        "response_b": dressed(second, writers[1]),
        "winner": "model_a" if right_first != is_flipped else "model_b",
        "model_a": writers[0],
        "model_b": writers[1],
        "language": WRITERS[writers[0]][3][0],
        "source": SOURCE,
    }
    return row, f"{OPERATIONS[catalogue()[wrong_id].operation].told}: {', '.join(wrong)}"


def write_bank_pairs(
    folder: str | Path, *, train: int, unjudged: int, test: int, label_noise: float, seed: int, constructs: int | None
) -> dict[str, int]:
    """Write train.jsonl, unjudged.jsonl (more training pairs, their winners left out), test.jsonl, rationales.jsonl.

    Test labels are free of noise; no test question is asked in training.

    Returns:
        rows a file.
    """
    folder = Path(folder)
    drawn, told = draw_pairs(train + unjudged, seed, test=False, label_noise=label_noise, constructs=constructs)
    asked, _ = draw_pairs(test, seed, test=True, label_noise=0.0, constructs=constructs)
    judged, rest = drawn.iloc[:train], drawn.iloc[train:].assign(winner=None, source=f"{SOURCE}_unjudged")
    files = {"train": judged, "unjudged": rest, "test": asked, "rationales": told.iloc[:train]}
    for name, frame in files.items():
        frame = frame.rename(columns={"pair_id": "id"}) if name != "rationales" else frame
        lines = frame.to_json(orient="records", lines=True, force_ascii=False)
        contracts.write_text(folder / f"{name}.jsonl", lines)
    return {name: len(frame) for name, frame in files.items()}
