"""Averaged adapters are the exact weighted sum, and are kept only when validation rows say so."""

import json

import pytest
import running
import torch

from podium import averaging, contracts, modeling
from podium.errors import DataError

LORA = "model.lora={rank:%d,alpha:8,dropout:0,target_modules:[q_proj,v_proj]}"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, questions_dir, backbone_dir):
    """Two retriever adapters of different ranks and seeds."""
    made = []
    for seed, rank in ((0, 2), (1, 4)):
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        running.run(
            "train_llm_embedding", f"output_dir={folder}", f"data.questions_dir={questions_dir}", f"model.backbone={backbone_dir}",
            "device=cpu", "data.validation_rows=12", "loop.max_steps=3", "loop.epochs=null", "loop.batch_size=8", f"loop.seed={seed}",
            "optimizer.lr=0.05", LORA % rank, "max_length_tokens=400",
        )  # fmt: skip
        made.append(str(folder))
    return made


def updates(model, adapter):
    """Layer -> the adapter's weight update."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and adapter in module.lora_A
    }
    return {name: module.get_delta_weight(adapter).detach() for name, module in layers.items()}


@pytest.mark.parametrize("weights", [None, [0.25, 0.75], [1.5, -0.5]], ids=str)
def test_the_average_is_the_exact_weighted_sum(weights, adapters, backbone_dir):
    model = averaging.average(modeling.load_backbone(backbone_dir, "embedding"), adapters, weights)
    first, second, mixed = (updates(model, name) for name in ("0", "1", averaging.AVERAGE))
    a, b = weights or (0.5, 0.5)
    assert len(mixed) == 4
    for layer in mixed:
        torch.testing.assert_close(mixed[layer], a * first[layer] + b * second[layer], atol=1e-6, rtol=1e-5)
        assert mixed[layer].abs().max() > 1e-4


def test_averaging_the_factors_is_something_else(adapters, backbone_dir):
    """The check above can fail: PEFT's linear combination (equal ranks) is not the average of the updates."""
    model = averaging.average(modeling.load_backbone(backbone_dir, "embedding"), [adapters[0], adapters[0]], None)
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "lora_B") and "1" in module.lora_B:
            torch.nn.init.normal_(module.lora_B["1"].weight)
            torch.nn.init.normal_(module.lora_A["1"].weight)
    model.add_weighted_adapter(["0", "1"], [0.5, 0.5], "linear", combination_type="linear")
    first, second, mixed = (updates(model, name) for name in ("0", "1", "linear"))
    assert any((mixed[k] - 0.5 * first[k] - 0.5 * second[k]).abs().max() > 0.1 for k in mixed)


def test_the_gate_keeps_or_refuses(adapters, questions_dir, tmp_path, capsys):
    given = [
        f"checkpoints=[{','.join(adapters)}]",
        f"questions_dir={questions_dir}",
        "device=cpu",
        "validation_rows=12",
    ]
    running.run("average_adapters", *given, f"output_dir={tmp_path / 'no'}", "min_gain=1.0")
    report = json.loads((tmp_path / "no" / "report.json").read_text())
    assert report["accepted"] is False and set(report["map@25"]) == {"0", "1", "average"}
    assert all({"all", "seen", "unseen"} == set(one) for one in report["map@25"].values())
    assert not (tmp_path / "no" / "adapter_config.json").exists() and "no checkpoint" in capsys.readouterr().out
    running.run("average_adapters", *given, f"output_dir={tmp_path / 'yes'}", "min_gain=-1.0")
    meta = contracts.read_meta(tmp_path / "yes")
    assert meta.kind == "adapter" and meta.extra["averaged"] == adapters
    model, _ = modeling.load_checkpoint(tmp_path / "yes", "embedding")
    assert model.peft_config["default"].r == 6
    assert "code/average_adapters.py" in (tmp_path / "yes" / "README.md").read_text()
    assert not (tmp_path / "yes" / "metrics.jsonl").exists(), "no loss curve of one of the two"


def test_unlike_checkpoints_are_refused(adapters, backbone_dir, tmp_path):
    with pytest.raises(DataError, match="two or more"):
        averaging.read_metas(adapters[:1])
    with pytest.raises(DataError, match="needs embedding or pointwise"):
        averaging.read_metas([adapters[0], str(backbone_dir)])
    import dataclasses
    import shutil

    shutil.copytree(adapters[1], tmp_path / "other")
    contracts.write_meta(
        tmp_path / "other", dataclasses.replace(contracts.read_meta(adapters[1]), prompt_style="instruct")
    )
    with pytest.raises(DataError, match="prompt_style"):
        averaging.read_metas([adapters[0], str(tmp_path / "other")])
