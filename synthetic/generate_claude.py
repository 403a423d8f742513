"""Have a model write multiple-choice questions for clusters of confusable misconceptions.

    python synthetic/generate_claude.py --config-path conf/synthetic/conf_gen_claude.yaml [plan=true] [key=value ...]

Reads an Eedi folder and diverse_clusters.json, writes drafts.parquet. Questions of the validation fold and of the test
set (and copies of them) are never shown. Rounds go on until every misconception has its wanted number of wrong options,
the rounds are used up or the money is; the same command goes on where it stopped and pays for nothing twice.
"""

from collections import Counter
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field
from pydantic.dataclasses import dataclass

from podium import config, contracts, rng
from podium.intake import ANSWER, LETTERS, MISCONCEPTION
from podium.synthetic import checks, runner, tables
from podium.synthetic.command import main
from podium.synthetic.settings import STRICT, Dollars, Endpoint, Pace, Positive
from podium.synthetic.work import Request, address, strict_schema

PROMPT_VERSION = "generate-1"
SYSTEM = """You write multiple-choice mathematics questions for pupils aged 10 to 16. A question has one right option and \
three wrong ones. A wrong option is worth having when a pupil with one particular misconception, and otherwise careful \
work, arrives at exactly that answer.

For every question:
1. Choose a construct (what is tested) in which at least one of the listed misconceptions shows itself.
2. Work the question out properly and write the working in Solution.
3. For each wrong option, work the question out the way a pupil with the misconception would. Keep the option only if the \
result differs from the right answer and from the other options.
4. Put the exact name of the misconception, copied from the list, beside the option it produces. Leave the name empty for \
the right option and for wrong options that no listed misconception explains. Use no name that is not in the list.

Write formulae in LaTeX between \\( and \\). Let numbers, context and wording differ from the reference questions and among \
your own: a question with a reference question's numbers is of no use. Do not refer to pictures."""


class Question(BaseModel):
    """One question, as the model answers."""

    SubjectName: Annotated[str, Field(min_length=1)]
    ConstructName: Annotated[str, Field(min_length=1)]
    QuestionText: Annotated[str, Field(min_length=5)]
    Solution: str
    AnswerAText: str
    AnswerBText: str
    AnswerCText: str
    AnswerDText: str
    CorrectAnswer: Literal["A", "B", "C", "D"]
    MisconceptionAName: str
    MisconceptionBName: str
    MisconceptionCName: str
    MisconceptionDName: str


