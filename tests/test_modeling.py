"""Backbones, the two models on them, adapters and merging, against plain transformers."""

import json
import shutil

import pytest
import running
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from podium import contracts, modeling, tokenization
from podium.batching import retrieval
from podium.batching.padding import pad
from podium.errors import DataError, MissingFileError, PodiumError, PrerequisiteError
from podium.modeling import Embedder, LabelScorer

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
LORA = dict(rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "down_proj"])
MODELS = {
    "tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **SPECIAL, tie_word_embeddings=True)),
    "untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **SPECIAL, tie_word_embeddings=False)),
    "soft cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, **SPECIAL, head_dim=16, final_logit_softcapping=0.5, sliding_window=8)
    ),
    "scaled": lambda: CohereForCausalLM(CohereConfig(**SHAPE, **SPECIAL, logit_scale=0.25)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, **SPECIAL, logits_scaling=4.0)),
    "lora": lambda: lora("tied"),
    "lora head": lambda: lora("untied", target_modules=["q_proj", "lm_head"]),
    "saved head": lambda: lora("untied", modules_to_save=["lm_head"]),
}


def lora(name, **changes):
    """A LoRA model whose adapters do something."""
    model = modeling.add_lora(MODELS[name](), "causal_lm", **{**LORA, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_sliced_logits_are_the_full_logits(name):
    model = MODELS[name]().eval()
    ids, mask = pad([torch.randint(3, 64, (n,)).tolist() for n in (9, 5, 7)], 0)
    read, labels = torch.tensor([[0, 8], [1, 4], [2, 6]]), torch.tensor([5, 9, 40])
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask).logits
        some, all_ = LabelScorer(model)(ids, label_read=read, label_ids=labels, lm_read=read)
        none = LabelScorer(model)(ids)
    expected = full[read[:, 0], read[:, 1]]
    torch.testing.assert_close(all_, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some, expected[:, labels], atol=1e-5, rtol=1e-5)
    assert none == (None, None)
    assert expected.std() > 1e-3


def test_sliced_logits_have_the_full_gradient():
    one, two = lora("tied"), None
    two = MODELS["tied"]
    two = modeling.add_lora(two(), "causal_lm", **LORA)
    two.load_state_dict(one.state_dict())
    ids, read, labels = torch.randint(3, 64, (2, 6)), torch.tensor([[0, 5], [1, 5]]), torch.tensor([7, 8])
    LabelScorer(one)(ids, label_read=read, label_ids=labels)[0].square().sum().backward()
    two(input_ids=ids).logits[:, 5][:, labels].square().sum().backward()
    pairs = [(p.grad, dict(two.named_parameters())[n].grad) for n, p in one.named_parameters() if p.requires_grad]
    assert pairs and any(grad.abs().max() > 0 for grad, _ in pairs)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["tied", "soft cap"])
def test_a_mask_of_two_packed_rows_gives_the_rows_alone(name):
    model = MODELS[name]().eval()
    first, second = torch.randint(3, 64, (1, 5)), torch.randint(3, 64, (1, 4))
    packed = torch.cat([first, second], dim=1)
    block = torch.zeros(9, 9, dtype=torch.bool)
    block[:5, :5], block[5:, 5:] = torch.ones(5, 5).tril().bool(), torch.ones(4, 4).tril().bool()
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    read = torch.tensor([[0, 4], [0, 8]])
    with torch.no_grad():
        _, together = LabelScorer(model)(packed, position_ids=positions, mask=block[None, None], lm_read=read)
        alone = torch.cat([model(input_ids=one).logits[:, -1] for one in (first, second)])
        _, plain = LabelScorer(model)(packed, lm_read=read)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain[1], alone[1], atol=1e-4), "without the mask the second row sees the first"


