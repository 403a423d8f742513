"""Average LoRA adapters of folds or seeds exactly, and keep the average only if validation rows say that it is better."""

import dataclasses
from pathlib import Path
from typing import Any

from podium import (
    averaging,
    config,
    contracts,
    metrics,
    modeling,
    ranker_data,
    ranking,
    retrieval,
    sharing,
    stage,
    tables,
    tokenization,
)
from podium.errors import DataError
from podium.modeling import Embedder, LabelScorer
from podium.settings import AverageAdapters


@config.app(AverageAdapters, "average_adapters")
def main(cfg: AverageAdapters) -> None:
    """Load the adapters, score each and their average on the validation fold, save the average if it is better."""
    metas = averaging.read_metas(cfg.checkpoints)
    meta = metas[0]
    inputs = {"questions": cfg.questions_dir, "groups": cfg.groups, "rationales": cfg.rationales}
    inputs |= {f"checkpoint {number}": folder for number, folder in enumerate(cfg.checkpoints)}
    with stage.run("average_adapters", cfg, inputs) as run:
        if run.finished:
            return
        digest = contracts.input_digest(Path(cfg.questions_dir) / "questions.parquet")
        for one, folder in zip(metas, cfg.checkpoints, strict=True):
            contracts.refuse_trained_folds(one, {cfg.validation_fold}, digest, cfg.allow_in_sample, folder)
        folds = sorted({fold for one in metas for fold in one.folds_trained})
        data = tables.read_training_tables(
            cfg.questions_dir, [fold for fold in folds if fold != cfg.validation_fold], cfg.validation_fold,
            cfg.validation_rows, False, leaking_rows="drop", rationales=cfg.rationales,
        )  # fmt: skip
        tokenizer = tokenization.load_tokenizer(cfg.checkpoints[0])
        accelerator = stage.make_accelerator(cfg.device)
        task: modeling.Task = "embedding" if meta.stage == "embedding" else "causal_lm"
        base = modeling.load_backbone(meta.base_model, task).to(accelerator.device)
        model = averaging.average(base, cfg.checkpoints, cfg.weights).eval()

        def score() -> dict[str, float]:
            if meta.stage == "embedding":
                data.validation.explanations = tables.checkpoint_explanations(cfg.checkpoints[0], meta)
                ranked = retrieval.rank(
                    Embedder(model, meta.pooling).eval(), data.validation, tokenizer, meta.prompt_style,  # type: ignore[arg-type]
                    meta.max_length_tokens, views=["rationale" if cfg.rationales else "plain"], top_k=25,
                    max_tokens_per_batch=cfg.max_tokens_per_batch, quiet=True,
                )  # fmt: skip
                return metrics.report(ranked, data.validation.gold(), data.seen)["map@25"]
            return score_ranker(cfg, meta, model, tokenizer, data)

        figures: dict[str, dict[str, float]] = {}
        for name in [*map(str, range(len(cfg.checkpoints))), averaging.AVERAGE]:
            model.set_adapter(name)
            figures[name] = score()
            print(f"{name if name == averaging.AVERAGE else cfg.checkpoints[int(name)]}: MAP@25 {figures[name]}")
        single = max(value["all"] for name, value in figures.items() if name != averaging.AVERAGE)
        average = figures[averaging.AVERAGE]["all"]
        accepted = average >= single + cfg.min_gain
        contracts.write_json(run.folder / "report.json", {"map@25": figures, "accepted": accepted})
        if accepted:
            averaging.save(model, run.folder)
            tokenizer.save_pretrained(run.folder)
            meta = dataclasses.replace(
                meta, folds_trained=folds, best_metric={"map@25": average},
                extra={**meta.extra, "averaged": cfg.checkpoints, "validation_in_sample": cfg.validation_fold in folds},
            )  # fmt: skip
            sharing.copy_companions(Path(cfg.checkpoints[0]), run.folder, records=False)
            sharing.describe(run.folder, meta, base.config.hidden_size, f"code/{run.script}")
        else:
            print(f"the average is not better than the best single adapter by {cfg.min_gain}: no checkpoint is written")
        run.finish(rows={"validation rows": len(data.validation)}, facts={"accepted": accepted})


def score_ranker(
    cfg: AverageAdapters, meta: contracts.CheckpointMeta, model: Any, tokenizer: Any, data: Any
) -> dict[str, float]:
    """MAP@25 of a ranker on the validation lists: all, seen, unseen."""
    if cfg.groups is None:
        raise DataError(
            "rankers are compared on their validation lists; give groups=<folder written by prepare_ranker_data.py>"
        )
    groups = contracts.read_table(f"{cfg.groups}/groups.parquet", contracts.GROUPS)
    depth = len(meta.label_tokens) if meta.stage == "listwise" else int(groups["rank"].max())
    valid, lists = ranker_data.validation_lists(data.validation, groups, depth)
    scores = ranking.score(
        LabelScorer(model).eval(), cfg.checkpoints[0], meta, tokenizer, valid, lists,
        use_rationale=cfg.rationales is not None, max_tokens_per_batch=cfg.max_tokens_per_batch, quiet=True,
    )  # fmt: skip
    figures = metrics.list_figures(lists, scores, valid.label, data.seen)
    return {
        "all": figures["map@25"],
        **{part: figures[f"map@25/{part}"] for part in ("seen", "unseen") if f"map@25/{part}" in figures},
    }


if __name__ == "__main__":
    main()
