"""Twenty steps of every trainer on fixed token tables: recorded losses that a change must not move unless it means to.

    python tests/golden_runs.py --record     writes tests/data/golden_losses.json; refuses a working tree with changes

Nothing here comes from the bank, from podium.prompts' wording or from torch's initialisation: texts are words w00 … w59
drawn by a counter-based generator, prompts are replaced by the plainest ones, weights are drawn by the same generator. What
is left is what the recording is about: collators, losses, the loop, the optimizer.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pandas as pd
import running
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from podium import contracts, prompts, rng
from podium.pairwise import prompts as pair_prompts
from podium.pairwise.pairs import PAIRS, SOFT_LABELS

GOLDEN = Path(__file__).parent / "data" / "golden_losses.json"
STEPS = 20
WORDS = [f"w{number:02d}" for number in range(60)]
MARKS = ["end", "why", "match", "best", "Yes", "No", *"ABCDEFGH"]
QUERIES, NAMES = 23, 12
COMMON = [
    "data.train_folds=[1]", "device=cpu", "loop.epochs=null", f"loop.max_steps={STEPS}", "loop.batch_size=5",
    "loop.save_every_steps=null", "optimizer.lr=5e-3", "optimizer.eps=1e-3", "topic_dropout=0.3", "rationale_dropout=0.4",
    "max_length_tokens=128",
]  # fmt: skip
RANKER = ["candidates_per_group=[3,4]", "validation_depth=4", "label_smoothing=0.05", "max_tokens_per_micro_batch=4000"]
TRAINERS = {
    "reasoner": ("train_llm_reasoner", ["sample_generations=0", "max_new_tokens=8", "max_tokens_per_micro_batch=4000"]),
    "retriever": (
        "train_llm_embedding",
        ["hard_negatives={candidates: HERE, per_query: 2, top: 4, refresh_every_steps: null}", "first_temperature=0.2",
         "last_temperature=0.1", "distillation={scores: HERE, temperature: 1.0, weight: 0.3}", "rationales=HERE"],
    ),
    "pointwise": ("train_ranker_pointwise", [*RANKER, "groups=HERE", "rationales=HERE", "distillation={temperature: 1.0, weight: 0.3}"]),
    "listwise": ("train_ranker_listwise", [*RANKER, "groups=HERE", "rationales=HERE", "distillation={temperature: 1.0, weight: 0.3}"]),
    "pairwise": (
        "train_ranker_pairwise",
        ["data.pairs_dir=HERE", "soft_labels=HERE", "loss.soft_weight=0.5", "loss.label_smoothing=0.05",
         "max_tokens_per_micro_batch=4000"],
    ),
}  # fmt: skip
"""Trainer -> script and overrides; HERE is the folder of the fixed tables."""


def text(count, *key):
    """`count` words drawn for a key."""
    return " ".join(WORDS[at] for at in rng.generator("golden", *key).integers(len(WORDS), size=count))


def write_tables(folder):
    """Questions, catalogue, rationales, candidates, teacher scores and groups, all in one folder."""
    questions, rationales, candidates, scores, groups = [], [], [], [], []
    for number in range(QUERIES + 4):
        query, gold = f"{number}_A", number % NAMES
        questions.append((query, number, 1, text(1, "s", number % 3), 1, text(2, "c", number % 3), text(7 + number % 5, "q", number),
                          text(1, "right", number), text(1, "wrong", number), "-", gold, "golden", 1 if number < QUERIES else 0))  # fmt: skip
        rationales.append((query, "golden", 0, text(4 + number % 4, "r", number), "stop", 4))
        others = [int(one) for one in rng.permutation(NAMES, "golden", query) if one != gold][:4]
        candidates += [(query, rank, one, -float(rank), "golden") for rank, one in enumerate(others, 1)]
        ranked = [*others[:2], gold, *others[2:]]
        scores += [(query, one, "golden", float((one * 7 + number) % 5)) for one in ranked]
        groups += [(query, one, rank, one == gold, float((one * 7 + number) % 5)) for rank, one in enumerate(ranked, 1)]
    pairs, soft = [], []
    for number in range(QUERIES + 4):
        first_wins = number % 3 != 1
        sides = [
            f"{'w00' if won else 'w01'} {text(3 + number % 4, 'side', number, won)}"
            for won in (first_wins, not first_wins)
        ]
        pairs.append((f"p{number}", f"p{number}", text(4, "asked", number), *sides, "model_a" if first_wins else "model_b",
                      None, None, None, "golden", 1 if number < QUERIES else 0))  # fmt: skip
        soft.append((f"p{number}", *((-0.2, -1.7) if first_wins else (-1.7, -0.2)), "given"))
    names = [(number, text(3 + number % 3, "name", number)) for number in range(NAMES)]
    for rows, table in (
        (questions, contracts.QUESTIONS), (names, contracts.MISCONCEPTIONS), (rationales, contracts.RATIONALES),
        (candidates, contracts.CANDIDATES), (scores, contracts.SCORES), (groups, contracts.GROUPS), (pairs, PAIRS), (soft, SOFT_LABELS),
    ):  # fmt: skip
        frame = pd.DataFrame(rows, columns=[column.name for column in table.columns])
        contracts.write_table(frame, folder / f"{table.name}.parquet", table)


def write_backbone(folder):
    """A Qwen2 of 2 layers × 32 with a tokenizer of whole words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    backend.train_from_iterator([f" {word}" * 50 for word in [*MARKS, *WORDS]], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<end>", model_max_length=256
    ).save_pretrained(folder)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=backend.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=0,
    ))  # fmt: skip
    for name, parameter in model.named_parameters():
        drawn = torch.from_numpy(rng.generator("golden", name).standard_normal(tuple(parameter.shape))).float()
        parameter.data = torch.ones_like(drawn) if "norm" in name else 0.1 * drawn
    model.save_pretrained(folder)