# --- embedder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_pooling_is_that_of_each_row_alone(pooling):
    config = Qwen2Config(**SHAPE, **SPECIAL)
    body = AutoModel.from_config(config).eval()
    rows = [torch.randint(3, 64, (n,)).tolist() for n in (9, 1, 4)]
    ids, mask = pad(rows, 0)
    with torch.no_grad():
        (mine,) = Embedder(body, pooling)({"input_ids": ids, "attention_mask": mask})
        hidden = [body(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    read = {"last": lambda h: h[-1], "mean": lambda h: h.mean(0), "cls": lambda h: h[0]}[pooling]
    theirs = torch.stack([F.normalize(read(one), dim=-1) for one in hidden])
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_sees_no_padding(pooling, tmp_path):
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    BertModel(config).save_pretrained(tmp_path)
    body = modeling.load_backbone(tmp_path, "embedding", dtype="float32").eval()
    assert modeling.is_encoder(body.config) and not modeling.is_encoder(Qwen2Config(**SHAPE))
    rows = [torch.randint(3, 64, (n,)).tolist() for n in (9, 3)]
    ids, mask = pad(rows, 0)
    with torch.no_grad():
        (mine,) = Embedder(body, pooling)({"input_ids": ids, "attention_mask": mask})
        hidden = [body(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    theirs = torch.stack([F.normalize(one.mean(0) if pooling == "mean" else one[0], dim=-1) for one in hidden])
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_several_batches_in_one_forward_are_each_alone():
    embedder = Embedder(AutoModel.from_config(Qwen2Config(**SHAPE, **SPECIAL)).eval(), "last")
    batches = [
        dict(zip(("input_ids", "attention_mask"), pad([[5, 6, 7], [8]], 0))),
        dict(zip(("input_ids", "attention_mask"), pad([[9, 9]], 0))),
    ]
    with torch.no_grad():
        together = embedder(*batches)
        assert all(one.equal(embedder(batch)[0]) for one, batch in zip(together, batches, strict=True))


# --- loading and starting points -------------------------------------------------------------------------------------


def test_flash_attention_is_refused_with_the_remedy(monkeypatch):
    with pytest.raises(PrerequisiteError, match="needs a GPU; use attn_implementation=sdpa"):
        modeling.load_backbone("anything", "embedding", attn_implementation="flash_attention_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(PrerequisiteError, match=r"pip install"):
        modeling.check_attention("flash_attention_2")
    modeling.check_attention("sdpa")


def test_a_missing_package_is_named_with_its_command(monkeypatch, backbone_dir):
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError, match="pip install bitsandbytes"):
        modeling.load_backbone(backbone_dir, "embedding", quantization="nf4")
    from podium import optim

    with pytest.raises(PrerequisiteError, match="pip install bitsandbytes"):
        optim.make_optimizer(
            torch.nn.Linear(2, 2), name="adamw_8bit", betas=[0.9, 0.9], eps=1e-8, lr=1.0, weight_decay=0.0
        )


@pytest.mark.parametrize("script", ["train_llm_reasoner", "train_llm_embedding"])
def test_an_unknown_backbone_is_one_clear_error(script, trainer, tmp_path):
    with pytest.raises(MissingFileError, match="no/such-model"):
        running.run(script, *trainer(tmp_path / "run", "model.backbone=no/such-model"))


def test_a_chain_of_starting_points(tmp_path):
    """Causal LM → body alone → causal LM again: with tied weights nothing is lost, without them the head is missed."""
    ids = torch.randint(3, 64, (1, 6))
    for name in ("tied", "untied"):
        first, second = tmp_path / name, tmp_path / f"{name}-body"
        model = MODELS[name]().eval()
        model.save_pretrained(first)
        body = modeling.load_backbone(first, "embedding", dtype="float32").eval()
        with torch.no_grad():
            torch.testing.assert_close(
                body(input_ids=ids).last_hidden_state, model.model(input_ids=ids).last_hidden_state
            )
        body.save_pretrained(second)
        if name == "tied":
            again = modeling.load_backbone(second, "causal_lm", dtype="float32").eval()
            with torch.no_grad():
                torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
        else:
            with pytest.raises(DataError, match="lm_head.weight"):
                modeling.load_backbone(second, "causal_lm", dtype="float32")


@pytest.mark.parametrize("damage", ["cut weights", "other shape", "no config", "bad config", "empty folder"])
def test_a_damaged_backbone_is_one_clear_error(damage, tmp_path):
    MODELS["tied"]().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other shape":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 96}))
    elif damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text("{")
    else:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    with pytest.raises(PodiumError, match=tmp_path.name) as caught:
        modeling.load_backbone(tmp_path, "causal_lm", dtype="float32")
    assert caught.value.exit_code in (4, 5) and "\n" not in str(caught.value)


def test_lora_on_layers_that_are_not_there_is_refused():
    with pytest.raises(DataError, match=r"'query' \(1 in all\)"):
        modeling.add_lora(MODELS["tied"](), "causal_lm", **{**LORA, "target_modules": ["q_proj", "query"]})


def test_adapters_start_the_same_for_a_seed(backbone_dir):
    def first(seed):
        options = dict(
            dtype="float32", attn_implementation="sdpa", quantization=None, gradient_checkpointing=False, lora=LORA
        )
        model = modeling.prepare_for_training(str(backbone_dir), "causal_lm", **options, seed=seed)
        torch.rand(3)
        return [p for n, p in model.named_parameters() if "lora_A" in n][0]

    assert first(1).equal(first(1)) and not first(1).equal(first(2))


def test_gradient_checkpointing_changes_no_gradient(backbone_dir):
    def gradients(checkpointing):
        options = dict(dtype="float32", attn_implementation="sdpa", quantization=None, lora={**LORA, "dropout": 0.3})
        model = modeling.prepare_for_training(
            str(backbone_dir), "causal_lm", **options, gradient_checkpointing=checkpointing, seed=0
        )
        model.train()
        torch.manual_seed(1)
        _, logits = LabelScorer(model)(torch.randint(3, 64, (2, 7)), lm_read=torch.tensor([[0, 6], [1, 3]]))
        logits.square().mean().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    plain, recomputed = gradients(False), gradients(True)
    assert any(grad.abs().max() > 0 for grad in plain)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, recomputed, strict=True))


# --- adapters, saved, loaded, merged ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["train_llm_reasoner", "train_llm_embedding"])
def adapter(request, tmp_path_factory, questions_dir, backbone_dir):
    """A LoRA run of each trainer, with rates that move it."""
    folder = tmp_path_factory.mktemp("adapter")
    more = ["sample_generations=0"] if request.param == "train_llm_reasoner" else []
    running.run(
        request.param, f"output_dir={folder}", f"data.questions_dir={questions_dir}", f"model.backbone={backbone_dir}",
        "device=cpu", "data.validation_rows=6", "loop.epochs=null", "loop.max_steps=4", "loop.batch_size=6", "optimizer.lr=0.05",
        "model.lora={rank: 4, alpha: 16, dropout: 0.1, target_modules: [q_proj, v_proj, up_proj], modules_to_save: null}", *more,
    )  # fmt: skip
    return request.param, folder


def output(folder, task):
    model, _ = modeling.load_checkpoint(folder, task, dtype="float32")
    with torch.no_grad():
        found = model(input_ids=torch.arange(5, 25)[None])
    return found.logits if task == "causal_lm" else found.last_hidden_state


def test_an_adapter_merges_into_the_same_model(adapter, backbone_dir, tmp_path):
    script, folder = adapter
    task = "causal_lm" if script == "train_llm_reasoner" else "embedding"
    merge = running.script("merge_adapter").merge
    merge(str(folder), str(tmp_path / "merged"))
    with_adapter, merged = output(folder, task), output(tmp_path / "merged", task)
    torch.testing.assert_close(merged, with_adapter, atol=1e-5, rtol=0)
    base = modeling.load_backbone(backbone_dir, task, dtype="float32").eval()
    with torch.no_grad():
        found = base(input_ids=torch.arange(5, 25)[None])
    plain = found.logits if task == "causal_lm" else found.last_hidden_state
    assert (plain - merged).abs().max() > 1e-2, "the adapter does something"
    before, after = contracts.read_meta(folder), contracts.read_meta(tmp_path / "merged")
    assert (before.kind, after.kind) == ("adapter", "merged") and after.stage == before.stage
    assert after.folds_trained == before.folds_trained and after.pooling == before.pooling
    assert tokenization.load_tokenizer(tmp_path / "merged").eos_token_id is not None
    with pytest.raises(DataError, match="already holds"):
        merge(str(folder), str(tmp_path / "merged"))


def test_an_adapter_checkpoint_holds_only_what_was_trained(adapter):
    _, folder = adapter
    assert not (folder / "model.safetensors").exists()
    names = list(load_file(folder / "adapter_model.safetensors"))
    assert names and all("lora_" in name for name in names)


def test_an_adapter_is_no_backbone(adapter):
    _, folder = adapter
    with pytest.raises(DataError, match=r"merge_adapter\.py --adapter_path"):
        modeling.load_backbone(folder, "causal_lm")


def test_merging_into_the_adapters_own_folder_is_refused(adapter):
    _, folder = adapter
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(DataError, match="choose another"):
        running.script("merge_adapter").merge(str(folder), str(folder))
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_merging_what_is_no_adapter_is_refused(backbone_dir, tmp_path):
    with pytest.raises(MissingFileError, match="adapter_config.json"):
        running.script("merge_adapter").merge(str(backbone_dir), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_moved_backbone_can_be_named(adapter, backbone_dir, tmp_path):
    _, folder = adapter
    moved, copy = tmp_path / "moved", tmp_path / "adapter"
    shutil.copytree(backbone_dir, moved)
    shutil.copytree(folder, copy)
    values = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(MissingFileError, match="gone"):
        running.script("merge_adapter").merge(str(copy), str(tmp_path / "one"))
    running.script("merge_adapter").merge(str(copy), str(tmp_path / "two"), backbone_path=str(moved))
    assert (tmp_path / "two" / "model.safetensors").is_file()


def test_adapter_files_are_the_same_in_every_process(adapter):
    """peft keeps layer names in a set: its order must not reach the file, or equal runs differ in bytes."""
    _, folder = adapter
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)


def test_embedding_of_a_text_depends_on_nothing_else(backbone_dir, tokenizer):
    """One text alone and among longer ones, and in batches of any size."""
    from podium.engines import transformers as engine

    embedder = Embedder(modeling.load_backbone(backbone_dir, "embedding", dtype="float32").eval(), "last")
    texts = ["1 + 1", "Expand the bracket 2(x + 3)", "1 + 1", "a" * 90]
    tokenize = lambda part: retrieval.tokenize_documents(tokenizer, part)  # noqa: E731
    whole = engine.embed(embedder, texts, tokenize, 10_000)
    small = engine.embed(embedder, texts, tokenize, 1)
    torch.testing.assert_close(whole, small, atol=1e-6, rtol=1e-5)
    assert whole[0].equal(whole[2]) and not torch.allclose(whole[0], whole[1])


def test_embedder_in_length_sorted_passes_equals_one_padded_pass(backbone_dir, tokenizer):
    from podium.batching.padding import pad
    from podium.modeling import Embedder, load_backbone

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 300, (int(n),), generator=generator).tolist() for n in (3, 40, 7, 25, 41, 4, 18)]
    ids, mask = pad(rows, tokenizer.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": mask}
    backbone = load_backbone(backbone_dir, "embedding").double().eval()
    results = {}
    for budget in (None, 50, 90):
        backbone.zero_grad()
        (vectors,) = Embedder(backbone, "last", budget)(batch)
        (vectors * torch.arange(vectors.numel()).view_as(vectors)).sum().backward()
        results[budget] = (vectors.detach(), next(backbone.parameters()).grad.clone())
    for budget in (50, 90):
        for got, plain in zip(results[budget], results[None], strict=True):
            torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-6)
    assert results[None][0].std() > 1e-3
