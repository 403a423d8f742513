"""The whole chain on a laptop: data, tiny backbone, reasoner, retriever, rankers, scores. `make demo` calls this."""

import os
import time
from pathlib import Path

from podium import config, contracts, pipeline, procedural
from podium.settings import Demo


def write_bank(cfg: Demo) -> None:
    """Generate the built-in bank into data_dir, unless these very tables are there."""
    folder = Path(cfg.data_dir)
    drawn = {"questions": cfg.questions, "test_questions": cfg.test_questions, "seed": cfg.data_seed}
    if (folder / contracts.MANIFEST).is_file():
        if contracts.read_json(folder / contracts.MANIFEST, "manifest").get("drawn") == drawn:
            return
    bank = procedural.generate(cfg.questions, cfg.test_questions, cfg.data_seed)
    procedural.write_bank(bank, folder)
    rows = {"questions": len(bank.train), "test questions": len(bank.test), "misconceptions": len(bank.mapping)}
    contracts.write_manifest(
        folder, stage="generate_procedural", config_digest="", inputs={}, rows=rows, facts={"drawn": drawn}
    )
    print(f"wrote {folder}: {rows} (built-in bank)")


@config.app(Demo, "demo")
def main(cfg: Demo) -> None:
    """Generate data if none is given, run the chain, say where everything is."""
    started = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if Path(cfg.data_dir) == Path(cfg.output_dir) / "data":
        write_bank(cfg)
    seconds = pipeline.run(pipeline.steps_of(cfg.steps), fresh=cfg.fresh)
    results = contracts.read_json(f"{cfg.output_dir}/report/results.json", "results")
    contracts.write_json(f"{cfg.output_dir}/results.json", {**results, "seconds": seconds})
    print(f"{time.perf_counter() - started:.0f} s for this run, {sum(seconds.values()):.0f} s of stages in all")


if __name__ == "__main__":
    main()
