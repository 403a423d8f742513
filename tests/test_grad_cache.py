"""GradCache against the plain step: gradients, dropout, accumulation; and what its batches hold."""

import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from podium import grad_cache, losses, training
from podium.batching.retrieval import RetrievalCollator
from podium.modeling import Embedder, load_backbone

QUERIES = 12


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def collator(rows, tokenizer):
    return RetrievalCollator(rows, tokenizer, "plain", 300, seed=0)


def embedding_loss(query_QD, document_MD, batch):
    gold_QM = batch["document_ids"][None] == batch["gold_ids"][:, None]
    target_Q = gold_QM.int().argmax(1)
    return losses.info_nce(query_QD, document_MD, target_Q, 0.05)


def plain_loss(model, batch):
    return embedding_loss(*model(batch["query"], batch["document"]), batch)


def gradients(step, backbone_dir, batches, max_tokens, train=True, seed=3):
    """Loss sums and gradients after a step's micro-batches; attention dropout of .1 in training mode."""
    torch.manual_seed(0)
    model = Embedder(load_backbone(backbone_dir, "embedding").double(), "last", max_tokens).train(train)
    torch.manual_seed(seed)
    sums = [step(model, batch, 0.25)[0] for batch in batches]
    return sums, {name: parameter.grad for name, parameter in model.named_parameters()}


def tokens_of(batch):
    return sum(int(batch[kind]["attention_mask"].sum()) for kind in ("query", "document"))


@pytest.mark.parametrize("share", [1 / 100_000, 1 / 8, 1 / 5, 1 / 2, 2])
def test_cached_gradients_are_the_plain_ones_dropout_included(share, collator, backbone_dir, accelerator):
    """One text a chunk, chunks that divide the batch, that do not, and one that exceeds it."""
    (batch,) = collator(0, np.arange(QUERIES))
    max_tokens = max(1, int(tokens_of(batch) * share))
    plain_sums, plain = gradients(training.plain(plain_loss, accelerator), backbone_dir, [batch], max_tokens)
    cached = grad_cache.cached(embedding_loss, accelerator, max_tokens)
    sums, mine = gradients(cached, backbone_dir, [batch], max_tokens)
    assert sums == plain_sums, "the forward is the same, bit for bit"
    assert max(gradient.abs().max() for gradient in plain.values()) > 1e-3
    for name, gradient in plain.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    _, other = gradients(cached, backbone_dir, [batch], max_tokens, seed=4)
    assert any((other[name] - mine[name]).abs().max() > 1e-4 for name in mine), "dropout is on"


def test_chunks_do_not_change_the_step(collator, backbone_dir, accelerator):
    (batch,) = collator(0, np.arange(QUERIES))
    runs = [
        gradients(grad_cache.cached(embedding_loss, accelerator, size), backbone_dir, [batch], size, train=False)[1]
        for size in (1, 333, 100_000)
    ]
    for one in runs[1:]:
        for name, gradient in runs[0].items():
            torch.testing.assert_close(one[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_dropout_is_replayed_bit_for_bit(collator, backbone_dir, accelerator):
    (batch,) = collator(0, np.arange(QUERIES))
    torch.manual_seed(0)
    model = Embedder(load_backbone(backbone_dir, "embedding"), "last", 300).train()
    seen = []
    model.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[0].detach().clone()))
    grad_cache.cached(embedding_loss, accelerator, 300)(model, batch, 1.0)
    passes = (len(seen) + 1) // 2  # the last chunk keeps its graph and is not embedded again
    assert passes > 3
    assert all(first.equal(again) for first, again in zip(seen[: passes - 1], reversed(seen[passes:]), strict=True))
    assert any(not model(texts)[0].equal(seen[0]) for _, texts in grad_cache.chunks(batch["query"], 300)[:1])


def test_two_micro_steps_add_up(collator, backbone_dir, accelerator):
    batches = [collator(0, np.arange(start, start + 6))[0] for start in (0, 6)]
    _, plain = gradients(training.plain(plain_loss, accelerator), backbone_dir, batches, 250)
    _, mine = gradients(grad_cache.cached(embedding_loss, accelerator, 250), backbone_dir, batches, 250)
    for name, gradient in plain.items():
        torch.testing.assert_close(mine[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_no_graph_outlives_its_chunk(collator, backbone_dir, accelerator):
    """What memory depends on: tokens that a single forward with a graph sees."""
    model = Embedder(load_backbone(backbone_dir, "embedding"), "last", 200).train()
    widest = []
    model.register_forward_pre_hook(
        lambda _module, inputs: (
            widest.append(int(inputs[0]["attention_mask"].sum())) if torch.is_grad_enabled() else None
        )
    )
    figures = []
    for size in (4, 16):
        widest.clear()
        (batch,) = collator(0, np.arange(size))
        grad_cache.cached(embedding_loss, accelerator, 200)(model, batch, 1.0)
        figures.append(max(widest))
    assert max(figures) <= 200


def test_one_graph_is_alive_at_a_time(collator, backbone_dir, accelerator):
    """No forward with a graph begins while tensors saved for another one's backward are still held."""
    (batch,) = collator(0, np.arange(QUERIES))
    model = Embedder(load_backbone(backbone_dir, "embedding"), "last", 200).train()
    saved = weakref.WeakSet()
    alive = []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.add(self)

    model.register_forward_pre_hook(lambda *_: alive.append(len(saved)) if torch.is_grad_enabled() else None)
    model.register_forward_hook(lambda *_: alive.append(len(saved)) if torch.is_grad_enabled() else None)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda one: one.tensor):
        grad_cache.cached(embedding_loss, accelerator, 200)(model, batch, 1.0)
    before, after = alive[::2], alive[1::2]
    assert len(before) > 3 and min(after) > 10
    assert before == [0] * len(before)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_packed_embeddings_are_the_padded_ones(pooling, collator, backbone_dir):
    (batch,) = collator(0, np.arange(QUERIES))
    packed = Embedder(load_backbone(backbone_dir, "embedding"), pooling, 500).eval()
    padded = Embedder(load_backbone(backbone_dir, "embedding"), pooling).eval()
    assert packed.packing_refusal is None
    padded.packing_refusal = "to compare"
    with torch.no_grad():
        for mine, theirs in zip(packed(batch["query"], batch["document"]), padded(batch["query"], batch["document"])):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("processes", [1, 3])
def test_full_corpus_brings_every_misconception_once(processes, rows, tokenizer):
    shares = []
    for process in range(processes):
        made = RetrievalCollator(rows, tokenizer, "plain", 300, seed=0, corpus_share=(process, processes))
        (batch,) = made(0, np.arange(4))
        assert len(batch["document"]["input_ids"]) == len(batch["document_ids"])
        shares += batch["document_ids"].tolist()
    assert sorted(shares) == sorted(rows.names)
