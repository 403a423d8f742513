"""The whole bank as tables in the layout of the Eedi competition, and writing them to a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from podium.contracts import atomic_file
from podium.procedural.bank import Task, catalogue, tasks
from podium.procedural.items import Possibilities, answer_text, near_misses, number_draws, question_text, rationale
from podium.procedural.splits import Plan, make_plan
from podium.rng import generator

LETTERS = "ABCD"
LABELS_A_QUESTION = {1: 0.10, 2: 0.55, 3: 0.35}  # 2.25 of 3 wrong options carry a misconception
UNSEEN_QUESTION_SHARE = 0.84  # with one unseen option each, 0.84 / 2.25 = 37 % of the labelled rows
MOST_TRIES = 4000
MOST_REPEATS = 50


@dataclass(frozen=True)
class GeneratedBank:
    """The tables; ``test_key`` (with the rationale, to score generated ones) and ``train`` alone hold the labels."""

    train: pd.DataFrame
    test: pd.DataFrame
    test_key: pd.DataFrame
    mapping: pd.DataFrame
    folds: pd.DataFrame
    pairs: pd.DataFrame
    rationales: pd.DataFrame


@dataclass(frozen=True)
class _Option:
    text: str
    misconception_id: int | None = None
    rationale: str = ""
    right: bool = False


@dataclass(frozen=True)
class _Question:
    task: Task
    text: str
    options: list[_Option]


def generate(questions: int, test_questions: int, seed: int) -> GeneratedBank:
    """Draw the training and the test questions; the same arguments give the same tables."""
    if questions < 1 or test_questions < 1:
        raise ValueError(f"questions={questions} and test_questions={test_questions} must both be at least 1")
    plan = make_plan(seed)
    train = _draw_questions(questions, plan, seed, test=False)
    test = _draw_questions(test_questions, plan, seed, test=True)
    train_table, pairs, rationales = _tables(train, first_id=0)
    test_table, test_pairs, told = _tables(test, first_id=len(train))
    key = test_pairs[["query_id", "MisconceptionId"]].merge(told, on="query_id")
    key = key.rename(columns={"query_id": "QuestionId_Answer"})
    folds = pd.DataFrame(
        {
            "QuestionId": train_table["QuestionId"],
            "kfold": train_table["ConstructId"].map(plan.fold_of_construct).astype("int64"),
        }
    )
    mapping = pd.DataFrame(
        [(entry.misconception_id, entry.name) for entry in catalogue()],
        columns=["MisconceptionId", "MisconceptionName"],
    )
    test_table = test_table.drop(columns=[f"Misconception{letter}Id" for letter in LETTERS])
    return GeneratedBank(train_table, test_table, key, mapping, folds, pairs, rationales)


def write_bank(bank: GeneratedBank, output_dir: str | Path) -> None:
    """Write train.csv, test.csv, test_key.csv, misconception_mapping.csv, folds.parquet, pair.csv, synthetic.csv."""
    folder = Path(output_dir)
    tables = {
        "train.csv": bank.train,
        "test.csv": bank.test,
        "test_key.csv": bank.test_key,
        "misconception_mapping.csv": bank.mapping,
        "pair.csv": bank.pairs,
        "synthetic.csv": bank.rationales,
    }
    for name, table in tables.items():
        with atomic_file(folder / name) as file:
            table.to_csv(file, index=False)
    with atomic_file(folder / "folds.parquet") as file:
        bank.folds.to_parquet(file, index=False)


def _draw_questions(count: int, plan: Plan, seed: int, test: bool) -> list[_Question]:
    """Equally many questions a construct, in an order that says nothing about it."""
    purpose = "test" if test else "train"
    order = generator(seed, purpose, "order of questions")
    turns = np.concatenate([order.permutation(len(tasks())) for _ in range(count // len(tasks()) + 1)])[:count]
    amounts = Counter(turns.tolist())
    drawn = {
        task.construct_id: _questions_of(task, amounts[task.construct_id], plan, seed, test)
        for task in tasks()
        if amounts[task.construct_id]
    }
    iterators: dict[int, Iterator[_Question]] = {key: iter(value) for key, value in drawn.items()}
    return [next(iterators[key]) for key in order.permutation(turns).tolist()]


def _questions_of(task: Task, count: int, plan: Plan, seed: int, test: bool) -> list[_Question]:
    """Questions of one construct, its misconceptions occurring about equally often."""
    rng = generator(seed, "test" if test else "train", "questions of", task.construct_id)
    unseen = plan.test_only if test else plan.validation_only
    if not test and plan.fold_of_construct[task.construct_id] != 0:
        unseen = frozenset()
    held_out = plan.validation_only | plan.test_only
    seen_here = [key for key in task.faulty if key not in held_out]
    unseen_here = [key for key in task.faulty if key in unseen]
    draws = number_draws(task, rng, test)
    used = dict.fromkeys(seen_here, 0)
    texts: set[str] = set()
    questions = []
    amounts = rng.choice(list(LABELS_A_QUESTION), size=count, p=list(LABELS_A_QUESTION.values())).tolist()
    for labels in amounts:
        wanted = None
        if unseen_here and rng.random() < UNSEEN_QUESTION_SHARE:
            wanted = unseen_here[int(rng.integers(len(unseen_here)))]
        found, text = _fitting_numbers(task, draws, rng, labels, wanted, seen_here, texts)
        texts.add(text)
        free = [key for key in seen_here if key in found.identifiable]
        jitter = rng.random(len(free)).tolist()
        ranked = sorted(zip(free, jitter, strict=True), key=lambda pair: used[pair[0]] + pair[1])
        chosen = [] if wanted is None else [wanted]
        chosen += [key for key, _ in ranked][: labels - len(chosen)]
        for key in chosen:
            if key in used:
                used[key] += 1
        questions.append(_Question(task, text, _options(task, found, chosen, rng)))
    return questions


def _fitting_numbers(
    task: Task,
    draws: Iterator[Possibilities],
    rng: np.random.Generator,
    labels: int,
    wanted: int | None,
    seen_here: list[int],
    texts: set[str],
) -> tuple[Possibilities, str]:
    """Numbers that tell enough misconceptions apart, in a wording not used yet while there is one."""
    repeats = 0
    for tries, found in enumerate(draws):
        if tries > MOST_TRIES:
            break
        if wanted is not None and wanted not in found.identifiable:
            continue
        if sum(key in found.identifiable for key in seen_here) < labels:
            continue
        text = question_text(task, found.numbers, int(rng.integers(len(task.construct.stems))))
        if text not in texts or repeats >= MOST_REPEATS:
            return found, text
        repeats += 1
    name = "any misconceptions" if wanted is None else repr(catalogue()[wanted].name)
    raise ValueError(f"construct {task.construct.name!r}: no numbers show {name} in {MOST_TRIES} draws")


def _options(task: Task, found: Possibilities, chosen: list[int], rng: np.random.Generator) -> list[_Option]:
    options = [_Option(answer_text(task, found.right.values), right=True)]
    for key in chosen:
        text = answer_text(task, found.identifiable[key].values)
        options.append(_Option(text, key, rationale(task, catalogue()[key], found.numbers)))
    shown = {option.text for option in options}
    options += [_Option(text) for text in near_misses(task, found, rng, len(LETTERS) - len(options), shown)]
    return [options[place] for place in rng.permutation(len(LETTERS)).tolist()]


def _tables(questions: list[_Question], first_id: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The question table with its labels, the labelled rows, and their rationales."""
    rows, pairs, rationales = [], [], []
    for question_id, question in enumerate(questions, start=first_id):
        task, options = question.task, question.options
        right = next(option for option in options if option.right)
        row = {
            "QuestionId": question_id,
            "ConstructId": task.construct_id,
            "ConstructName": task.construct.name,
            "SubjectId": task.subject_id,
            "SubjectName": task.context.subject,
            "CorrectAnswer": LETTERS[options.index(right)],
            "QuestionText": question.text,
        }
        row |= {f"Answer{letter}Text": option.text for letter, option in zip(LETTERS, options, strict=True)}
        row |= {
            f"Misconception{letter}Id": option.misconception_id for letter, option in zip(LETTERS, options, strict=True)
        }
        rows.append(row)
        lettered = "\n".join(f"{letter}. {option.text}" for letter, option in zip(LETTERS, options, strict=True))
        for letter, option in zip(LETTERS, options, strict=True):
            if option.misconception_id is None:
                continue
            query_id = f"{question_id}_{letter}"
            pairs.append(
                {
                    "query_id": query_id,
                    "QuestionId": question_id,
                    "ConstructName": task.construct.name,
                    "SubjectName": task.context.subject,
                    "QuestionText": question.text,
                    "CorrectAnswerText": right.text,
                    "InCorrectAnswerText": option.text,
                    "AllOptionText": lettered,
                    "MisconceptionId": option.misconception_id,
                    "MisconceptionName": catalogue()[option.misconception_id].name,
                }
            )
            rationales.append({"query_id": query_id, "Explanation": option.rationale})
    table = pd.DataFrame(rows)
    for letter in LETTERS:
        table[f"Misconception{letter}Id"] = table[f"Misconception{letter}Id"].astype("Int64")
    return table, pd.DataFrame(pairs), pd.DataFrame(rationales)
