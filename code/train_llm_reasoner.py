"""Train the reasoner, on a question table (why a pupil errs) or on instruction files (difficult rows more often)."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from podium import (
    config,
    contracts,
    dry_run,
    losses,
    memory,
    modeling,
    optim,
    published,
    reasoning,
    stage,
    tokenization,
    training,
)
from podium.maths.instructions import find_files
from podium.modeling import LabelScorer
from podium.settings import Reasoner, as_dict


@config.app(Reasoner, "llm_reasoner")
def main(cfg: Reasoner) -> None:
    """Config, rows and collators, model, optimizer, loss and micro-step, train, export."""
    cfg = published.with_folders(cfg)
    inputs: dict[str, str | Path | None] = {
        "questions": cfg.data.questions_dir if cfg.data else None,
        "backbone": cfg.model.backbone if Path(cfg.model.backbone).exists() else None,
    }
    files = find_files(cfg.instructions.files) if cfg.instructions else []
    inputs |= {f"instructions {at}": file for at, file in enumerate(files)}
    with stage.run("train_llm_reasoner", cfg, inputs) as run:
        if run.finished:
            return
        accelerator = stage.make_accelerator(cfg.device)
        tokenizer = tokenization.load_tokenizer(cfg.model.backbone)
        modeling.check_positions(cfg.model.backbone, cfg.max_length_tokens)
        say = accelerator.print
        limits = {
            "max_length_tokens": cfg.max_length_tokens, "max_tokens_per_micro_batch": cfg.max_tokens_per_micro_batch,
            "packing": modeling.can_pack(cfg.model.backbone, cfg.model.attn_implementation),
        }  # fmt: skip
        if cfg.data:
            rows = reasoning.question_rows(
                tokenizer, cfg.data, cfg.full_fit, cfg.prompt_style, cfg.with_name, say, **limits
            )
        else:
            rows = reasoning.instruction_rows(
                tokenizer, cfg.instructions, cfg.full_fit, say, base=cfg.adap_base, factor=cfg.adap_factor,
                method=cfg.adap_method, shuffled=cfg.adap_shuffled, copies_of_source=cfg.copies_of_source,
                seed=cfg.loop.seed, **limits,
            )  # fmt: skip
        collate, validation = rows.train, rows.validation
        tokens, border = collate.example(0)
        say(f"one example: {tokenizer.decode(tokens[:border])!r}\n  writes: {tokenizer.decode(tokens[border:])!r}")
        ends = [] if cfg.loop.max_steps is None else [cfg.loop.max_steps]
        if cfg.training_tokens is not None:
            lengths = np.array(collate.lengths())[collate.row_of_sample]
            ends += [training.steps_for_tokens(lengths, cfg.loop.batch_size, cfg.loop.seed, cfg.training_tokens)]
        max_steps = min(ends) if ends else None

        def loss(model: nn.Module, batch: dict[str, Any]) -> losses.Loss:
            _, (loss_N, hit_N) = model(
                batch["input_ids"], lm_read=batch["lm_read"], lm_target=batch["target"], layout=batch.get("layout")
            )
            return losses.token_sum(loss_N, hit_N, batch.get("token_weight"))

        def evaluate(model: nn.Module) -> dict[str, float]:
            if cfg.sample_generations:
                reasoning.show_samples(
                    model, rows, tokenizer, cfg.sample_generations, cfg.max_length_tokens, cfg.max_new_tokens, say
                )
            return training.mean_loss(model, loss, validation, len(validation), accelerator.device)

        plan = memory.Plan(
            "causal_lm", LabelScorer, as_dict(cfg.model), as_dict(cfg.optimizer), training.plain(loss, accelerator)
        )
        work: dict[str, Any] = dict(
            accelerator=accelerator, collate=collate, count=len(collate), loop=as_dict(cfg.loop, max_steps=max_steps)
        )
        if cfg.dry_run:
            return dry_run.report(plan, **work, tokenizer=tokenizer, gpu=cfg.gpu, output_dir=cfg.output_dir)
        checkpointing = dry_run.checkpointing(plan, **work)
        model = LabelScorer(modeling.prepare_for_training(
            **as_dict(cfg.model, gradient_checkpointing=checkpointing), task="causal_lm", seed=cfg.loop.seed
        ))  # fmt: skip
        say(modeling.packing_note(model, cfg.model.lora.dropout if cfg.model.lora else 0.0))
        optimizer = optim.make_optimizer(model, **as_dict(cfg.optimizer))
        progress = training.train(
            accelerator=accelerator, model=model, optimizer=optimizer, count=len(collate), collate=collate,
            micro_step=training.plain(loss, accelerator), output_dir=run.folder, **as_dict(cfg.loop, max_steps=max_steps),
            evaluate=evaluate, best_metric="loss", lower_is_better=True, resume_command=stage.command_line(),
            log=stage.make_tracker(cfg.use_wandb, run.script, cfg, run.folder),
        )  # fmt: skip
        meta = contracts.CheckpointMeta(
            kind="adapter" if cfg.model.lora else "full", base_model=cfg.model.backbone,
            max_length_tokens=cfg.max_length_tokens, best_metric={"loss": progress.best_value or 0.0}, **rows.meta,
        )  # fmt: skip
        stage.export(
            run, accelerator, model.backbone, tokenizer, meta, rows.validation_fold,
            rows={"training rows": len(collate)}, next_command=rows.next_command.replace("{checkpoint}", cfg.output_dir),
        )  # fmt: skip


if __name__ == "__main__":
    main()
