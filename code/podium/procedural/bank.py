"""The catalogue: every context crossed with the faulty operations that pupils bring to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from podium.procedural import (
    contexts_algebra,
    contexts_geometry,
    contexts_measure,
    contexts_number,
    contexts_proportion,
)
from podium.procedural.constructs import Construct, Context
from podium.procedural.operations import OPERATIONS, Operation, faulty_program
from podium.procedural.programs import Program, parse

CONTEXTS: tuple[Context, ...] = (
    *contexts_number.CONTEXTS,
    *contexts_proportion.CONTEXTS,
    *contexts_algebra.CONTEXTS,
    *contexts_geometry.CONTEXTS,
    *contexts_measure.CONTEXTS,
)


@dataclass(frozen=True)
class Misconception:
    """One faulty operation in one context; its id is its place in the catalogue."""

    misconception_id: int
    name: str
    context: str
    operation: str


@dataclass(frozen=True)
class Task:
    """A construct made ready to run: its right program and the faulty ones, by misconception id.

    ``after_right`` holds what is left of those that begin with all the right steps, which need running once only.
    """

    construct_id: int
    subject_id: int
    context: Context
    construct: Construct
    right: Program
    faulty: dict[int, Program]
    after_right: dict[int, Program]


def misconception_name(operation: Operation, context: Context) -> str:
    """The same two phrases for every combination, so that an unseen name is made of words seen before."""
    return f"{operation.phrase} when {context.phrase}"


@cache
def _catalogue() -> tuple[Misconception, ...]:
    pairs = [(context, OPERATIONS[key]) for context in CONTEXTS for key in context.operations]
    return tuple(
        Misconception(number, misconception_name(operation, context), context.phrase, operation.key)
        for number, (context, operation) in enumerate(pairs)
    )


def catalogue() -> list[Misconception]:
    """All misconceptions in the order of their ids."""
    return list(_catalogue())


@cache
def tasks() -> tuple[Task, ...]:
    """Every construct with its programs, in the order of the construct ids."""
    result: list[Task] = []
    for subject_id, context in enumerate(CONTEXTS):
        members = [entry for entry in _catalogue() if entry.context == context.phrase]
        for construct in context.constructs:
            programs = {
                entry.misconception_id: faulty_program(OPERATIONS[entry.operation], construct) for entry in members
            }
            faulty = {key: program for key, program in programs.items() if program is not None}
            right = parse(construct.program)
            after = {key: program[len(right) :] for key, program in faulty.items() if program[: len(right)] == right}
            result.append(Task(len(result), subject_id, context, construct, right, faulty, after))
    return tuple(result)


def task_of_construct(construct_name: str) -> Task:
    """The construct of that name, ready to run; raises KeyError for an unknown name."""
    task = _tasks_by_name().get(construct_name)
    if task is None:
        raise KeyError(f"no construct named {construct_name!r} in the procedural bank")
    return task


@cache
def _tasks_by_name() -> dict[str, Task]:
    return {task.construct.name: task for task in tasks()}


def misconceptions_of_construct(construct_name: str) -> list[Misconception]:
    """The misconceptions that can be held about one construct; raises KeyError for an unknown name."""
    return [_catalogue()[key] for key in task_of_construct(construct_name).faulty]
