"""Predicted memory of every config at its own settings: the tables of docs/scaling.md.

    python tools/memory_table.py                            # all; rewrites the tables, configs' headers and README
    python tools/memory_table.py conf_listwise_72b …        # these, printed
    python tools/memory_table.py conf_qwen_small --gpu t4-16gb --backbone Qwen/Qwen2.5-3B -- model.quantization=nf4

Each config's own training script makes its dry run (podium/dry_run.py) and hands over its micro-step and its batches.
The tables it reads are built-in ones with questions so long that every prompt is cut to `max_length_tokens`, so the
figures are those of the worst batch; real questions are shorter. tools/backbones.yaml holds the backbones' shapes: no
weights, no hub and no GPU are needed.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "tests"), str(ROOT / "tools")]
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import memory_headers  # noqa: E402
import published  # noqa: E402
import running  # noqa: E402

from podium import contracts, dry_run, memory  # noqa: E402
from podium.pairwise.bank_pairs import write_bank_pairs  # noqa: E402
from podium.pairwise.pairs import PAIRS, SOFT_LABELS  # noqa: E402
from podium.procedural import generate, write_bank  # noqa: E402

DOCUMENT = ROOT / "docs" / "scaling.md"
MARKS = ("<!-- memory-table -->", "<!-- /memory-table -->")
SHAPES = yaml.safe_load((ROOT / "tools" / "backbones.yaml").read_text())
LIKE = {"BAAI/bge-en-icl": "intfloat/e5-mistral-7b-instruct", "Qwen/Qwen2.5-Math-7B": "Qwen/Qwen2.5-7B",
        "../models/eedi_embed_qwen14b_pretrain": "Qwen/Qwen2.5-14B"}  # fmt: skip
SCRIPTS = {
    "llm_embedding": "train_llm_embedding", "llm_reasoner": "train_llm_reasoner",
    "ranker_pointwise": "train_ranker_pointwise", "ranker_listwise": "train_ranker_listwise",
    "ranker_pairwise": "train_ranker_pairwise",
}  # fmt: skip
CARDS = {
    "conf_intfloat": "2 h100-80gb", "conf_bge": "2 h100-80gb", "conf_qwen14b_pretrain": "2 h100-80gb",
    "conf_qwen14b_finetune": "2 h100-80gb", "conf_qwen_small": "rtx4090-24gb", "conf_t4_small": "t4-16gb",
    "conf_encoder_small": "t4-16gb",
    "conf_reasoner_7b": "2 h100-80gb", "conf_reasoner_14b": "2 h100-80gb", "conf_reasoner_32b": "2 h100-94gb",
    "conf_reasoner_small": "rtx4090-24gb", "conf_sdat_llemma_7b": "h100-80gb/2", "conf_sdat_small": "t4-16gb",
    "conf_pointwise_14b": "2 h100-80gb", "conf_pointwise_32b": "2 h100-94gb", "conf_pointwise_72b": "2 h100-80gb",
    "conf_pointwise_small": "rtx4090-24gb", "conf_pointwise_t4_small": "t4-16gb",
    "conf_listwise_72b": "2 h100-80gb", "conf_listwise_small": "rtx4090-24gb",
    "conf_rank_stage1": "h100-80gb", "conf_rank_stage2": "h100-80gb", "conf_teacher": "h100-80gb", "conf_student": "h100-80gb",
    "conf_rank_stage1_24gb": "rtx4090-24gb", "conf_rank_stage2_24gb": "rtx4090-24gb", "conf_rank_stage1_16gb": "t4-16gb",
    "conf_rank_stage2_16gb": "t4-16gb", "conf_gemma2_9b_features": "rtx4090-24gb",
}  # fmt: skip
"""The card each config is meant for: `2 NAME` is DDP over two, `NAME/2` FSDP2 over two."""
SHARDED = [("conf_reasoner_32b", "null"), ("conf_pointwise_72b", "null"), ("conf_pointwise_72b", "nf4"),
           ("conf_listwise_72b", "null"), ("conf_listwise_72b", "nf4")]  # fmt: skip
"""Configs of the second table, with their `model.quantization`."""
OVER = (2, 4, 8)


def stage_of(config_name: str) -> str:
    """The folder of conf/ that holds a config of CARDS."""
    return next(stage for stage in SCRIPTS if (ROOT / "conf" / stage / f"{config_name}.yaml").is_file())


def backbone_of(config_name: str) -> str:
    """The backbone that a config names, followed through its defaults."""
    path = ROOT / "conf" / stage_of(config_name) / f"{config_name}.yaml"
    values = yaml.safe_load(path.read_text())
    return values.get("model", {}).get("backbone") or backbone_of(values["defaults"][0])


def shape_of(backbone: str) -> dict[str, Any]:
    """The config.json of a backbone, as far as memory depends on it."""
    name = LIKE.get(backbone, backbone).removesuffix("-Instruct")
    return {"max_position_embeddings": 8192, **SHAPES[name], "attention_dropout": 0.0}


# --- the worst tables ------------------------------------------------------------------------------------------------


@dataclass
class Workplace:
    """A folder with data/<name>/ of every published set, pairs, instructions, and a folder for each backbone's shape."""

    folder: Path

    def backbone(self, name: str) -> Path:
        """A folder with the backbone's config.json and a tokenizer, without weights."""
        made = self.folder / "backbones" / name.replace("/", "_")
        if not made.is_dir():
            shutil.copytree(self.folder / "tiny", made, ignore=shutil.ignore_patterns("*.safetensors"))
            (made / "config.json").write_text(json.dumps(shape_of(name)))
            (made / "chat_template.jinja").write_text("{% for m in messages %}{{m.role}}: {{m.content}}\n{% endfor %}")
        return made


