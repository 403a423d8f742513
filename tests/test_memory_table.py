"""tools/memory_table.py: shapes are those of the published models, every config for GPUs has a card, one row is reckoned."""

import importlib.util
import re
import subprocess
import sys

import pytest
import running
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from podium import config, memory

spec = importlib.util.spec_from_file_location("memory_table", running.ROOT / "tools" / "memory_table.py")
memory_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory_table)

PARAMETERS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512, "Qwen/Qwen2.5-14B": 14_770_033_664, "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648, "google/gemma-2-9b-it": 9_241_705_984, "EleutherAI/llemma_7b": 6_738_546_688,
    "intfloat/e5-mistral-7b-instruct": 7_110_660_096, "BAAI/bge-small-en-v1.5": 33_360_000,
}  # fmt: skip
"""What the hub counts in each model's safetensors; of e5-mistral the body alone, which is what is published."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shapes_have_the_published_numbers_of_parameters(name):
    values = memory_table.shape_of(name)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    encoder = made.model_type in ("bert", "mistral")
    with torch.device("meta"):
        model = (AutoModel if encoder else AutoModelForCausalLM).from_config(made)
    assert sum(one.numel() for one in model.parameters()) == pytest.approx(PARAMETERS[name], rel=5e-4)


def test_every_config_for_a_gpu_has_a_card_and_a_shape():
    wanted = {
        name
        for stage in memory_table.SCRIPTS
        for name in config.config_names(stage)
        if not re.search("base|demo|micro|preferences|cpu", name)
    }
    assert wanted == set(memory_table.CARDS)
    for name, card in memory_table.CARDS.items():
        gpu, replicas, shards = memory_table.parse_card(card)
        assert gpu in memory.GPUS.values() and (replicas == 1 or shards == 1)
        assert memory_table.shape_of(memory_table.backbone_of(name))["hidden_size"] > 0


def test_the_document_s_table_is_of_the_configs_that_are_there():
    text = (running.ROOT / "docs/scaling.md").read_text()
    between = text.split(memory_table.MARKS[0])[1].split(memory_table.MARKS[1])[0]
    rows = [line.split(" | ") for line in between.splitlines() if line.startswith("| conf_")]
    listed = {row[0].strip("| "): (row[1], row[2]) for row in rows if len(row) > 6}
    assert listed == {
        name: (memory_table.backbone_of(name).split("/")[-1], card) for name, card in memory_table.CARDS.items()
    }


@pytest.mark.long
def test_one_row_is_reckoned_from_the_command_line():
    """1.54 G weights in bf16 are 2.88 GiB; rank 64 on all linear layers is 73,859,072 weights, fp32, with gradients and AdamW 1.10."""
    command = [sys.executable, str(running.ROOT / "tools/memory_table.py"), "conf_reasoner_small", "--gpu", "t4-16gb"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[-1].split(" | ")
    assert cells[2] == "t4-16gb" and cells[3] == "2.9" and cells[4] == "1.1" and "fits" in cells[7]