class Answer(BaseModel):
    """All questions of a request."""

    questions: Annotated[list[Question], Field(min_length=1, max_length=20)]


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_gen_claude.yaml."""

    data_dir: str
    questions: str | None
    clusters: str
    output_dir: str
    validation_fold: int | None
    target_unseen: Positive
    target_seen: Annotated[int, Field(ge=0)]
    questions_per_request: Annotated[int, Field(ge=1, le=20)]
    max_rounds: Positive
    references_per_cluster: Annotated[int, Field(ge=0, le=20)]
    many_shot_examples: Annotated[int, Field(ge=0, le=500)]
    seed: int
    plan: bool
    mode: Literal["batch", "realtime"]
    max_usd: Dollars
    ledger: str
    prices: str
    endpoint: Endpoint
    pace: Pace


def plain(name: str) -> str:
    """A name as it is compared: models change case, spacing and full stops."""
    return " ".join(name.casefold().split()).rstrip(".")


def options_of(question: Question) -> dict[str, str]:
    """Letter -> option text."""
    return {letter: getattr(question, f"Answer{letter}Text") for letter in LETTERS}


def problem(question: Question, allowed: set[str]) -> str | None:
    """What is wrong with a question, or None.

    Args:
        question: the question.
        allowed: names of the cluster, as `plain` gives them.
    """
    options = options_of(question)
    names = {letter: plain(getattr(question, f"Misconception{letter}Name")) for letter in LETTERS}
    if found := checks.options_problem(options):
        return found
    if names[question.CorrectAnswer]:
        return f"the right option {question.CorrectAnswer} carries a misconception"
    if strange := [letter for letter, name in names.items() if name and name not in allowed]:
        return f"the misconception of option {strange[0]} is not in the list: {names[strange[0]][:80]!r}"
    if not any(names.values()):
        return "no wrong option carries a misconception"
    carried = [name for name in names.values() if name]
    if len(set(carried)) < len(carried):
        return "two options carry the same misconception"
    for text in (question.QuestionText, *options.values()):
        if found := checks.formula_problem(text):
            return found
    return checks.key_problem(question.QuestionText, options, question.CorrectAnswer)


def check(request: Request, answer: Answer, allowed: dict[str, set[str]]) -> None:
    """Refuse an answer with any unusable question. Raises ValueError with the first reason."""
    for number, question in enumerate(answer.questions, start=1):
        if found := problem(question, allowed[request.user]):
            raise ValueError(f"question {number}: {found}")


def references(
    shown: pd.DataFrame, names: dict[int, str], cluster: list[int], count: int, seed: int, place: int
) -> str:
    """Up to `count` questions that carry a misconception of the cluster; other labels are blanked."""
    carries = pd.Series(False, index=shown.index)
    for letter, label in zip(LETTERS, MISCONCEPTION, strict=True):
        carries |= shown[label].isin(cluster) & (shown["CorrectAnswer"] != letter)
    rows = shown[carries].to_dict("records")
    chosen = [rows[i] for i in rng.permutation(len(rows), seed, "references", place)[:count]]
    return tables.as_json_lines([tables.shown_question(row, names, set(cluster)) for row in chosen])


def user_text(cluster_names: list[tuple[str, int]], reference: str, count: int, turn: int) -> str:
    """The part of the prompt that differs from request to request."""
    listed = "\n".join(f"- [needs {need}] {name}" for name, need in cluster_names)
    seen = (
        f"Reference questions that show some of them (other labels are left out):\n{reference}\n\n" if reference else ""
    )
    return (
        f"Misconceptions, with how many more wrong options each needs:\n{listed}\n\n{seen}"
        f"Write {count} new questions, serving first the misconceptions that need most. This is set {turn + 1}: "
        f"choose constructs, contexts and numbers that sets before it are unlikely to have used."
    )


def run(settings: Settings) -> None:
    """Ask, check, write."""
    folder = tables.read_data(settings.data_dir, settings.questions)
    names = dict(zip(folder.mapping["MisconceptionId"].astype(int), folder.mapping["MisconceptionName"], strict=True))
    by_name = {plain(name): key for key, name in names.items()}
    clusters = tables.read_clusters(settings.clusters, set(names))
    shown = tables.showable(folder, settings.validation_fold)
    have = tables.labelled_options(shown)
    target = {key: settings.target_seen if key in have.index else settings.target_unseen for key in names}
    prefix = ""
    if settings.many_shot_examples:
        picks = rng.permutation(len(shown), settings.seed, "many-shot")[: settings.many_shot_examples]
        rows = shown.iloc[sorted(picks)].to_dict("records")
        prefix = "Examples of good questions:\n" + tables.as_json_lines(
            [tables.shown_question(row, names, None) for row in rows]
        )
    schema = strict_schema(Answer)
    parameters = runner.parameters(settings.endpoint, f"{PROMPT_VERSION}-{settings.many_shot_examples}")
    reference = {
        place: references(shown, names, cluster, settings.references_per_cluster, settings.seed, place)
        for place, cluster in enumerate(clusters)
    }
    covered: Counter[int] = Counter()
    drafts: list[dict] = []
    last: runner.Run | None = None
    with contracts.output_folder(settings.output_dir) as output:
        for turn in range(settings.max_rounds):
            requests: dict[str, Request] = {}
            allowed: dict[str, set[str]] = {}
            places: dict[str, int] = {}
            # clusters with most unseen misconceptions first, so that a spent budget has served them
            short = {place: sum(covered[key] < target[key] for key in keys) for place, keys in enumerate(clusters)}
            unseen = {place: sum(key not in have.index for key in keys) for place, keys in enumerate(clusters)}
            for place in sorted((p for p in short if short[p]), key=lambda p: (-unseen[p], -short[p], p)):
                need = [(names[key], max(0, target[key] - covered[key])) for key in clusters[place]]
                need.sort(key=lambda pair: -pair[1])
                user = user_text(need, reference[place], settings.questions_per_request, turn)
                label = f"cluster-{place}-round-{turn}"
                requests[label] = Request(
                    settings.endpoint.provider,
                    settings.endpoint.model,
                    PROMPT_VERSION,
                    SYSTEM,
                    prefix,
                    user,
                    schema,
                    parameters,
                    turn,
                )
                allowed[user] = {plain(name) for name, _ in need}
                places[label] = place
            if not requests:
                break
            last = runner.run_stage(
                "generate",
                requests,
                Answer,
                lambda request, answer, allowed=allowed: check(request, answer, allowed),
                endpoint=settings.endpoint,
                pace=settings.pace,
                mode=settings.mode,
                max_usd=settings.max_usd,
                plan=settings.plan,
                ledger_path=settings.ledger,
                prices_path=settings.prices,
            )
            if last is None:
                print(f"plan of the first of at most {settings.max_rounds} rounds; nothing was sent")
                return
            for label, answer in last.answers.items():
                for number, question in enumerate(answer.questions):
                    draft = draft_row(question, by_name, places[label], settings.endpoint.model)
                    drafts.append({"draft_id": f"{address(requests[label])[:16]}-{number}", **draft})
                    covered.update(int(draft[name]) for name in MISCONCEPTION if draft[name] is not None)
            if last.short_of_money:
                break
        frame = pd.DataFrame(drafts, columns=[column.name for column in tables.DRAFTS.columns])
        frame[MISCONCEPTION] = frame[MISCONCEPTION].astype("Int64")
        contracts.write_table(frame, output / "drafts.parquet", tables.DRAFTS)
        reached = sum(covered[key] >= target[key] for cluster in clusters for key in cluster)
        facts = {"prompt_version": PROMPT_VERSION, "targets_reached": reached, "targets": sum(map(len, clusters))}
        contracts.write_manifest(
            output,
            stage="generate_claude",
            config_digest=config.digest(settings, ("output_dir", "max_usd", "plan", "pace")),
            inputs={"data": settings.data_dir, "clusters": settings.clusters},
            rows={"drafts": len(frame)},
            facts=facts,
        )
    print(f"{len(frame)} drafts; {reached} of {facts['targets']} misconceptions have their wanted number of options")
    if last is not None:
        runner.finish(last, "generate", settings.pace)


def draft_row(question: Question, by_name: dict[str, int], cluster: int, model: str) -> dict:
    """A checked question as a row of the drafts table, without its id."""
    row: dict = {"cluster": cluster, "model": model}
    for column in ("SubjectName", "ConstructName", "QuestionText", "CorrectAnswer", "Solution", *ANSWER):
        row[column] = getattr(question, column).strip()
    for letter, label in zip(LETTERS, MISCONCEPTION, strict=True):
        name = plain(getattr(question, f"Misconception{letter}Name"))
        row[label] = by_name[name] if name else None
    return row


if __name__ == "__main__":
    main(Settings, run, __doc__)