PROMPTS = {
    "retrieval_query": lambda query, style, *, topic=True, rationale=None: f"{_body(query, topic)} {rationale or ''} end",
    "retrieval_document": lambda name: f" {name}",
    "reasoner_prompt": lambda query, style: f"{_body(query, True)} why",
    "reasoner_completion": lambda rationale, name: f" {rationale}" + (f" end {name}" if name is not None else ""),
    "pointwise_parts": lambda query, name, style, *, topic=True, rationale=None, examples=None: (
        f"{_body(query, topic)} {rationale or ''} end", f" {name}", " match"
    ),
    "listwise_parts": lambda query, names, style, *, topic=True, rationale=None, examples=None: (
        f"{_body(query, topic)} {rationale or ''}\n",
        [f"{label.strip()}: {name}\n" for label, name in zip(prompts.option_labels(len(names)), names, strict=True)],
        "best",
    ),
}  # fmt: skip


def _body(query, topic):
    return f"{query.construct if topic else ''} {query.question} {query.correct} {query.wrong}"


@contextlib.contextmanager
def fixed_prompts():
    """The plainest prompts, so that a recording does not depend on wording."""
    with contextlib.ExitStack() as stack:
        for name, function in PROMPTS.items():
            stack.enter_context(mock.patch.object(prompts, name, function))
        plain = pair_prompts.Wrapper("", " A ", " B ", " best")
        stack.enter_context(mock.patch.object(pair_prompts, "wrapper", lambda style, tokenizer, names=None: plain))
        yield


def write_inputs(folder):
    """Everything the runs read."""
    folder.mkdir(exist_ok=True)
    write_tables(folder)
    write_backbone(folder / "backbone")
    return folder


def overrides(trainer, inputs, output_dir, *more):
    """Script and overrides of one run."""
    script, own = TRAINERS[trainer]
    common = [
        one for one in COMMON if trainer not in ("reasoner", "pairwise") or not one.startswith(("topic_", "rationale_"))
    ]
    tables = [] if trainer == "pairwise" else [f"data.questions_dir={inputs}"]
    given = [*tables, f"model.backbone={inputs}/backbone", *common, *own, *more]
    return script, [one.replace("HERE", str(inputs)) for one in given] + [f"output_dir={output_dir}"]


def run(trainer, inputs, output_dir, *more):
    """Train; returns [loss, gradient norm] of every step."""
    script, given = overrides(trainer, inputs, output_dir, *more)
    with fixed_prompts():
        running.run(script, *given)
    return trajectory(output_dir)


def trajectory(output_dir):
    """[loss, gradient norm] of every step of a run's log."""
    lines = [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]
    return [[line["loss"], line["grad_norm"]] for line in lines if "loss" in line and "grad_norm" in line]


def record():
    """Write the golden file, with what it was recorded with."""
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=running.ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    if changes.strip():
        sys.exit(
            f"error: the working tree has changes; commit them first, so that the recording names its code:\n{changes}"
        )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=running.ROOT, capture_output=True, text=True, check=True
    ).stdout
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = write_inputs(Path(scratch) / "inputs")
        runs = {trainer: run(trainer, inputs, Path(scratch) / trainer) for trainer in TRAINERS}
    about = {"commit": commit.strip(), "torch": torch.__version__, "command": "python tests/golden_runs.py --record"}
    contracts.write_json(GOLDEN, {"about": about, "loss_and_grad_norm": runs})
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", required=True)
    parser.parse_args()
    record()
