"""Train the pointwise ranker: Yes or No for every candidate, softmax over the query's group."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from podium import (
    config,
    contracts,
    demos,
    dry_run,
    losses,
    memory,
    metrics,
    modeling,
    optim,
    prompts,
    published,
    ranker_data,
    ranking,
    stage,
    tables,
    tokenization,
    training,
)
from podium.batching.groups import PointwiseCollator, PointwiseRenderer
from podium.modeling import LabelScorer
from podium.settings import Ranker, as_dict


@config.app(Ranker, "ranker_pointwise")
def main(cfg: Ranker) -> None:
    """Config, tables, collator, model, optimizer, loss and micro-step, train, export."""
    cfg = published.with_folders(cfg)
    inputs = {"questions": cfg.data.questions_dir, "groups": cfg.groups, "rationales": cfg.rationales,
              "backbone": cfg.model.backbone if Path(cfg.model.backbone).exists() else None}  # fmt: skip
    with stage.run("train_ranker_pointwise", cfg, inputs) as run:
        if run.finished:
            return
        data = tables.read_training_tables(
            **as_dict(cfg.data), full_fit=cfg.full_fit, rationales=cfg.rationales, artefacts=inputs
        )
        groups = contracts.read_table(f"{cfg.groups}/groups.parquet", contracts.GROUPS)
        train = ranker_data.ranker_rows(
            data.train, groups, cfg.unlabelled_sources, cfg.distillation is not None, data.held
        )
        valid, valid_lists = ranker_data.validation_lists(data.validation, groups, cfg.validation_depth)
        accelerator = stage.make_accelerator(cfg.device)
        tokenizer = tokenization.load_tokenizer(cfg.model.backbone)
        modeling.check_positions(cfg.model.backbone, cfg.max_length_tokens)
        packing = modeling.can_pack(cfg.model.backbone, cfg.model.attn_implementation)
        labels = tokenization.label_token_ids(tokenizer, [prompts.YES, prompts.NO])
        pool = (
            demos.make_pool(train.rows, cfg.demos.per_misconception, cfg.demos.max_characters, cfg.unlabelled_sources)
            if cfg.demos else None
        )  # fmt: skip
        collate = PointwiseCollator(
            PointwiseRenderer(train.rows, tokenizer, cfg.prompt_style, cfg.max_length_tokens, demos=pool, packing=packing),
            train.pools, train.teacher if cfg.distillation else None, train.labelled, cfg.candidates_per_group,
            cfg.max_tokens_per_micro_batch, cfg.loop.seed, cfg.topic_dropout, cfg.rationale_dropout,
            demo_dropout=cfg.demos.dropout if cfg.demos else 0.0,
        )  # fmt: skip
        candidates, gold, packed = collate.group(0, 0)
        accelerator.print(f"one group, {len(candidates)} candidates, gold is number {gold + 1}, as one row of "
                          f"{len(packed.tokens)} tokens: {tokenizer.decode(packed.tokens)!r}")  # fmt: skip

        label_ids = torch.tensor(labels, device=accelerator.device)
        distil = cfg.distillation

        def loss(model: nn.Module, batch: dict[str, Any]) -> losses.Loss:
            label_logits, name_logits = model(
                batch["input_ids"], label_read=batch["label_read"], label_ids=label_ids, layout=batch.get("layout"),
                lm_read=batch["lm_read"] if cfg.auxiliary_weight and len(batch["lm_read"]) else None,
            )  # fmt: skip
            total, weight, figures = losses.group_softmax(
                ranking.group_scores(label_logits, batch["valid"]), batch["target"], batch["valid"], batch["labelled"],
                batch.get("teacher"), distil.temperature if distil else 1.0, distil.weight if distil else 0.0,
                cfg.label_smoothing,
            )  # fmt: skip
            if name_logits is not None:
                auxiliary, _, _ = losses.next_token(name_logits, batch["lm_target"], batch["lm_weight"])
                total = total + cfg.auxiliary_weight * auxiliary
                figures["name_loss"] = auxiliary.item()
            return total, weight, figures

        renderer = PointwiseRenderer(valid, tokenizer, cfg.prompt_style, cfg.max_length_tokens, demos=pool)

        def evaluate(model: nn.Module) -> dict[str, float]:
            scores = ranking.score_pointwise(
                model, renderer, valid_lists, labels, use_rationale=True,
                max_tokens_per_batch=cfg.max_tokens_per_micro_batch,
            )  # fmt: skip
            return metrics.list_figures(valid_lists, scores, valid.label, data.seen)

        plan = memory.Plan(
            "causal_lm", LabelScorer, as_dict(cfg.model), as_dict(cfg.optimizer), training.plain(loss, accelerator)
        )
        work: dict[str, Any] = dict(
            accelerator=accelerator, collate=collate, count=len(train.rows), loop=as_dict(cfg.loop)
        )
        if cfg.dry_run:
            return dry_run.report(plan, **work, tokenizer=tokenizer, gpu=cfg.gpu, output_dir=cfg.output_dir)
        checkpointing = dry_run.checkpointing(plan, **work)
        model = LabelScorer(modeling.prepare_for_training(
            **as_dict(cfg.model, gradient_checkpointing=checkpointing), task="causal_lm", seed=cfg.loop.seed
        ))  # fmt: skip
        accelerator.print(modeling.packing_note(model, cfg.model.lora.dropout if cfg.model.lora else 0.0))
        optimizer = optim.make_optimizer(model, **as_dict(cfg.optimizer))
        progress = training.train(
            accelerator=accelerator, model=model, optimizer=optimizer, count=len(train.rows), collate=collate,
            micro_step=training.plain(loss, accelerator), output_dir=run.folder, **as_dict(cfg.loop),
            evaluate=evaluate, best_metric="map@25", resume_command=stage.command_line(),
            log=stage.make_tracker(cfg.use_wandb, run.script, cfg, run.folder),
        )  # fmt: skip
        meta = contracts.CheckpointMeta(
            stage="pointwise", kind="adapter" if cfg.model.lora else "full", base_model=cfg.model.backbone,
            prompt_style=cfg.prompt_style, prompt_version=prompts.VERSION, max_length_tokens=cfg.max_length_tokens,
            label_tokens=[prompts.YES, prompts.NO], label_token_ids=labels, folds_trained=data.folds_trained,
            data_digest=data.data_digest, best_metric={"map@25": progress.best_value or 0.0},
            extra={"demos": pool.settings()} if pool else {},
        )  # fmt: skip
        if pool and accelerator.is_main_process:
            pool.write(
                run.folder, contracts.read_table(f"{cfg.data.questions_dir}/questions.parquet", contracts.QUESTIONS)
            )
        stage.export(
            run, accelerator, model.backbone, tokenizer, meta, cfg.data.validation_fold, rows={"training groups": len(train.rows)},
            next_command=f"python code/score_candidates.py checkpoint={cfg.output_dir} candidates=<candidates>"
            f" questions_dir={cfg.data.questions_dir} tables=[{cfg.data.questions_dir}/test.parquet]",
        )  # fmt: skip


if __name__ == "__main__":
    main()
