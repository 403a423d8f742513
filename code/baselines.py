"""Two floors under every figure: BM25, and an oracle that knows the construct but guesses the bug."""

from podium import baselines, config, contracts, stage, tables
from podium.batching.queries import make_rows
from podium.settings import Baselines


@config.app(Baselines, "baselines")
def main(cfg: Baselines) -> None:
    """Rank the test rows both ways."""
    with stage.run("baselines", cfg, {"questions": cfg.questions_dir}) as run:
        if run.finished:
            return
        train = contracts.read_table(f"{cfg.questions_dir}/questions.parquet", contracts.QUESTIONS)
        test = contracts.read_table(f"{cfg.questions_dir}/test.parquet", contracts.QUESTIONS)
        rows = make_rows(test, tables.read_catalogue(cfg.questions_dir))
        ranked = {
            "bm25": baselines.bm25(rows, cfg.top_k),
            "construct_oracle": baselines.construct_oracle(train, test, sorted(rows.names), cfg.seed),
        }
        for name, candidates in ranked.items():
            contracts.write_table(candidates, run.folder / name / "candidates.parquet", contracts.CANDIDATES)
        run.finish({name: len(candidates) for name, candidates in ranked.items()})


if __name__ == "__main__":
    main()