def make_workplace(folder: Path) -> Workplace:
    """Built-in rows whose questions, responses or answers are longer than any config reads."""
    bank = folder / "bank"
    write_bank(generate(60, 16, seed=5), bank)
    running.run("prepare_questions", f"data_dir={bank}", f"output_dir={folder}/questions")
    running.run(
        "make_tiny_backbone", f"questions_dir={folder}/questions", f"output_dir={folder}/tiny", "vocabulary=600",
        "hidden_size=32", "layers=1", "heads=2", "intermediate_size=64", "max_position_embeddings=8192",
    )  # fmt: skip
    train = pd.read_csv(bank / "train.csv", dtype=str, keep_default_na=False)
    train["QuestionText"] += " and then" * 2500
    train.to_csv(bank / "train.csv", index=False)
    published.write_all(bank, folder / "data")

    write_bank_pairs(folder / "raw", train=64, unjudged=0, test=8, label_noise=0.1, seed=0, constructs=8)
    for path in (folder / "raw" / "train.jsonl", folder / "raw" / "test.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            for side in ("response_a", "response_b"):
                row[side] = row.get(side, "") + f" and then {row.get('pair_id')}" * 2500
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    running.run("prepare_pairs", f"output_dir={folder}/pairs", f"test={folder}/raw/test.jsonl",
                f"sources=[{{path:{folder}/raw/train.jsonl,name:bank,judged:true}}]")  # fmt: skip
    pairs = contracts.read_table(folder / "pairs" / "pairs.parquet", PAIRS)
    soft = pairs[["pair_id"]].assign(a_logit=-0.5, b_logit=-0.93, kind="given")
    (folder / "soft").mkdir()
    contracts.write_table(soft, folder / "soft" / "soft_labels.parquet", SOFT_LABELS)

    answers = [{"instruction": f"Say it {at} times", "output": " and then" * at, "difficulty_level": 3, "source": "s"}
               for at in range(100, 600)]  # fmt: skip
    (folder / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return Workplace(folder)


# --- predictions -----------------------------------------------------------------------------------------------------


def parse_card(card: str) -> tuple[memory.Gpu, int, int]:
    """`2 NAME` or `NAME/2`: the card, devices that hold a copy each, devices that FSDP2 shards over."""
    count, _, name = card.rpartition(" ")
    gpu, shards = memory.parse_gpu(name)
    return gpu, int(count or 1), shards


def predict(
    place: Workplace, config_name: str, cards: list[str], overrides: list[str], backbone: str | None = None
) -> list[dry_run.Peak]:
    """The peak of a config's worst step on each of the cards."""
    stage = stage_of(config_name)
    given = [f"model.backbone={place.backbone(backbone or backbone_of(config_name))}", "device=cpu", "dry_run=true"]
    if stage == "ranker_pairwise":
        given += [f"data.pairs_dir={place.folder}/pairs"]
        settings = running.settings(SCRIPTS[stage], *given, config_name=config_name)
        given += [f"soft_labels={place.folder}/soft"] if settings.soft_labels else []
    if "sdat" in config_name:
        given += [f"instructions.files=[{place.folder}/instructions.jsonl]", "instructions.validation_share=0.1",
                  "adap_factor=2"]  # fmt: skip
    found = []

    def capture(plan, *, collate, count, loop, **_):  # type: ignore[no-untyped-def]
        for card in cards:
            gpu, replicas, shards = parse_card(card)
            step = max(dry_run.sampled_steps(collate, count, loop, max(replicas, shards), at_most=2), key=len)
            sampled = [[max(step, key=memory.padded_tokens)] * len(step)]
            dtype = torch.bfloat16 if gpu.bf16 else torch.float16
            found.append(dry_run.peak(plan, dtype, sampled, shards=shards, replicas=replicas))

    with (
        mock.patch.object(dry_run, "report", capture),
        contextlib.chdir(place.folder),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        running.run(SCRIPTS[stage], *given, *overrides, config_name=config_name)
    return found


def row(config_name: str, backbone: str, card: str, peak: dry_run.Peak) -> str:
    """A line of the first table."""
    need, room = peak.largest, memory.capacity(parse_card(card)[0].mebibytes)
    stage = stage_of(config_name)
    cached = getattr(
        running.settings(SCRIPTS[stage], "model.backbone=any", config_name=config_name), "grad_cache", False
    )
    largest = "grad_cache" if cached else f"{peak.tokens[1]:,} of {peak.tokens_that_fit(room):,}"
    state = need.trained + need.gradients + need.optimizer
    parts = " | ".join(f"{part / memory.GIB:.1f}" for part in (need.weights, state, need.logits + need.activations))
    verdict = "fits" if need.total <= room else "**does not fit**"
    return (
        f"| {config_name} | {Path(backbone).name} | {card} | {parts} | {need.total / memory.GIB:.1f} |"
        f" {room / memory.GIB:.1f}, {verdict} | {largest} |"
    )


HEAD = """| config | backbone | card | frozen weights | trained, gradients, optimizer | activations, logits | together | of | padded tokens |
|---|---|---|---|---|---|---|---|---|"""


def tables(place: Workplace) -> str:
    """Both tables, as Markdown."""
    lines = [HEAD]
    for name, card in CARDS.items():
        lines += [row(name, backbone_of(name), card, predict(place, name, [card], [])[0])]
        print(lines[-1], flush=True)
    lines += [
        "",
        f"| FSDP2, GiB a device | {' | '.join(f'over {one} h100-80gb' for one in OVER)} |",
        "|---|" + "---|" * len(OVER),
    ]
    for name, quantization in SHARDED:
        peaks = predict(place, name, [f"h100-80gb/{one}" for one in OVER], [f"model.quantization={quantization}"])
        held = "bf16" if quantization == "null" else quantization
        cells = " | ".join(f"{one.largest.total / memory.GIB:.1f}" for one in peaks)
        lines += [f"| {name}, {held} | {cells} |"]
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print rows for the named configs, or rewrite the document's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="names of configs; none rewrites docs/scaling.md")
    parser.add_argument(
        "--gpu", help="card instead of the config's own: t4-16gb, `2 h100-80gb` (DDP), h100-80gb/4 (FSDP2)"
    )
    parser.add_argument("--backbone", help=f"instead of the config's own: {', '.join(SHAPES)}")
    known, overrides = sys.argv[1:], []
    if "--" in known:
        known, overrides = known[: known.index("--")], known[known.index("--") + 1 :]
    asked = parser.parse_args(known)
    if unknown := [name for name in asked.configs if name not in CARDS]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(CARDS)}")
    if asked.backbone and LIKE.get(asked.backbone, asked.backbone) not in SHAPES:
        parser.error(f"{asked.backbone}: not in tools/backbones.yaml")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        with contextlib.redirect_stdout(io.StringIO()):
            place = make_workplace(Path(scratch))
        if asked.configs:
            print(HEAD)
            for name in asked.configs:
                card, backbone = asked.gpu or CARDS[name], asked.backbone or backbone_of(name)
                print(row(name, backbone, card, predict(place, name, [card], overrides, backbone)[0]), flush=True)
            return
        text = DOCUMENT.read_text()
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        DOCUMENT.write_text(f"{before}{MARKS[0]}\n{tables(place)}\n{MARKS[1]}{after}")
    memory_headers.write()


if __name__ == "__main__":
    main()
