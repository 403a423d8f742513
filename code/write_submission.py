"""Write submission.csv from ranked candidates and check it against the competition's format."""

from podium import config, contracts, stage, submission, tables
from podium.settings import Submit


@config.app(Submit, "write_submission")
def main(cfg: Submit) -> None:
    """One row a test query, 25 ids each."""
    inputs = {"questions": cfg.questions_dir, "candidates": cfg.candidates}
    with stage.run("write_submission", cfg, inputs) as run:
        if run.finished:
            return
        test = contracts.read_table(f"{cfg.questions_dir}/test.parquet", contracts.QUESTIONS)
        candidates = contracts.read_table(f"{cfg.candidates}/candidates.parquet", contracts.CANDIDATES)
        catalogue = set(tables.read_catalogue(cfg.questions_dir)["misconception_id"])
        path = run.folder / "submission.csv"
        submission.write_submission(candidates, test["query_id"].tolist(), catalogue, cfg.length, path)
        listed = candidates[candidates["query_id"].isin(test["query_id"]) & (candidates["rank"] <= cfg.length)]
        contracts.write_table(listed, run.folder / "candidates.parquet", contracts.CANDIDATES)
        run.finish({"rows": len(test)})


if __name__ == "__main__":
    main()
