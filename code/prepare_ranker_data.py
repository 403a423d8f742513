"""Build the groups that rankers learn from: gold misconception and negatives by rank bands."""

from podium import config, contracts, leaks, mining, questions, ranker_data, stage, tables
from podium.batching.queries import make_rows
from podium.settings import PrepareRankerData


@config.app(PrepareRankerData, "prepare_ranker_data")
def main(cfg: PrepareRankerData) -> None:
    """Join questions, candidates and teacher scores into groups.parquet."""
    inputs = {"questions": cfg.questions_dir, "candidates": cfg.candidates, "teacher": cfg.teacher}
    with stage.run("prepare_ranker_data", cfg, inputs) as run:
        if run.finished:
            return
        table = contracts.read_table(f"{cfg.questions_dir}/questions.parquet", contracts.QUESTIONS)
        candidates = contracts.read_table(f"{cfg.candidates}/candidates.parquet", contracts.CANDIDATES)
        wanted = questions.training_rows(table, [*cfg.train_folds, cfg.validation_fold])
        wanted = wanted[wanted["query_id"].isin(candidates["query_id"])].reset_index(drop=True)
        rows = make_rows(wanted, tables.read_catalogue(cfg.questions_dir))
        groups = ranker_data.build_groups(
            wanted, candidates, cfg.validation_fold, [(band.first, band.last, band.keep) for band in cfg.bands],
            cfg.negatives_per_query, cfg.validation_depth,
            positives=set(questions.training_rows(table, cfg.train_folds)["misconception_id"].astype(int)), seed=cfg.seed,
            never_positive_share=cfg.never_positive_share,
            teacher=mining.read_teacher(cfg.teacher, rows) if cfg.teacher else None,
        )  # fmt: skip
        contracts.write_table(groups, run.folder / "groups.parquet", contracts.GROUPS)
        run.finish(
            {"queries": len(wanted), "pairs": len(groups)},
            facts={"in_sample": contracts.read_json(f"{cfg.candidates}/manifest.json", "manifest").get("in_sample", False),
                   **leaks.trained_on(None, cfg.candidates, cfg.teacher)},
            next_command=f"python code/train_ranker_pointwise.py groups={cfg.output_dir}"
            f" data.questions_dir={cfg.questions_dir} model.backbone=<retriever>",
        )  # fmt: skip


if __name__ == "__main__":
    main()
