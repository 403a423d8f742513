"""FSDP2 on two gloo processes: the loop, its states and the export, with `fully_shard` itself.

accelerate falls back to DDP on CPU without a word, so `prepare` is left out here and the model sharded by hand, as accelerate
does it on GPUs.
"""

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import running
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from podium import checkpoint, losses, modeling, optim, reasoning, stage, training
from podium.errors import PrerequisiteError

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"], "modules_to_save": None}
ROWS = torch.randint(0, 64, (14, 12), generator=torch.Generator().manual_seed(0))


def collate(epoch, ids):
    return [{"input_ids": ROWS[part], "weight": float(11 * len(part))} for part in torch.tensor(ids).split(2)]


def loss(model, batch):
    rows = torch.arange(len(batch["input_ids"]))
    read = torch.cartesian_prod(rows, torch.arange(11))
    _, logits = model(batch["input_ids"], lm_read=read)
    return losses.next_token(logits, batch["input_ids"][:, 1:].flatten())


def evaluate(model):
    """What evaluations do between steps: a forward without gradients."""
    return {"loss": loss(model, {"input_ids": ROWS[:2]})[0].item()}


def train(folder, lora, steps, *, sharded, save_every=None, evaluate=evaluate):
    """`steps` steps of the loop at a constant rate; returns the model."""
    folder.mkdir(exist_ok=True)
    accelerator = stage.make_accelerator("cpu")
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    backbone = Qwen2ForCausalLM(config)
    model = modeling.LabelScorer(backbone if lora is None else modeling.add_lora(backbone, "causal_lm", **lora))
    optimizer = optim.make_optimizer(model, name="adamw", betas=[0.9, 0.95], eps=1e-6,
                                     lr=1e-2 if lora is None else 1e-1, weight_decay=0.01)  # fmt: skip
    if sharded:
        before = {name: parameter for name, parameter in model.named_parameters()}
        for layer in model._causal_lm().model.layers:
            fully_shard(layer)
        fully_shard(model)
        after = dict(model.named_parameters())
        swap = {parameter: after[name] for name, parameter in before.items()}
        for group in optimizer.param_groups:
            group["params"] = [swap[parameter] for parameter in group["params"]]
        assert isinstance(model, FSDPModule) and all(isinstance(one, DTensor) for one in after.values())
        accelerator.prepare = lambda *given: given
    training.train(
        accelerator=accelerator, model=model, optimizer=optimizer, count=len(ROWS), collate=collate,
        micro_step=training.plain(loss, accelerator), output_dir=folder, seed=0, epochs=None, max_steps=steps, batch_size=6,
        warmup_fraction=0.0, final_lr_fraction=1.0, max_grad_norm=0.5, eval_every_steps=1, save_every_steps=save_every,
        keep=9, num_workers=0, evaluate=evaluate,
    )  # fmt: skip
    return model


def final(folder):
    return load_file(checkpoint.latest(folder / "state") / "weights.safetensors")


def assert_close(one, two, tolerance=1e-6):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_sharded_over_two_is_one_and_states_move_between_them(lora, tmp_path):
    """Six steps alone; six sharded; and two sharded, two alone, two sharded, each resumed from the other's state."""
    train(tmp_path / "one", lora, 6, sharded=False)
    assert running.two_processes(lambda: train(tmp_path / "two", lora, 6, sharded=True)) == [0, 0]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "eval/loss"):
            assert (key in a) == (key in b) and a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), abs=1e-5, rel=1e-5)
    assert_close(final(tmp_path / "one"), final(tmp_path / "two"), 1e-5)
    judged = [line["eval/loss"] for line in logs[0] if "eval/loss" in line]
    assert judged[-1] < judged[0] - 0.5, "the model did train"

    moving = tmp_path / "moving"
    assert running.two_processes(lambda: train(moving, lora, 2, sharded=True)) == [0, 0]
    train(moving, lora, 4, sharded=False)
    assert running.two_processes(lambda: train(moving, lora, 6, sharded=True)) == [0, 0]
    assert_close(final(tmp_path / "one"), final(moving), 1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_sharded_model_is_exported_whole(lora, tmp_path):
    def work():
        model = train(tmp_path / "run", lora, 2, sharded=True)
        state = stage.whole_state(model.backbone)
        if os.environ["RANK"] == "0":
            model.backbone.save_pretrained(tmp_path / "export", state_dict=state)

    assert running.two_processes(work) == [0, 0]
    saved = final(tmp_path / "run")
    if lora is None:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert_close({f"backbone.{name}": one for name, one in loaded.named_parameters()}, saved)
    else:
        loaded = load_file(tmp_path / "export/adapter_model.safetensors")
        assert_close(
            {"backbone." + name.replace(".weight", ".default.weight"): one for name, one in loaded.items()}, saved
        )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_samples_are_written_by_all_processes_and_printed_by_one(lora, tokenizer, tmp_path, capfd):
    """Generation by one process of a sharded model would wait for the others for ever."""
    validation = SimpleNamespace(
        targets=["gold one", "gold two"], name=lambda at: f"row {at}", prompt_ids=lambda at, budget: ROWS[at].tolist()
    )
    rows: Any = SimpleNamespace(validation=validation, stop=["\n\n"])

    def look(model):
        say = print if os.environ.get("RANK", "0") == "0" else lambda line: None
        reasoning.show_samples(model, rows, tokenizer, 2, 20, 6, say)
        return evaluate(model)

    train(tmp_path / "one", lora, 3, sharded=False, evaluate=look)
    alone = [line for line in capfd.readouterr().out.splitlines() if "wrote:" in line or "gold:" in line]
    assert len(alone) == 3 * 4, "at every evaluation"
    assert running.two_processes(lambda: train(tmp_path / "two", lora, 3, sharded=True, evaluate=look)) == [0, 0]
    both = [line for line in capfd.readouterr().out.splitlines() if "wrote:" in line or "gold:" in line]
    assert both == alone
    assert_close(final(tmp_path / "one"), final(tmp_path / "two"), 1e-5)


def test_samples_of_a_copied_model_are_printed_once(trainer, tmp_path, capfd):
    """The trainer itself on two processes (DDP): the same texts as alone."""
    given = ["sample_generations=2", "max_new_tokens=8", "loop.max_steps=2", "loop.eval_every_steps=1"]
    running.run("train_llm_reasoner", *trainer(tmp_path / "one", *given))
    alone = [line for line in capfd.readouterr().out.splitlines() if " wrote:" in line]
    assert len(alone) == 2 * 2
    assert running.two_processes(lambda: running.run("train_llm_reasoner", *trainer(tmp_path / "two", *given))) == [
        0,
        0,
    ]
    both = [line for line in capfd.readouterr().out.splitlines() if " wrote:" in line]
    assert [line.split(" wrote:")[0] for line in both] == [line.split(" wrote:")[0] for line in alone]


def test_fsdp_on_cpu_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(PrerequisiteError, match="FSDP needs GPUs"):
        stage.make_accelerator("cpu")
