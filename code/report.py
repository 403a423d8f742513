"""Compare the stages of a chain on the test rows: results.json, a table, three plots."""

from pathlib import Path

from podium import config, contracts, questions, report, stage, tables
from podium.batching.queries import make_rows
from podium.errors import DataError
from podium.settings import Report


@config.app(Report, "report")
def main(cfg: Report) -> None:
    """Read every stage's candidates, score them on the same rows, write and print."""
    inputs = {"questions": cfg.questions_dir, "rationales": cfg.rationales, **cfg.stages}
    inputs |= {f"losses of {name}": folder for name, folder in cfg.losses.items()}
    inputs |= {f"blend of {name}": folder for name, folder in cfg.blends.items()}
    with stage.run("report", cfg, inputs) as run:
        if not run.finished:
            train = contracts.read_table(f"{cfg.questions_dir}/questions.parquet", contracts.QUESTIONS)
            test = contracts.read_table(f"{cfg.questions_dir}/test.parquet", contracts.QUESTIONS)
            rows = make_rows(test, tables.read_catalogue(cfg.questions_dir))
            gold = rows.gold()
            if gold.empty:
                raise DataError(f"{cfg.questions_dir}/test.parquet has no labels; add test_key.csv, or set test_fold")
            seen = questions.seen_misconceptions(train, cfg.train_folds)
            candidates = {
                name: contracts.read_table(f"{folder}/candidates.parquet", contracts.CANDIDATES)
                for name, folder in cfg.stages.items()
            }
            candidates = {name: frame[frame["query_id"].isin(gold.index)] for name, frame in candidates.items()}
            results = {
                "data": {
                    "questions": int(train["QuestionId"].nunique()),
                    "queries_train": len(questions.training_rows(train, cfg.train_folds)),
                    "queries_test": len(gold),
                    "misconceptions": len(rows.names),
                    "unseen_share": float((~gold.isin(seen)).mean()),
                },
                "rows": report.rows_of(candidates, gold, seen),
                "gains": report.paired_gains(candidates, gold, gains(list(candidates))),
            }
            told = Path(cfg.questions_dir) / "test_rationales.parquet"
            if cfg.rationales and told.is_file():
                written = contracts.read_table(f"{cfg.rationales}/rationales.parquet", contracts.RATIONALES)
                results["rationale_exact_match"] = report.exact_match(
                    written, contracts.read_table(told, contracts.RATIONALES), gold, seen
                )
            results["blends"] = {
                name: contracts.read_json(f"{folder}/weights.json", "blend weights")["weights"]
                for name, folder in cfg.blends.items()
            }
            contracts.write_json(run.folder / "results.json", results)
            report.plot_stages(results["rows"], run.folder / "map_by_stage.png")
            report.plot_recall(results["rows"], run.folder / "recall_at_k.png")
            report.plot_losses(cfg.losses, run.folder / "losses.png")
            run.finish({"stages": len(candidates), "test rows": len(gold)})
    show(contracts.read_json(run.folder / "results.json", "results"))


def gains(stages: list[str]) -> list[tuple[str, str]]:
    """Which stages are compared pairwise."""
    wanted = [("retriever_rationale", "retriever"), ("pointwise", "retriever_rationale"), ("listwise", "pointwise"),
              ("final", "retriever_rationale")]  # fmt: skip
    return [pair for pair in wanted if set(pair) <= set(stages)]


def show(results: dict) -> None:
    """Print table, gains, rationale accuracy and blend weights."""
    data = results["data"]
    print(f"\n{data['queries_train']} training rows, {data['misconceptions']} misconceptions, "
          f"{data['unseen_share']:.0%} of the test rows are about one that no training row shows\n")  # fmt: skip
    print(report.table(results["rows"]))
    for gain in results["gains"]:
        low, high = gain["ci95"]
        print(f"{gain['stage']} over {gain['over']}: {gain['gain']:+.3f} [{low:+.3f}, {high:+.3f}]")
    if exact := results.get("rationale_exact_match"):
        shown = ", ".join(f"{part} {value:.2f}" for part, value in exact.items() if value is not None)
        print(f"generated rationales equal to the gold ones word for word: {shown}")
    for name, weights in results["blends"].items():
        print(f"{name} blend, fitted on the validation fold: " + ", ".join(f"{k} {v:.3g}" for k, v in weights.items()))
    print()


if __name__ == "__main__":
    main()
