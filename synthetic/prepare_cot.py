"""Lay out which wrong answers need a rationale, each with the misconceptions that are easily taken for its own.

    python synthetic/prepare_cot.py --config-path conf/synthetic/conf_prepare_cot.yaml [key=value ...]

Reads an Eedi folder (the competition's or curate.py's) and, if there are any, candidates of a retriever. Writes
cot_input.parquet. Rows of the validation fold are left out: a rationale is written with the label in view.
"""

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from podium import config, contracts, questions
from podium.synthetic import clusters, tables
from podium.synthetic.command import main
from podium.synthetic.settings import STRICT


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_prepare_cot.yaml."""

    data_dir: str
    questions: str | None
    validation_fold: int | None
    candidates: str | None
    related: Annotated[int, Field(ge=1, le=20)]
    most_rows: Annotated[int, Field(ge=1)] | None
    output_dir: str


def run(settings: Settings) -> None:
    """Choose rows and their related misconceptions, write."""
    folder = tables.read_data(settings.data_dir, settings.questions)
    ids = folder.mapping["MisconceptionId"].astype(int).tolist()
    names = dict(zip(ids, folder.mapping["MisconceptionName"], strict=True))
    place = {key: row for row, key in enumerate(ids)}
    near = np.argsort(-clusters.text_similarity(list(names.values())), axis=1, kind="stable")[:, : settings.related + 1]
    shown = tables.showable(folder, settings.validation_fold)
    rows = questions.to_queries(shown, "train")
    rows = rows[rows["misconception_id"].notna()]
    if settings.most_rows is not None:
        rows = rows.head(settings.most_rows)
    retrieved: dict[str, list[int]] = {}
    if settings.candidates is not None:
        candidates = contracts.read_table(settings.candidates, contracts.CANDIDATES).sort_values(["query_id", "rank"])
        retrieved = candidates.groupby("query_id")["misconception_id"].agg(list).to_dict()

    def related(query_id: str, gold: int) -> list[str]:
        by_text = [ids[row] for row in near[place[gold]].tolist()]
        order = dict.fromkeys(retrieved.get(query_id, [])[: 2 * settings.related] + by_text)
        return [names[key] for key in order if key != gold][: settings.related]

    gold = rows["misconception_id"].astype(int)
    frame = rows[[column.name for column in tables.COT_INPUT.columns if column.name in rows.columns]].assign(
        MisconceptionName=gold.map(names),
        related=pd.Series(
            [related(q, g) for q, g in zip(rows["query_id"], gold, strict=True)], index=rows.index, dtype=object
        ),
    )
    with contracts.output_folder(settings.output_dir) as output:
        contracts.write_table(frame, output / "cot_input.parquet", tables.COT_INPUT)
        inputs = {"data": settings.data_dir}
        if settings.candidates is not None:
            inputs["candidates"] = settings.candidates
        digest = config.digest(settings, ("output_dir",))
        rows_written = {"cot_input": len(frame)}
        contracts.write_manifest(output, stage="prepare_cot", config_digest=digest, inputs=inputs, rows=rows_written)
    print(f"{len(frame)} wrong answers of {shown['QuestionId'].nunique()} questions, {settings.related} related each")


if __name__ == "__main__":
    main(Settings, run, __doc__)
