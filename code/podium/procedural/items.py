"""One multiple-choice item: numbers drawn, options worked out, rationales told."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from podium.procedural.bank import Misconception, Task, catalogue, task_of_construct, tasks
from podium.procedural.formatting import fill, has_short_decimal
from podium.procedural.operations import OPERATIONS
from podium.procedural.programs import Number, Outcome, Program, run, tell
from podium.rng import generator

LARGEST_WRONG_ANSWER = 2000
TEST_SHARE_OF_NUMBERS = 6  # one tuple of numbers in so many belongs to the test set
MOST_DRAWS = 20_000
NEAR_MISSES = (-9, -7, -6, -5, -4, -3, -2, 2, 3, 4, 5, 6, 7, 9, 11, 15)

Numbers = dict[str, int]


@dataclass(frozen=True)
class DrawnItem:
    """A question with one wrong answer and the reason for it."""

    misconception: Misconception
    construct_name: str
    numbers: Numbers
    question: str
    right_answer: str
    wrong_answer: str
    rationale: str
    solution: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Possibilities:
    """What these numbers allow: the right outcome, every wrong value, and the misconceptions they tell apart."""

    numbers: Numbers
    right: Outcome
    taken: frozenset[Number | tuple[Number, Number]]
    identifiable: dict[int, Outcome]


def is_test_tuple(numbers: Mapping[str, int]) -> bool:
    """Whether these numbers are reserved for test questions, so that no test item occurs in training."""
    text = ",".join(map(str, numbers.values()))
    return zlib.crc32(text.encode()) % TEST_SHARE_OF_NUMBERS == 0


def number_draws(task: Task, rng: np.random.Generator, test: bool) -> Iterator[Possibilities]:
    """Endless admissible numbers for the construct from the test or the training part of its tuples."""
    construct = task.construct
    choices = list(construct.numbers.values())
    sizes = [len(values) for values in choices]
    unfruitful = 0
    while unfruitful < MOST_DRAWS:
        for row in rng.integers(0, sizes, size=(64, len(sizes))).tolist():
            unfruitful += 1
            drawn = [values[place] for values, place in zip(choices, row, strict=True)]
            numbers = dict(zip(construct.numbers, drawn, strict=True))
            if is_test_tuple(numbers) == test and (found := possibilities(task, numbers)) is not None:
                unfruitful = 0
                yield found
    raise ValueError(f"construct {construct.name!r}: no admissible numbers in {MOST_DRAWS} draws; widen its ranges")


def possibilities(task: Task, numbers: Numbers) -> Possibilities | None:
    """Work the numbers out rightly and in every faulty way; None where the question would not be a fair one.

    A misconception is identifiable when neither the right procedure nor any other misconception that
    the construct knows leads to its answer: otherwise the label of the option would be a guess.
    """
    construct = task.construct
    if construct.where is not None and not construct.where(**numbers):
        return None
    right = run(task.right, numbers)
    if right is None or not all(isinstance(result, int) for result in right.results):
        return None
    answer = right.values["_"]
    if answer == 0 or (answer < 0 and not construct.negative):
        return None
    if not -construct.largest <= answer <= construct.largest:
        return None
    outcomes = {}
    for key, program in task.faulty.items():
        tail = task.after_right.get(key)
        outcome = run(program, numbers) if tail is None else run(tail, right.values)
        if outcome is not None:
            outcomes[key] = outcome
    values = {key: identity(task, outcome.values) for key, outcome in outcomes.items()}
    times = Counter(values.values())
    times[identity(task, right.values)] += 2
    identifiable = {
        key: outcomes[key] for key, value in values.items() if times[value] == 1 and _writable(task, outcomes[key])
    }
    return Possibilities(numbers, right, frozenset(times), identifiable)


def identity(task: Task, values: Mapping[str, Number]) -> Number | tuple[Number, Number]:
    """What makes two answers the same answer: equal fractions are, whatever they look like."""
    result = values["_"]
    if task.construct.kind == "fraction":
        below = values["m"]
        return Fraction(result) / below if below else (result, below)
    if task.construct.kind == "terms":
        return (values["p"], result)
    return result


def _writable(task: Task, outcome: Outcome) -> bool:
    """Whether a pupil could write every line of this working, and the result could stand as an option."""
    construct = task.construct
    if not all(has_short_decimal(result) for result in outcome.results):
        return False
    answers = [outcome.values[name] for name in ("_", "p", "m") if name in outcome.values]
    if construct.kind != "number" and not all(isinstance(answer, int) for answer in answers):
        return False
    if construct.kind == "fraction" and outcome.values["m"] <= 0:
        return False
    lowest = -LARGEST_WRONG_ANSWER if construct.negative else 0
    return lowest <= min(answers) and max(answers) <= LARGEST_WRONG_ANSWER


def question_text(task: Task, numbers: Mapping[str, int], phrasing: int) -> str:
    """The question in one of its phrasings."""
    return fill(task.construct.stems[phrasing], numbers)


def answer_text(task: Task, values: Mapping[str, Number]) -> str:
    """The answer as an option shows it."""
    return _tidy(task, fill(task.construct.answer, values), values)


def plain_answer(task: Task, values: Mapping[str, Number]) -> str:
    """The answer as a rationale says it, without LaTeX."""
    return _tidy(task, fill(task.construct.plain, values), values)


def _tidy(task: Task, text: str, values: Mapping[str, Number]) -> str:
    """Write an expression as a teacher would: no ``+ 0``, no ``1x``."""
    if task.construct.kind != "terms":
        return text
    if values["_"] == 0:
        text = text.replace(" + 0", "").replace(" - 0", "")
    return text.replace("1x", "x") if values["p"] == 1 else text


def rationale(task: Task, misconception: Misconception, numbers: Mapping[str, int]) -> str:
    """The faulty working in a pupil's words: first what was done, then the sums, last the wrong answer.

    A mistake made after the right working is told from the right answer on.
    """
    program = task.faulty[misconception.misconception_id]
    follows = len(program) > len(task.right) and program[: len(task.right)] == task.right
    skipped = len(tell(task.right, numbers)[0]) if follows else 0
    return _told(task, OPERATIONS[misconception.operation].told, program, numbers, skipped)


def worked_solution(construct_name: str, numbers: Mapping[str, int]) -> str:
    """The right working of a construct with these numbers, in the same style as the rationales."""
    task = task_of_construct(construct_name)
    return _told(task, "Followed every step", task.right, numbers)


def _told(task: Task, opening: str, program: Program, numbers: Mapping[str, int], skipped: int = 0) -> str:
    lines, values = tell(program, numbers)
    lines = lines[skipped:]
    answer = plain_answer(task, values)
    if not lines or not lines[-1].endswith(f" {answer}"):
        lines.append(f"so {answer}")
    return f"{opening}: {', '.join(lines)}."


def near_misses(
    task: Task, found: Possibilities, rng: np.random.Generator, count: int, avoid: Collection[str]
) -> list[str]:
    """Wrong options that no misconception of the construct explains."""
    options: list[str] = []
    for place in rng.permutation(len(NEAR_MISSES)).tolist():
        if len(options) == count:
            break
        values = dict(found.right.values)
        values["_"] = values["_"] + NEAR_MISSES[place]
        if values["_"] == 0 or (values["_"] < 0 and not task.construct.negative):
            continue
        text = answer_text(task, values)
        if identity(task, values) not in found.taken and text not in avoid and text not in options:
            options.append(text)
    if len(options) < count:
        raise ValueError(f"construct {task.construct.name!r}: too few near misses for {found.numbers}")
    return options


def draw_item(misconception_id: int, seed: int, draw: int = 0) -> DrawnItem:
    """One item in which the misconception shows; successive draws go round the constructs that know it."""
    rng = generator(seed, "item", misconception_id, draw)
    able = [task for task in tasks() if misconception_id in task.faulty]
    task = able[draw % len(able)]
    for tries, found in enumerate(number_draws(task, rng, test=False)):
        if misconception_id in found.identifiable:
            return drawn_item(task, found, misconception_id, rng)
        if tries > MOST_DRAWS:
            break
    name = catalogue()[misconception_id].name
    raise ValueError(
        f"{name!r} never shows in construct {task.construct.name!r}; give it other numbers or leave it out"
    )


def drawn_item(task: Task, found: Possibilities, misconception_id: int, rng: np.random.Generator) -> DrawnItem:
    """The item these numbers make for one of the misconceptions they show."""
    others = [key for key in found.identifiable if key != misconception_id]
    shown = [misconception_id, *rng.permutation(others)[:1].tolist()]
    options = [answer_text(task, found.right.values)]
    options += [answer_text(task, found.identifiable[key].values) for key in shown]
    options += near_misses(task, found, rng, 4 - len(options), options)
    misconception = catalogue()[misconception_id]
    return DrawnItem(
        misconception=misconception,
        construct_name=task.construct.name,
        numbers=found.numbers,
        question=question_text(task, found.numbers, int(rng.integers(len(task.construct.stems)))),
        right_answer=options[0],
        wrong_answer=options[1],
        rationale=rationale(task, misconception, found.numbers),
        solution=worked_solution(task.construct.name, found.numbers),
        options=tuple(options),
    )
