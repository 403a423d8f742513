"""Rank the catalogue for every row of any question table with a trained retriever."""

from pathlib import Path

from podium import config, contracts, leaks, metrics, modeling, questions, retrieval, stage, tables, tokenization
from podium.batching.queries import make_rows
from podium.modeling import Embedder
from podium.settings import MineCandidates


@config.app(MineCandidates, "mine_candidates")
def main(cfg: MineCandidates) -> None:
    """Read the tables, embed queries and catalogue, write candidates.parquet, print figures where labels are known."""
    inputs = {"checkpoint": cfg.checkpoint, "questions": cfg.questions_dir, "rationales": cfg.rationales}
    inputs |= {f"table{i}": path for i, path in enumerate(cfg.tables)}
    with stage.run("mine_candidates", cfg, inputs) as run:
        if run.finished:
            return
        meta = contracts.read_meta(cfg.checkpoint, "embedding")
        table = tables.read_tables(cfg.tables, cfg.rows_per_fold)
        digest = contracts.input_digest(Path(cfg.questions_dir) / "questions.parquet")
        folds = set(table["fold"].dropna().astype(int))
        in_sample = contracts.refuse_trained_folds(meta, folds, digest, cfg.allow_in_sample, cfg.checkpoint)
        rows = make_rows(
            table, tables.read_catalogue(cfg.questions_dir), tables.read_rationales(cfg.rationales),
            require_rationales="rationale" in cfg.views,
        )  # fmt: skip
        tables.explain(tables.checkpoint_explanations(cfg.checkpoint, meta), rows)
        accelerator = stage.make_accelerator(cfg.device)
        backbone, _ = modeling.load_checkpoint(cfg.checkpoint, "embedding")
        embedder = Embedder(backbone, meta.pooling).to(accelerator.device).eval()  # type: ignore[arg-type]
        candidates = retrieval.rank(
            embedder, rows, tokenization.load_tokenizer(cfg.checkpoint), meta.prompt_style, meta.max_length_tokens,  # type: ignore[arg-type]
            views=cfg.views, top_k=cfg.top_k, max_tokens_per_batch=cfg.max_tokens_per_batch, source="+".join(cfg.views),
        )  # fmt: skip
        contracts.write_table(candidates, run.folder / "candidates.parquet", contracts.CANDIDATES)
        gold = rows.gold()
        if len(gold):
            train = contracts.read_table(Path(cfg.questions_dir) / "questions.parquet", contracts.QUESTIONS)
            seen = questions.seen_misconceptions(train, [f for f in meta.folds_trained] or list(questions.TRAIN_FOLDS))
            report = metrics.report(candidates, gold, seen)
            contracts.write_json(run.folder / "report.json", report)
            print(
                f"MAP@25 {report['map@25']}{' IN-SAMPLE' if in_sample else ''}, recall@25 {report['recall@25']['all']:.4f}"
            )
        run.finish(
            {"queries": len(rows), "candidates": len(candidates)},
            facts={"in_sample": in_sample, **leaks.trained_on(meta, cfg.rationales)},
        )


if __name__ == "__main__":
    main()
