"""Turn drafts and judgements into the silver data set that the trainers read.

    python synthetic/curate.py --config-path conf/synthetic/conf_curate.yaml [key=value ...]

Writes train.csv, misconception_mapping.csv and pair.csv in the Eedi layout, dropped.csv (every dropped draft with step and
reason), report.json and report.html. Copies of validation and test questions never pass.
"""

from typing import Annotated

import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from podium import config, contracts, intake, questions
from podium.errors import DataError
from podium.intake import MISCONCEPTION
from podium.synthetic import curation, report, tables
from podium.synthetic.command import main
from podium.synthetic.costs import summarise
from podium.synthetic.runner import PartialResult
from podium.synthetic.settings import STRICT

PAIR_COLUMNS = [
    "query_id",
    "QuestionId",
    "ConstructName",
    "SubjectName",
    "QuestionText",
    "CorrectAnswerText",
    "InCorrectAnswerText",
    "AllOptionText",
    "MisconceptionId",
    "MisconceptionName",
]


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_curate.yaml."""

    data_dir: str
    questions: str | None
    validation_fold: int | None
    drafts: str
    judgements: str
    outside_dir: str | None
    keep_score: Annotated[int, Field(ge=0, le=10)]
    first_question_id: Annotated[int, Field(ge=0)] | None
    ledger: str | None
    seed: int
    output_dir: str


def run(settings: Settings) -> None:
    """Screen, keep by score, merge, write."""
    folder = tables.read_data(settings.data_dir, settings.questions)
    drafts = contracts.read_table(settings.drafts, tables.DRAFTS)
    judgements = contracts.read_table(settings.judgements, tables.JUDGEMENTS)
    held = tables.held_out(folder, settings.validation_fold)
    shown = tables.showable(folder, settings.validation_fold)
    mapping = folder.mapping
    sieve = curation.screen(drafts, shown, held)
    curation.keep_by_score(sieve, judgements, settings.keep_score)
    facts: dict = {"keep_score": settings.keep_score}
    inputs = {"data": settings.data_dir, "drafts": settings.drafts, "judgements": settings.judgements}
    kept = sieve.rows
    if settings.outside_dir is not None:
        outside = intake.read_folder(settings.outside_dir)
        mapping, mapped = curation.merge_names(mapping, outside.mapping)
        more = curation.outside_drafts(outside.train, mapped, "outside")
        passed = curation.screen(pd.concat([kept, more], ignore_index=True), shown, held)
        facts["outside"] = {
            "misconceptions": len(mapped),
            "same": sum(
                value is not None and value in set(folder.mapping["MisconceptionId"]) for value in mapped.values()
            ),
            "unsure_dropped": sum(value is None for value in mapped.values()),
            "new": len(mapping) - len(folder.mapping),
            "questions": len(more),
        }
        sieve.dropped += passed.dropped
        sieve.funnel.append({"step": "with outside questions", "dropped": 0, "left": len(kept) + len(more)})
        sieve.funnel.append({"step": "outside screened", "dropped": len(passed.dropped), "left": len(passed.rows)})
        kept = passed.rows
        inputs["outside"] = settings.outside_dir
    used = [folder.train["QuestionId"].max()] + ([] if folder.test is None else [folder.test["QuestionId"].max()])
    first_id = int(max(used)) + 1 if settings.first_question_id is None else settings.first_question_id
    silver = curation.silver_questions(kept, folder.train, first_id)
    clash = set(silver["QuestionId"]) & set(folder.train["QuestionId"])
    if clash:
        raise DataError(f"first_question_id {first_id} runs into {len(clash)} ids of train.csv; set it to null")
    names = dict(zip(mapping["MisconceptionId"].astype(int), mapping["MisconceptionName"], strict=True))
    pairs = questions.to_queries(silver, "synthetic") if len(silver) else pd.DataFrame(columns=PAIR_COLUMNS)
    if len(silver):
        pairs = pairs[pairs["misconception_id"].notna()].rename(columns={"misconception_id": "MisconceptionId"})
        pairs = pairs.assign(MisconceptionName=pairs["MisconceptionId"].astype(int).map(names))[PAIR_COLUMNS]
    costs = summarise(settings.ledger) if settings.ledger is not None else None
    seen = set(tables.labelled_options(shown).index)
    told = report.build(sieve.funnel, sieve.dropped, judgements, silver, mapping, seen, costs, settings.seed)
    with contracts.output_folder(settings.output_dir) as output:
        contracts.write_text(output / "train.csv", silver.to_csv(index=False))
        contracts.write_text(output / "misconception_mapping.csv", mapping.to_csv(index=False))
        contracts.write_text(output / "pair.csv", pairs.to_csv(index=False))
        dropped = pd.DataFrame(sieve.dropped, columns=["draft_id", "step", "reason"])
        contracts.write_text(output / "dropped.csv", dropped.to_csv(index=False))
        contracts.write_json(output / "report.json", told)
        contracts.write_text(output / "report.html", report.as_html(told))
        labels = int(silver[MISCONCEPTION].notna().sum().sum())
        rows = {"questions": len(silver), "pairs": len(pairs), "dropped": len(dropped)}
        digest = config.digest(settings, ("output_dir", "ledger"))
        contracts.write_manifest(output, stage="curate", config_digest=digest, inputs=inputs, rows=rows, facts=facts)
    for row in sieve.funnel:
        print(f"{row['step']:28} {row['left']:7} left {row['dropped']:7} dropped")
    print(f"kept {len(silver)} questions with {labels} labelled options; {output / 'report.html'}")
    if not len(silver):
        raise PartialResult("curate: no draft passed; dropped.csv says why")


if __name__ == "__main__":
    main(Settings, run, __doc__)
