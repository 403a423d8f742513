"""Checkpoints open in other people's tools and give the same figures there."""

import numpy as np
import pytest
import torch

from podium import contracts, modeling, prompts, ranking, retrieval, sharing, tokenization
from podium.batching.groups import PointwiseRenderer
from podium.modeling import Embedder, LabelScorer

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


@pytest.fixture
def retriever(request, backbone_dir, tmp_path):
    """A retriever folder as `stage.export` leaves it; its tokenizer has a chat template that must not be applied."""
    kind, pooling = request.param
    backbone = modeling.load_backbone(backbone_dir, "embedding")
    if kind == "adapter":
        torch.manual_seed(0)
        backbone = modeling.add_lora(backbone, "embedding", rank=2, alpha=4.0, dropout=0.0, target_modules=["q_proj"])
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    tokenizer = tokenization.load_tokenizer(backbone_dir)
    tokenizer.chat_template = TEMPLATE
    backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    meta = contracts.CheckpointMeta(
        stage="embedding", kind=kind, base_model=str(backbone_dir), pooling=pooling, max_length_tokens=300,
        best_metric={"map@25": 0.5}, extra={"validation_in_sample": True},
    )  # fmt: skip
    contracts.write_meta(tmp_path, meta)
    sharing.write_module_files(tmp_path, meta, 32)
    sharing.write_card(tmp_path, meta, "train_llm_embedding")
    return tmp_path, Embedder(backbone, pooling).eval(), tokenizer


@pytest.mark.parametrize("retriever", [("full", "last"), ("full", "mean"), ("adapter", "last")], indirect=True, ids=str)
def test_sentence_transformers_gives_the_same_embeddings(retriever, rows):
    from sentence_transformers import SentenceTransformer

    folder, embedder, tokenizer = retriever
    part = running_rows(rows, 6)
    ours = retrieval.embed_queries(embedder, part, tokenizer, "instruct", 300, 4096, use_rationale=False, quiet=True)
    from podium.batching.retrieval import query_text

    texts = [query_text(part, at, tokenizer, "instruct", 300) for at in range(6)]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(
        texts, convert_to_tensor=True, show_progress_bar=False
    )
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
    names = dict(list(part.names.items())[:5])
    ours = retrieval.embed_catalogue(embedder, names, tokenizer, 4096, quiet=True)
    texts = [prompts.retrieval_document(name) + tokenizer.eos_token for name in names.values()]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(
        texts, convert_to_tensor=True, show_progress_bar=False
    )
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
    assert (torch.pdist(ours) > 1e-3).all(), "the comparison means something"


def running_rows(rows, count):
    from podium.batching.queries import select

    return select(rows, list(range(count)))


def test_cross_encoder_gives_the_same_scores(backbone_dir, rows, tmp_path):
    from sentence_transformers import CrossEncoder

    model = modeling.load_backbone(backbone_dir, "causal_lm")
    tokenizer = tokenization.load_tokenizer(backbone_dir)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    labels = tokenization.label_token_ids(tokenizer, [prompts.YES, prompts.NO])
    meta = contracts.CheckpointMeta(
        stage="pointwise", kind="merged", base_model="x", label_tokens=[" Yes", " No"], label_token_ids=labels
    )
    sharing.write_module_files(tmp_path, meta, 32)
    candidates = sorted(rows.names)[:6]
    renderer = PointwiseRenderer(rows, tokenizer, "instruct", 500)
    (ours,) = ranking.score_pointwise(
        LabelScorer(model).eval(), renderer, [(0, candidates)], labels, use_rationale=False, max_tokens_per_batch=4096, quiet=True
    )  # fmt: skip
    parts = [prompts.pointwise_parts(rows.text[0], rows.names[one], "instruct") for one in candidates]
    pairs = [(context, name + ending) for context, name, ending in parts]
    theirs = CrossEncoder(str(tmp_path), device="cpu").predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert ours.std() > 1e-3


@pytest.mark.parametrize("retriever", [("adapter", "last")], indirect=True, ids=str)
def test_adapters_open_in_peft_and_the_card_says_what_they_are(retriever, backbone_dir):
    from peft import PeftModel
    from transformers import AutoModel

    folder, embedder, tokenizer = retriever
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone_dir), str(folder)).eval()
    ids = torch.tensor([tokenizer("What is 3 + 4?")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(ids).last_hidden_state, embedder.backbone(ids).last_hidden_state, atol=1e-6, rtol=0
        )
    card = (folder / sharing.CARD).read_text()
    assert "in-sample" in card and "library_name: peft" in card and str(backbone_dir) in card and "0.5000" in card
