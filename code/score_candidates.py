"""Score ranked candidates, or the groups of ranker data, with a trained ranker; kind, prompt and labels come with it."""

from pathlib import Path

import pandas as pd

from podium import config, contracts, engines, leaks, ranking, stage, tables, tokenization
from podium.batching.queries import make_rows
from podium.errors import DataError
from podium.settings import ScoreCandidates


@config.app(ScoreCandidates, "score_candidates")
def main(cfg: ScoreCandidates) -> None:
    """Read tables and candidates, score the top ones in every view, write scores.parquet."""
    inputs = {"checkpoint": cfg.checkpoint, "questions": cfg.questions_dir, "candidates": cfg.candidates,
              "rationales": cfg.rationales, **{f"table{i}": path for i, path in enumerate(cfg.tables)}}  # fmt: skip
    with stage.run("score_candidates", cfg, inputs) as run:
        if run.finished:
            return
        meta = contracts.read_meta(cfg.checkpoint, ("pointwise", "listwise"))
        candidates = ranking.read_candidates(cfg.candidates)
        table = tables.read_tables(cfg.tables, None)
        # of a training table, the rows of the wanted folds that were mined; of a test table, every row
        wanted = table["fold"].isna() | (table["fold"].isin(cfg.folds) & table["query_id"].isin(candidates["query_id"]))
        table = table[wanted.astype(bool)].reset_index(drop=True)
        digest = contracts.input_digest(Path(cfg.questions_dir) / "questions.parquet")
        folds = set(table["fold"].dropna().astype(int))
        in_sample = contracts.refuse_trained_folds(meta, folds, digest, cfg.allow_in_sample, cfg.checkpoint)
        rows = make_rows(
            table, tables.read_catalogue(cfg.questions_dir), tables.read_rationales(cfg.rationales),
            require_rationales="rationale" in cfg.views,
        )  # fmt: skip
        lists = ranking.candidate_lists(candidates, rows.query_id, cfg.top_k)
        if meta.stage == "listwise" and cfg.top_k > len(meta.label_tokens):
            raise DataError(
                f"{cfg.checkpoint} was trained on lists of at most {len(meta.label_tokens)} options; set top_k to that"
            )
        tokenizer = tokenization.load_tokenizer(cfg.checkpoint)
        accelerator = stage.make_accelerator(cfg.device)
        model = engines.load_scorer(cfg.engine, cfg.checkpoint, accelerator.device, meta.max_length_tokens)
        frames = []
        for view in cfg.views:
            scores = ranking.score(
                model, cfg.checkpoint, meta, tokenizer, rows, lists, use_rationale=view == "rationale", max_tokens_per_batch=cfg.max_tokens_per_batch,
            )  # fmt: skip
            frames.append(ranking.scores_frame(lists, scores, rows.query_id, f"{Path(cfg.checkpoint).name}/{view}"))
        everything = pd.concat(frames, ignore_index=True)
        contracts.write_table(everything, run.folder / "scores.parquet", contracts.SCORES)
        # the ranker alone, without the list it reorders: mean over the views
        mean = everything.groupby(["query_id", "misconception_id"], as_index=False)["score"].mean()
        own = candidates[candidates["query_id"].isin(rows.query_id)]
        alone = ranking.reorder(own, mean, Path(cfg.checkpoint).name)
        contracts.write_table(alone, run.folder / "candidates.parquet", contracts.CANDIDATES)
        run.finish(
            {"queries": len(rows), "scores": len(everything)}, facts={"in_sample": in_sample, "kind": meta.stage, **leaks.trained_on(meta, cfg.candidates, cfg.rationales)},
            next_command=f"python code/blend_scores.py questions_dir={cfg.questions_dir} candidates={cfg.candidates}"
            f" scores=[{cfg.output_dir}]",
        )  # fmt: skip


if __name__ == "__main__":
    main()
