"""Reorder ranked lists by a weighted sum of their own scores and rankers' scores."""

import pandas as pd

from podium import blending, config, contracts, questions, ranking, stage
from podium.errors import DataError
from podium.settings import BlendScores


@config.app(BlendScores, "blend_scores")
def main(cfg: BlendScores) -> None:
    """Fit the weights on the validation fold (or take given ones), reorder every list."""
    inputs = {"questions": cfg.questions_dir, "candidates": cfg.candidates, "weights": cfg.weights_from}
    inputs |= {f"scores{i}": folder for i, folder in enumerate(cfg.scores)}
    with stage.run("blend_scores", cfg, inputs) as run:
        if run.finished:
            return
        candidates = contracts.read_table(f"{cfg.candidates}/candidates.parquet", contracts.CANDIDATES)
        scores = pd.concat(
            [contracts.read_table(f"{folder}/scores.parquet", contracts.SCORES) for folder in cfg.scores]
        )
        # lists of training rows were mined for training; only scored queries are reordered
        candidates = candidates[candidates["query_id"].isin(scores["query_id"])].reset_index(drop=True)
        features = blending.feature_table(candidates, scores, cfg.top_k)
        if cfg.weights_from:
            weights = contracts.read_json(f"{cfg.weights_from}/weights.json", "blend weights")["weights"]
        else:
            table = contracts.read_table(f"{cfg.questions_dir}/questions.parquet", contracts.QUESTIONS)
            rows = questions.training_rows(table, [cfg.validation_fold])
            gold = rows.set_index("query_id")["misconception_id"].astype("int64")
            gold = gold[gold.index.isin(scores["query_id"])]
            if gold.empty:
                raise DataError(f"no scored query is in fold {cfg.validation_fold}; score the validation fold, or give "
                                f"weights_from")  # fmt: skip
            weights = blending.fit_weights(features, gold)
            print(f"weights fitted on {len(gold)} queries of fold {cfg.validation_fold}: {weights}")
        blended = ranking.reorder(candidates, blending.apply_weights(features, weights), "blend")
        contracts.write_table(blended, run.folder / "candidates.parquet", contracts.CANDIDATES)
        contracts.write_json(run.folder / "weights.json", {"weights": weights, "fitted": cfg.weights_from is None})
        run.finish(
            {"queries": blended["query_id"].nunique()},
            next_command=f"python code/write_submission.py questions_dir={cfg.questions_dir} candidates={cfg.output_dir}",
        )


if __name__ == "__main__":
    main()
