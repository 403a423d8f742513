"""Train the pairwise judge: label tokens A and B on hard or soft labels (form A), or a feature head (form B)."""

from pathlib import Path
from typing import Any

from torch import nn

from podium import config, contracts, dry_run, losses, memory, modeling, optim, stage, tokenization, training
from podium.errors import DataError
from podium.pairwise import features, head, judge, measures, prompts
from podium.pairwise.losses import preference
from podium.pairwise.rows import PairCollator, PairRenderer
from podium.pairwise.settings import PairRanker
from podium.pairwise.tables import read_training_pairs
from podium.settings import as_dict


@config.app(PairRanker, "ranker_pairwise")
def main(cfg: PairRanker) -> None:
    """Config, tables, features, collator, model, optimizer, loss and micro-step, train, export."""
    inputs = {"pairs": cfg.data.pairs_dir, "soft_labels": cfg.soft_labels, "rationales": cfg.rationales,
              "backbone": cfg.model.backbone if Path(cfg.model.backbone).exists() else None}  # fmt: skip
    with stage.run("train_ranker_pairwise", cfg, inputs) as run:
        if run.finished:
            return
        if cfg.head is not None and cfg.rationales is not None:
            raise DataError("rationales are learnt by a language model; a head (form B) writes none: rationales=null")
        data = read_training_pairs(
            **as_dict(cfg.data), full_fit=cfg.full_fit, soft_labels=cfg.soft_labels, rationales=cfg.rationales
        )
        accelerator = stage.make_accelerator(cfg.device)
        if accelerator.is_main_process:
            measures.print_baselines(data.train, data.validation)
        feature_set = None
        if cfg.head is not None and cfg.head.with_features:
            # statistics of the training folds alone: a resumed run computes the same ones again
            train = data.train
            feature_set = features.fit(train.prompt, train.response_a, train.response_b, train.language)
        tokenizer = tokenization.load_tokenizer(cfg.model.backbone)
        style: prompts.PairStyle = cfg.prompt_style if cfg.head is None else "features"
        renderer, label_ids = judge.with_label_ids(
            PairRenderer(tokenizer, style, cfg.max_length_tokens, cfg.privileged_model_names), style
        )
        packing = cfg.head is None and modeling.can_pack(cfg.model.backbone, cfg.model.attn_implementation)
        collate = PairCollator(
            data.train, renderer, cfg.orders, cfg.layout if packing else "padded", cfg.max_tokens_per_micro_batch, cfg.loop.seed,
            vectors=judge.pair_vectors(feature_set, data.train) if feature_set is not None else None,
            explain=cfg.rationales is not None,
        )  # fmt: skip
        shown = renderer.orders(data.train, 0, collate.which(0, 0))
        accelerator.print(f"one pair in {len(shown)} order(s), A won: {data.train.hard[0]}, soft {data.train.soft[0]}: "
                          f"{[tokenizer.decode(one.tokens) for one in shown]}")  # fmt: skip

        def loss(model: nn.Module, batch: dict[str, Any]) -> losses.Loss:
            logits, explained = judge.row_logits(model, batch, label_ids)
            total, weight, figures = preference(logits, batch["hard"], batch["soft"], **as_dict(cfg.loss))
            if explained is not None:
                auxiliary, _, _ = losses.next_token(explained, batch["lm_target"], batch["lm_weight"])
                total = total + cfg.rationale_weight * auxiliary
                figures["rationale_loss"] = auxiliary.item()
            return total, weight, figures

        def evaluate(model: nn.Module) -> dict[str, float]:
            asked = judge.Judge(model, renderer, label_ids, feature_set)
            margins = judge.read_orders(
                asked, data.validation, list(range(len(data.validation))), (False, True), layout=cfg.layout,
                max_tokens_per_batch=cfg.max_tokens_per_micro_batch, quiet=True,
            )  # fmt: skip
            return measures.margin_figures(margins, data.validation)

        task: modeling.Task = "causal_lm" if cfg.head is None else "embedding"
        lr_head = cfg.head.lr if cfg.head is not None else None

        def wrap(backbone: nn.Module) -> nn.Module:
            return judge.wrap(backbone, cfg.head, cfg.loop.seed)

        plan = memory.Plan(
            task, wrap, as_dict(cfg.model), as_dict(cfg.optimizer, lr_head=lr_head), training.plain(loss, accelerator)
        )
        work: dict[str, Any] = dict(
            accelerator=accelerator, collate=collate, count=len(data.train), loop=as_dict(cfg.loop)
        )
        if cfg.dry_run:
            return dry_run.report(plan, **work, tokenizer=tokenizer, gpu=cfg.gpu, output_dir=cfg.output_dir)
        checkpointing = dry_run.checkpointing(plan, **work)
        model: Any = wrap(
            modeling.prepare_for_training(
                **as_dict(cfg.model, gradient_checkpointing=checkpointing), task=task, seed=cfg.loop.seed
            )
        )
        optimizer = optim.make_optimizer(model, **as_dict(cfg.optimizer, lr_head=lr_head))
        progress = training.train(
            accelerator=accelerator, model=model, optimizer=optimizer, count=len(data.train), collate=collate,
            micro_step=training.plain(loss, accelerator), output_dir=run.folder, **as_dict(cfg.loop),
            evaluate=evaluate, best_metric="log_loss", lower_is_better=True, resume_command=stage.command_line(),
            log=stage.make_tracker(cfg.use_wandb, run.script, cfg, run.folder),
        )  # fmt: skip
        if cfg.head is not None and accelerator.is_main_process:
            head.save_head(run.folder, model, feature_set)
        meta = contracts.CheckpointMeta(
            stage=judge.STAGE, kind="adapter" if cfg.model.lora else "full", base_model=cfg.model.backbone,
            prompt_style=style, prompt_version=prompts.VERSION, max_length_tokens=cfg.max_length_tokens,
            pooling=cfg.head.pooling if cfg.head is not None else None,
            label_tokens=prompts.LABELS[style], label_token_ids=label_ids,
            folds_trained=data.folds_trained, data_digest=data.data_digest,
            best_metric={"log_loss": progress.best_value or 0.0},
            extra={"head": as_dict(cfg.head) if cfg.head else None, "privileged_model_names": cfg.privileged_model_names},
        )  # fmt: skip
        follow = (
            f"python code/merge_adapter.py --adapter_path {cfg.output_dir} --save_dir {cfg.output_dir}_merged"
            if cfg.model.lora is not None
            else f"python code/predict_pairwise.py checkpoints=[{cfg.output_dir}] table={cfg.data.pairs_dir}/test.parquet"
        )
        stage.export(
            run, accelerator, model.backbone, tokenizer, meta, cfg.data.validation_fold,
            rows={"training pairs": len(data.train)}, next_command=follow,
        )  # fmt: skip


if __name__ == "__main__":
    main()
