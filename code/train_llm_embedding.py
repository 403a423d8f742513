"""Train the retriever: a bi-encoder that puts a query beside the name of its misconception."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from podium import (
    config,
    contracts,
    dry_run,
    grad_cache,
    losses,
    memory,
    metrics,
    mining,
    modeling,
    optim,
    prompts,
    published,
    retrieval,
    stage,
    tables,
    tokenization,
    training,
)
from podium.batching import orders
from podium.batching.retrieval import RetrievalCollator
from podium.distributed import gather_documents, repeated
from podium.modeling import Embedder
from podium.settings import Retriever, as_dict


@config.app(Retriever, "llm_embedding", default="base")
def main(cfg: Retriever) -> None:
    """Config, tables, collator, model, optimizer, loss and micro-step, train, export."""
    cfg = published.with_folders(cfg)
    hard, distil = cfg.hard_negatives, cfg.distillation
    inputs = {"questions": cfg.data.questions_dir, "rationales": cfg.rationales, "explanations": cfg.explanations,
              "backbone": cfg.model.backbone if Path(cfg.model.backbone).exists() else None,
              "hard_negatives": hard.candidates if hard else None, "teacher": distil.scores if distil else None}  # fmt: skip
    with stage.run("train_llm_embedding", cfg, inputs) as run:
        if run.finished:
            return
        data = tables.read_training_tables(
            **as_dict(cfg.data), full_fit=cfg.full_fit, rationales=cfg.rationales, artefacts=inputs
        )
        if cfg.explanations:
            tables.explain(tables.read_explanations(cfg.explanations, data.train.names), data.train, data.validation)
        accelerator = stage.make_accelerator(cfg.device)
        tokenizer = tokenization.load_tokenizer(cfg.model.backbone)
        modeling.check_positions(cfg.model.backbone, cfg.max_length_tokens)
        collate = RetrievalCollator(
            data.train, tokenizer, cfg.prompt_style, cfg.max_length_tokens, cfg.loop.seed,
            topic_dropout=cfg.topic_dropout, rationale_dropout=cfg.rationale_dropout,
            hard_negatives=mining.read_hard_negatives(hard.candidates, data.train, hard.top) if hard else None,
            hard_negatives_per_query=hard.per_query if hard else 0,
            teacher=mining.read_teacher(distil.scores, data.train) if distil else None,
            corpus_share=(accelerator.process_index, accelerator.num_processes)
            if cfg.negatives == "full_corpus" else None,
        )  # fmt: skip
        collate.check()
        rationale = data.train.rationales[0][0] if data.train.rationales[0] else None
        accelerator.print(f"one query:    {collate.query_text(0, topic=True, rationale=rationale)!r}")
        accelerator.print(
            f"its document: {prompts.retrieval_document(data.train.documents()[data.train.label[0] or 0])!r}"
        )

        def embed(backbone: nn.Module) -> Embedder:
            return Embedder(backbone, cfg.pooling, cfg.max_tokens_per_micro_batch)

        order = orders.made_of(
            data.train, collate.hard_negatives, cfg.loop.batch_size, cfg.loop.seed, **as_dict(cfg.batches)
        ) if cfg.batches else None  # fmt: skip
        steps = training.total_steps(len(data.train), cfg.loop.batch_size, cfg.loop.epochs, cfg.loop.max_steps)

        def loss(query_QD: Tensor, document_MD: Tensor, batch: dict[str, Any]) -> losses.Loss:
            document_MD, ids_M, _ = gather_documents(accelerator, document_MD, batch["document_ids"])
            gold_QM = ids_M[None, :] == batch["gold_ids"][:, None]
            target_Q = gold_QM.int().argmax(dim=1)
            teacher_QM = collate.teacher_scores(batch["indices"], ids_M.tolist())
            # a document counts once, whichever process brought it, and a query's own never as its negative
            mask_QM = gold_QM | repeated(ids_M)[None, :]
            mask_QM[range(len(target_Q)), target_Q] = False
            temperature = losses.temperature_at(batch["step"], steps, cfg.first_temperature, cfg.last_temperature)
            return losses.info_nce(
                query_QD, document_MD, target_Q, temperature, mask_QM,
                teacher_QM=teacher_QM if teacher_QM is None else teacher_QM.to(query_QD.device),
                teacher_temperature=distil.temperature if distil else 1.0,
                distillation_weight=distil.weight if distil else 0.0,
            )  # fmt: skip

        def rank(model: nn.Module, rows: Any, top_k: int) -> Any:
            return retrieval.rank(
                model, rows, tokenizer, cfg.prompt_style, cfg.max_length_tokens, top_k=top_k,
                views=["plain", "rationale"] if cfg.rationales else ["plain"], max_tokens_per_batch=cfg.max_tokens_per_batch,
            )  # fmt: skip

        def evaluate(model: nn.Module) -> dict[str, float]:
            return metrics.figures(rank(model, data.validation, 64), data.validation.gold(), data.seen)

        if cfg.grad_cache:
            micro_step = grad_cache.cached(loss, accelerator, cfg.max_tokens_per_micro_batch)
        else:
            micro_step = training.plain(
                lambda model, batch: loss(*model(batch["query"], batch["document"]), batch), accelerator
            )
        plan = memory.Plan("embedding", embed, as_dict(cfg.model), as_dict(cfg.optimizer), micro_step)
        work: dict[str, Any] = dict(
            accelerator=accelerator, collate=collate, count=len(data.train), loop=as_dict(cfg.loop)
        )
        if cfg.dry_run:
            if hard and hard.candidates is None:  # as many as will be mined, whichever
                collate.hard_negatives = dict.fromkeys(data.train.query_id, sorted(data.train.names)[: hard.top])
            return dry_run.report(plan, **work, tokenizer=tokenizer, gpu=cfg.gpu, output_dir=cfg.output_dir)
        checkpointing = dry_run.checkpointing(plan, **work)
        if hard and hard.refresh_every_steps:
            micro_step = mining.refreshing(
                micro_step, collate, lambda model: rank(accelerator.unwrap_model(model), data.train, hard.top),
                hard.refresh_every_steps, run.folder / "hard_negatives", training.steps_done(run.folder),
            )  # fmt: skip
        model = embed(modeling.prepare_for_training(
            **as_dict(cfg.model, gradient_checkpointing=checkpointing), task="embedding", seed=cfg.loop.seed
        ))  # fmt: skip
        optimizer = optim.make_optimizer(model, **as_dict(cfg.optimizer))
        progress = training.train(
            accelerator=accelerator, model=model, optimizer=optimizer, count=len(data.train), collate=collate,
            micro_step=micro_step, output_dir=run.folder, **as_dict(cfg.loop), order=order,
            evaluate=evaluate, best_metric=cfg.best_metric, resume_command=stage.command_line(),
            log=stage.make_tracker(cfg.use_wandb, run.script, cfg, run.folder),
        )  # fmt: skip
        meta = contracts.CheckpointMeta(
            stage="embedding", kind="adapter" if cfg.model.lora else "full", base_model=cfg.model.backbone,
            prompt_style=cfg.prompt_style, prompt_version=prompts.VERSION, max_length_tokens=cfg.max_length_tokens,
            pooling=cfg.pooling, folds_trained=data.folds_trained, data_digest=data.data_digest,
            best_metric={cfg.best_metric: progress.best_value or 0.0},
            extra={"explanations": True} if cfg.explanations else {},
        )  # fmt: skip
        if cfg.explanations and accelerator.is_main_process:
            contracts.write_json(run.folder / tables.EXPLANATIONS, data.train.explanations)
        stage.export(
            run, accelerator, model.backbone, tokenizer, meta, cfg.data.validation_fold, rows={"training rows": len(data.train)},
            next_command=f"python code/mine_candidates.py checkpoint={cfg.output_dir}"
            f" questions_dir={cfg.data.questions_dir} tables=[{cfg.data.questions_dir}/test.parquet]",
        )  # fmt: skip


if __name__ == "__main__":
    main()
