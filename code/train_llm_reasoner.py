"""Train the reasoner: given a question and a wrong answer, write why a pupil would give it."""

from pathlib import Path
from typing import Any

from torch import nn

from podium import config, contracts, losses, modeling, optim, prompts, stage, tables, tokenization, training
from podium.batching import chat
from podium.batching.queries import QueryRows, select
from podium.engines import transformers as engine
from podium.errors import sample
from podium.modeling import LabelScorer
from podium.settings import Reasoner, as_dict


def with_targets(rows: QueryRows) -> tuple[QueryRows, list[str]]:
    """The rows that have a gold rationale, and the rationales; without any, names stand in for all of them."""
    if not any(rows.rationales):
        return rows, [rows.names[label] for label in rows.label if label is not None]
    keep = [index for index in range(len(rows)) if rows.rationales[index]]
    if len(keep) < len(rows):
        absent = [rows.query_id[index] for index in range(len(rows)) if not rows.rationales[index]]
        print(f"warning: no gold rationale for query {sample(absent)}; these rows are not trained on")
    chosen = select(rows, keep)
    return chosen, [texts[0] for texts in chosen.rationales]


@config.app(Reasoner, "llm_reasoner")
def main(cfg: Reasoner) -> None:
    """Config, tables, data set and collator, model, optimizer, loss and micro-step, train, export."""
    inputs = {
        "questions": cfg.data.questions_dir,
        "backbone": cfg.model.backbone if Path(cfg.model.backbone).exists() else None,
    }
    with stage.run("train_llm_reasoner", cfg, inputs) as run:
        if run.finished:
            return
        gold = Path(cfg.data.questions_dir) / "rationales.parquet"
        data = tables.read_training_tables(
            **as_dict(cfg.data),
            full_fit=cfg.full_fit,
            rationales=cfg.data.questions_dir if gold.is_file() else None,
            gold_rationales=True,
        )
        accelerator = stage.make_accelerator(cfg.device)
        if not gold.is_file():
            accelerator.print(
                "no gold rationales (synthetic.csv): the reasoner learns to write the misconception's name"
            )
        tokenizer = tokenization.load_tokenizer(cfg.model.backbone)

        def collator(rows: QueryRows) -> chat.CompletionCollator:
            kept, targets = with_targets(rows)
            made = chat.CompletionCollator(
                kept, targets, tokenizer, cfg.prompt_style, cfg.max_length_tokens, cfg.max_tokens_per_micro_batch,
                with_name=cfg.with_name and gold.is_file(),
            )  # fmt: skip
            made.check()
            return made

        collate, validation = collator(data.train), collator(data.validation)
        tokens, border = collate.example(0)
        accelerator.print(f"one example, prompt: {tokenizer.decode(tokens[:border])!r}")
        accelerator.print(f"  learns to write: {tokenizer.decode(tokens[border:])!r}")

        model = LabelScorer(modeling.prepare_for_training(**as_dict(cfg.model), task="causal_lm", seed=cfg.loop.seed))
        optimizer = optim.make_optimizer(model, **as_dict(cfg.optimizer))

        def loss(model: nn.Module, batch: dict[str, Any]) -> losses.Loss:
            _, logits = model(batch["input_ids"], lm_read=batch["lm_read"])
            return losses.next_token(logits, batch["target"])

        def evaluate(model: nn.Module) -> dict[str, float]:
            figures = training.mean_loss(model, loss, validation, len(validation.rows), accelerator.device)
            if cfg.sample_generations and accelerator.is_main_process:
                show_samples(model, validation)
            return figures

        def show_samples(model: Any, shown: chat.CompletionCollator) -> None:
            indices = [
                position * len(shown.rows) // cfg.sample_generations for position in range(cfg.sample_generations)
            ]
            asked = [
                chat.prompt_ids(shown.rows, i, tokenizer, cfg.prompt_style, cfg.max_length_tokens - cfg.max_new_tokens)
                for i in indices
            ]
            written = engine.generate(
                model.backbone, tokenizer, asked, max_new_tokens=cfg.max_new_tokens, max_tokens_per_batch=8192,
                stop=[prompts.RATIONALE_END],
            )  # fmt: skip
            for index, one in zip(indices, written, strict=True):
                if one is not None:
                    print(f"  {shown.rows.query_id[index]} wrote: {one.text!r}\n      gold: {shown.targets[index]!r}")

        progress = training.train(
            accelerator=accelerator, model=model, optimizer=optimizer, count=len(collate.rows), collate=collate,
            micro_step=training.plain(loss, accelerator), output_dir=run.folder, **as_dict(cfg.loop),
            evaluate=evaluate, best_metric="loss", lower_is_better=True, resume_command=stage.command_line(),
            log=stage.make_tracker(cfg.use_wandb, run.script, cfg, run.folder),
        )  # fmt: skip
        meta = contracts.CheckpointMeta(
            stage="reasoner", kind="adapter" if cfg.model.lora else "full", base_model=cfg.model.backbone,
            prompt_style=cfg.prompt_style, prompt_version=prompts.VERSION, max_length_tokens=cfg.max_length_tokens,
            folds_trained=data.folds_trained, data_digest=data.data_digest,
            best_metric={"loss": progress.best_value or 0.0},
            extra={"with_name": collate.with_name},
        )  # fmt: skip
        stage.export(
            run, accelerator, model.backbone, tokenizer, meta, cfg.data.validation_fold, rows={"training rows": len(collate.rows)},
            next_command=f"python code/generate_llm_reasoner.py checkpoint={cfg.output_dir}"
            f" tables=[{cfg.data.questions_dir}/questions.parquet,{cfg.data.questions_dir}/test.parquet]",
        )  # fmt: skip


if __name__ == "__main__":
    main()
