"""Group misconceptions that are easily taken for one another, and draw the map.

    python synthetic/cluster_misconceptions.py --config-path conf/synthetic/conf_clusters.yaml [key=value ...]

Reads an Eedi folder and, if there are any, candidates of a retriever. Writes diverse_clusters.json (lists of
misconception ids), clusters.parquet (with names), map.png and manifest.json.
"""

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from podium import config, contracts
from podium.synthetic import clusters, tables
from podium.synthetic.command import main
from podium.synthetic.settings import STRICT, Positive, Share


@dataclass(config=STRICT, kw_only=True)
class Settings:
    """conf/synthetic/conf_clusters.yaml."""

    data_dir: str
    questions: str | None
    validation_fold: int | None
    candidates: str | None
    co_retrieval_weight: Share
    depth: Positive
    most_per_cluster: Annotated[int, Field(ge=2, le=20)]
    output_dir: str


def run(settings: Settings) -> None:
    """Cluster and write."""
    folder = tables.read_data(settings.data_dir, settings.questions)
    ids = folder.mapping["MisconceptionId"].astype(int).tolist()
    names = folder.mapping["MisconceptionName"].tolist()
    similarity = clusters.text_similarity(names)
    inputs: dict = {"data": settings.data_dir}
    if settings.candidates is not None:
        inputs["candidates"] = settings.candidates
        position = {misconception: row for row, misconception in enumerate(ids)}
        candidates = contracts.read_table(settings.candidates, contracts.CANDIDATES)
        together = clusters.co_retrieval(candidates, position, settings.depth)
        similarity = (1 - settings.co_retrieval_weight) * similarity + settings.co_retrieval_weight * together
    grouped = clusters.group(similarity, settings.most_per_cluster)
    examples = tables.labelled_options(tables.showable(folder, settings.validation_fold))
    seen = {row for row, misconception in enumerate(ids) if misconception in examples.index}
    with contracts.output_folder(settings.output_dir) as output:
        contracts.write_json(output / "diverse_clusters.json", [[str(ids[row]) for row in rows] for rows in grouped])
        flat = [(number, ids[row], names[row], row in seen) for number, rows in enumerate(grouped) for row in rows]
        listed = pd.DataFrame(flat, columns=["cluster", "misconception_id", "name", "seen"])
        with contracts.atomic_file(output / "clusters.parquet") as handle:
            listed.to_parquet(handle, index=False)
        clusters.draw_map(similarity, grouped, names, seen, output / "map.png")
        rows = {"clusters": len(grouped), "misconceptions": len(ids)}
        digest = config.digest(settings, ("output_dir",))
        contracts.write_manifest(output, stage="cluster_misconceptions", config_digest=digest, inputs=inputs, rows=rows)
    sizes = np.bincount([len(rows) for rows in grouped])
    shown = ", ".join(f"{count} of {size}" for size, count in enumerate(sizes.tolist()) if count)
    print(f"{len(ids)} misconceptions ({len(ids) - len(seen)} without an example) in {len(grouped)} clusters: {shown}")


if __name__ == "__main__":
    main(Settings, run, __doc__)
