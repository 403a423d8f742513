"""QLoRA and 8-bit AdamW on the CPU, and what is said where bitsandbytes is absent."""

import json
import shutil
import sys

import pytest
import running
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from podium import checkpoint, contracts, modeling, optim
from podium.batching.groups import collate_packed, pack
from podium.errors import PrerequisiteError

QLORA = [
    "model.quantization=nf4", "optimizer.lr=5e-3", "sample_generations=0",
    "model.lora={rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj, down_proj], modules_to_save: null}",
]  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, backbone_dir):
    """The tiny backbone 64 wide: bitsandbytes on CPU packs blocks of 64 along a row."""
    folder = tmp_path_factory.mktemp("wide") / "backbone"
    shutil.copytree(backbone_dir, folder)
    values = json.loads((folder / "config.json").read_text()) | {"hidden_size": 64, "intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(values))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_qlora_trains_resumes_and_merges(optimizer, trainer, backbone, tmp_path):
    """Killed in the writer and resumed, it ends bit for bit as the run that was left alone; then merged into full precision."""
    pytest.importorskip("bitsandbytes")
    given = [*QLORA, f"optimizer.name={optimizer}", "loop.max_steps=8", f"model.backbone={backbone}"]
    running.run("train_llm_reasoner", *trainer(tmp_path / "whole", *given))

    def work():
        real, calls = contracts.publish_folder, iter(range(99))
        contracts.publish_folder = lambda *paths: running.kill_self() if next(calls) == 4 else real(*paths)
        running.run("train_llm_reasoner", *trainer(tmp_path / "cut", *given))

    assert running.forked(work) == -9
    assert checkpoint.latest(tmp_path / "cut/state").name == "step-00000004"
    running.run("train_llm_reasoner", *trainer(tmp_path / "cut", *given))
    for name in ("weights", "optimizer"):
        one, two = (load_file(tmp_path / run / f"state/step-00000008/{name}.safetensors") for run in ("whole", "cut"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    losses = [json.loads(line).get("loss") for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    losses = [one for one in losses if one is not None]
    assert losses[-1] < losses[0], "it did train"

    adapter = load_file(tmp_path / "cut/adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter), "only what is trained is saved"
    running.script("merge_adapter").merge(str(tmp_path / "cut"), str(tmp_path / "merged"))
    merged, meta = modeling.load_checkpoint(tmp_path / "merged", "causal_lm")
    assert meta.kind == "merged" and not hasattr(merged, "peft_config")
    on_base, _ = modeling.load_checkpoint(tmp_path / "cut", "causal_lm")
    base = modeling.load_backbone(backbone, "causal_lm").eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, on_base(ids).logits, atol=1e-5, rtol=1e-5)
        assert (merged(ids).logits - base(ids).logits).abs().max() > 1e-3, "the adapter does something"


def test_nf4_is_double_quantised_and_smaller(backbone):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = modeling.load_backbone(backbone, "causal_lm", quantization="nf4")
    layers = [one for one in model.modules() if isinstance(one, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14, "seven linear layers in each of two"
    assert all(one.weight.quant_state.nested and one.weight.quant_state.quant_type == "nf4" for one in layers)
    assert all(
        one.weight.element_size() * one.weight.numel() * 2 == one.in_features * one.out_features for one in layers
    )


def steps(make, weights, gradients):
    """The parameter after a step with each gradient."""
    parameter = nn.Parameter(weights.clone())
    optimizer = make(parameter)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("size", "tolerance"), [(64, 1e-6), (8192, 2e-2)])
def test_eight_bit_adamw_is_decoupled_adamw(size, tolerance):
    """Small tensors (32-bit states) agree with torch to rounding; large ones (8-bit) to the states' resolution.

    The tolerance is relative to how far torch's AdamW moves. Adam with L2 decay, the mistake to exclude, is far outside it.
    """
    pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(size, generator=generator)
    gradients = [torch.randn(size, generator=generator) + 0.5 for _ in range(20)]
    rates = dict(lr=1e-2, weight_decay=0.5)

    def ours(parameter):
        model = nn.ParameterDict({"matrix": parameter})
        made = optim.make_optimizer(model, name="adamw_8bit", betas=[0.9, 0.95], eps=1e-8, **rates)
        made.param_groups[0]["weight_decay"] = rates[
            "weight_decay"
        ]  # vectors are not decayed; this one stands for a matrix
        return made

    options = dict(betas=(0.9, 0.95), eps=1e-8, **rates)
    eight = steps(ours, weights, gradients)
    decoupled = steps(lambda p: torch.optim.AdamW([p], **options), weights, gradients)
    coupled = steps(lambda p: torch.optim.Adam([p], **options), weights, gradients)
    moved = (decoupled - weights).norm()
    assert (eight - decoupled).norm() / moved < tolerance
    assert (coupled - decoupled).norm() / moved > 5 * 2e-2


def test_eight_bit_decay_alone_shrinks_by_the_rate():
    pytest.importorskip("bitsandbytes")
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    model = nn.ParameterDict({"matrix": nn.Parameter(weights.clone())})
    optimizer = optim.make_optimizer(model, name="adamw_8bit", betas=[0.9, 0.95], eps=1e-8, lr=0.01, weight_decay=0.5)
    for _ in range(10):
        model["matrix"].grad = torch.zeros_like(weights)
        optimizer.step()
    torch.testing.assert_close(model["matrix"].detach(), weights * (1 - 0.01 * 0.5) ** 10, rtol=1e-5, atol=1e-6)


def test_without_bitsandbytes_both_are_refused_with_the_install_line(backbone_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PrerequisiteError, match=r"pip install bitsandbytes==0\.50\.2"):
        modeling.load_backbone(backbone_dir, "causal_lm", quantization="nf4")
    with pytest.raises(PrerequisiteError, match=r"pip install bitsandbytes==0\.50\.2"):
        optim.make_optimizer(nn.Linear(2, 2), name="adamw_8bit", betas=[0.9, 0.95], eps=1e-8, lr=0.1, weight_decay=0.0)


def four_bit(layer):
    """A linear layer as QLoRA holds it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")


HEADS = {
    "nf4 head": (["q_proj"], None, True),
    "nf4 head under LoRA": (["q_proj", "lm_head"], None, True),
    "head under LoRA": (["q_proj", "lm_head"], None, False),
    "trained copy of the head": (["q_proj"], ["lm_head"], False),
    "plain head": (["q_proj"], None, False),
}


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("name", HEADS)
def test_label_rows_of_packed_prompts_through_any_head(name, soft_cap, backbone):
    """nf4 body, adapters and head in four forms: label rows of packed prompts are those of whole logits of each prompt."""
    pytest.importorskip("bitsandbytes")
    target_modules, modules_to_save, is_four_bit = HEADS[name]
    torch.manual_seed(0)
    model = modeling.load_backbone(backbone, "causal_lm", dtype="float32", quantization="nf4")
    model.config.final_logit_softcapping = soft_cap
    model.config.tie_word_embeddings = False
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    if is_four_bit:
        model.lm_head = four_bit(model.lm_head)
    model = modeling.add_lora(
        model, "causal_lm", rank=4, alpha=8, dropout=0.0, target_modules=target_modules, modules_to_save=modules_to_save
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    scorer = modeling.LabelScorer(model)
    context = torch.randint(5, 60, (20,)).tolist()
    prompts = [[*context, 5 + at, *torch.randint(5, 60, (at + 1,)).tolist()] for at in range(5)]
    labels = torch.tensor([7, 30, 45])
    packed = collate_packed([pack(prompts, [(0, 0)] * 5)])
    assert packed["input_ids"].shape[1] < sum(map(len, prompts))
    capped = (lambda logits: torch.tanh(logits / soft_cap) * soft_cap) if soft_cap else (lambda logits: logits)

    def whole():
        rows = [capped(model(input_ids=torch.tensor([prompt])).logits[0, -1]) for prompt in prompts]
        return torch.stack(rows)[:, labels]

    # bitsandbytes repacks 4-bit weights in eval mode where the processor has AVX-512
    for mode in (True, False):
        model.train(mode)
        expected, (found, _) = whole(), scorer(**packed, label_ids=labels)
        assert expected.std() > 1e-2
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        if mode:
            weights = torch.randn_like(expected)
            trained = [one for one in model.parameters() if one.requires_grad]
            wanted = torch.autograd.grad((expected * weights).sum(), trained)
            for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), trained), wanted, strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
