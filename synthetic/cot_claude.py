"""Have a model explain wrong answers in 5 to 6 sentences, without naming the misconception.

    python synthetic/cot_claude.py --config-path conf/synthetic/conf_cot_claude.yaml [plan=true] [key=value ...]

Reads cot_input.parquet, writes rationales.parquet (every sample) and synthetic.csv (query_id, Explanation: the first
sample, as the reasoner's trainer reads it).
"""

import sys
from collections import Counter
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field
from pydantic.dataclasses import dataclass

from podium import config, contracts
from podium.synthetic import checks, runner, tables
from podium.synthetic.command import main
from podium.synthetic.settings import STRICT, Dollars, Endpoint, Pace
from podium.synthetic.work import Request, strict_schema

PROMPT_VERSION = "rationale-1"
SYSTEM = """You explain how a pupil came to a wrong answer in a multiple-choice mathematics question. You are told which \
misconception lies behind it, and some related ones that do not.

Write 5 or 6 sentences of plain prose:
- first what the question asks, and how it is worked out properly;
- then the pupil's working, step by step with the numbers, up to exactly the wrong answer given;
- then what in this working gives the pupil's idea away, and why one or two of the related ideas would have led to \
another answer.

Describe ideas in your own words. Never quote or closely paraphrase the name of the misconception or of the related ones, \
and do not write that there is a list of them. Write for a teacher, without headings, lists or formulae on lines of their \
own."""


class Answer(BaseModel):
    """A rationale."""

    rationale: Annotated[str, Field(min_length=80, max_length=2500)]


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_cot_claude.yaml."""

    cot_input: str
    output_dir: str
    samples: Annotated[int, Field(ge=1, le=16)]
    plan: bool
    mode: Literal["batch", "realtime"]
    max_usd: Dollars
    ledger: str
    prices: str
    endpoint: Endpoint
    pace: Pace


def user_text(row: dict, sample: int) -> str:
    """The part of the prompt that differs from request to request."""
    related = "\n".join(f"- {name}" for name in row["related"])
    another = (
        "" if sample == 0 else f"\n\nThis is version {sample + 1}: choose other words and another order of thoughts."
    )
    return (
        f"Subject: {row['SubjectName']}\nConstruct: {row['ConstructName']}\nQuestion: {row['QuestionText']}\n"
        f"Options:\n{row['AllOptionText']}\nRight answer: {row['CorrectAnswerText']}\n"
        f"The pupil's answer: {row['InCorrectAnswerText']}\n\nThe misconception: {row['MisconceptionName']}\n"
        f"Related misconceptions that are not behind it:\n{related}{another}"
    )


def check(request: Request, answer: Answer, rows: dict[str, dict]) -> None:
    """Refuse rationales of another length, or that give a name away. Raises ValueError with the reason."""
    row = rows[request.user]
    count = checks.sentences(answer.rationale)
    if not 5 <= count <= 6:
        raise ValueError(f"it has {count} sentences; 5 or 6 are wanted")
    for name in (row["MisconceptionName"], *row["related"]):
        # words that the question itself uses may of course be used again
        if (words := checks.names_it(answer.rationale, name)) and not checks.names_it(row["QuestionText"], words):
            raise ValueError(f"it quotes the name of a misconception ({words!r}); describe the idea in other words")
    if found := checks.formula_problem(answer.rationale):
        raise ValueError(found)


def run(settings: Settings) -> None:
    """Ask, check, write."""
    frame = contracts.read_table(settings.cot_input, tables.COT_INPUT)
    records = frame.to_dict("records")
    schema = strict_schema(Answer)
    parameters = runner.parameters(settings.endpoint, PROMPT_VERSION)
    requests: dict[str, Request] = {}
    rows: dict[str, dict] = {}
    for row in records:
        for sample in range(settings.samples):
            user = user_text(row, sample)
            rows[user] = row
            requests[f"{row['query_id']}#{sample}"] = Request(
                settings.endpoint.provider,
                settings.endpoint.model,
                PROMPT_VERSION,
                SYSTEM,
                "",
                user,
                schema,
                parameters,
                sample,
            )
    result = runner.run_stage(
        "rationale",
        requests,
        Answer,
        lambda request, answer: check(request, answer, rows),
        endpoint=settings.endpoint,
        pace=settings.pace,
        mode=settings.mode,
        max_usd=settings.max_usd,
        plan=settings.plan,
        ledger_path=settings.ledger,
        prices_path=settings.prices,
    )
    if result is None:
        return
    told = []
    for label, answer in result.answers.items():
        query_id, _, sample = label.rpartition("#")
        told.append(
            {
                "query_id": query_id,
                "model": settings.endpoint.model,
                "sample": int(sample),
                "text": answer.rationale.strip(),
                "finish_reason": "stop",
                "n_tokens": 0,
            }
        )
    rationales = pd.DataFrame(told, columns=[column.name for column in contracts.RATIONALES.columns])
    first = rationales.sort_values("sample").drop_duplicates("query_id")[["query_id", "text"]]
    lengths = Counter(checks.sentences(text) for text in rationales["text"])
    with contracts.output_folder(settings.output_dir) as output:
        contracts.write_table(rationales, output / "rationales.parquet", contracts.RATIONALES)
        explained = first.rename(columns={"text": "Explanation"}).sort_values("query_id")
        contracts.write_text(output / "synthetic.csv", explained.to_csv(index=False))
        contracts.write_manifest(
            output,
            stage="cot_claude",
            config_digest=config.digest(settings, ("output_dir", "max_usd", "plan", "pace")),
            inputs={"cot_input": settings.cot_input},
            rows={"rationales": len(rationales), "explained": len(first)},
            facts={"prompt_version": PROMPT_VERSION, "sentences": dict(sorted(lengths.items()))},
        )
    print(f"{len(rationales)} rationales for {len(first)} of {len(records)} wrong answers")
    if not told:
        print("warning: no rationale was accepted; synthetic.csv has a header only", file=sys.stderr)
    runner.finish(result, "rationale", settings.pace)


if __name__ == "__main__":
    main(Settings, run, __doc__)
