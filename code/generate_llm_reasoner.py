"""Write rationales for any question table with a trained reasoner. Finished rows are kept when a run is cut short."""

import shutil
from pathlib import Path

import pandas as pd

from podium import config, contracts, engines, leaks, prompts, stage, tables, tokenization
from podium.batching import chat
from podium.batching.queries import make_rows
from podium.engines.transformers import Generation
from podium.settings import GenerateRationales


def read_parts(folder: Path) -> pd.DataFrame:
    """Rationales that an earlier, interrupted run has finished; it may have joined them already."""
    paths = [*sorted((folder / "parts").glob("part-*.parquet")), *folder.glob("rationales.parquet")]
    if not paths:
        return pd.DataFrame(columns=[column.name for column in contracts.RATIONALES.columns])
    parts = [contracts.read_table(path, contracts.RATIONALES) for path in paths]
    return pd.concat(parts).drop_duplicates(list(contracts.RATIONALES.key))


@config.app(GenerateRationales, "generate_reasoner")
def main(cfg: GenerateRationales) -> None:
    """Read the tables, generate what is missing sample by sample, join the parts."""
    inputs = {"checkpoint": cfg.checkpoint, **{f"table{i}": path for i, path in enumerate(cfg.tables)}}
    with stage.run("generate_llm_reasoner", cfg, inputs) as run:
        if run.finished:
            return
        meta = contracts.read_meta(cfg.checkpoint, "reasoner")
        table = tables.read_tables(cfg.tables, cfg.rows_per_fold)
        rows = make_rows(table, pd.DataFrame({"misconception_id": [], "name": []}))
        tokenizer = tokenization.load_tokenizer(cfg.checkpoint)
        budget = meta.max_length_tokens - cfg.max_new_tokens
        asked = [chat.prompt_ids(rows, index, tokenizer, meta.prompt_style, budget) for index in range(len(rows))]  # type: ignore[arg-type]
        accelerator = stage.make_accelerator(cfg.device)
        generate = engines.load_generator(
            cfg.engine, cfg.checkpoint, tokenizer, accelerator.device, meta.max_length_tokens, cfg.max_tokens_per_batch
        )
        parts = run.folder / "parts"
        done = read_parts(run.folder)
        if len(done):
            print(f"{len(done)} rationales are there already; writing the rest")
        for sample in range(cfg.samples):
            finished = set(done.loc[done["sample"] == sample, "query_id"])

            def save(chunk: list[int], written: list[Generation], sample: int = sample) -> None:
                frame = pd.DataFrame(
                    {
                        "query_id": [rows.query_id[index] for index in chunk],
                        "model": Path(cfg.checkpoint).name,
                        "sample": sample,
                        "text": [one.text for one in written],
                        "finish_reason": [one.finish_reason for one in written],
                        "n_tokens": [one.n_tokens for one in written],
                    }
                )
                contracts.write_table(frame, parts / f"part-{sample}-{chunk[0]}.parquet", contracts.RATIONALES)

            generate(
                asked, max_new_tokens=cfg.max_new_tokens, stop=[prompts.RATIONALE_END], temperature=cfg.temperature,
                top_p=cfg.top_p, seed=cfg.seed + sample, on_batch=save,
                skip=frozenset(i for i in range(len(rows)) if rows.query_id[i] in finished),
            )  # fmt: skip
        everything = read_parts(run.folder).sort_values(["query_id", "sample"]).reset_index(drop=True)
        cut = int((everything["finish_reason"] == "length").sum())
        if cut:
            print(f"warning: {cut} of {len(everything)} rationales were cut at max_new_tokens={cfg.max_new_tokens}")
        contracts.write_table(everything, run.folder / "rationales.parquet", contracts.RATIONALES)
        shutil.rmtree(parts, ignore_errors=True)
        in_sample = sorted(set(table["fold"].dropna().astype(int)) & set(meta.folds_trained))
        run.finish(
            {"rationales": len(everything)}, facts={"in_sample": bool(in_sample), "in_sample_folds": in_sample, **leaks.trained_on(meta)},
            next_command=f"python code/train_llm_embedding.py model.backbone={cfg.checkpoint} rationales={cfg.output_dir}"
            " data.questions_dir=<question folder>",
        )  # fmt: skip


if __name__ == "__main__":
    main()
