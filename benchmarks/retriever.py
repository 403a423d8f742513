"""A contrastive step: GradCache, distinct documents, token budget; against sentence-transformers and a plain step."""

import contextlib
import tempfile
from types import SimpleNamespace
from typing import Any

import common
import torch
from common import Arm, texts

from podium import grad_cache, losses, modeling
from podium.modeling import Embedder

BUDGET = 4096


def rows(count: int, vocabulary: int) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Queries of 30–150 tokens, the document of each, and documents of 8–24; several queries share a document."""
    queries = [common.random_ids(30 + int(n), vocabulary) for n in torch.randint(0, 121, (count,))]
    documents = [common.random_ids(8 + int(n), vocabulary) for n in torch.randint(0, 17, (max(2, count // 2),))]
    return queries, torch.randint(0, len(documents), (count,)).tolist(), documents


def our_step(
    model: Any, queries: list[list[int]], gold: list[int], documents: list[list[int]], budget: int = BUDGET
) -> Any:
    """A cached step over distinct documents: a function that does it and gives the queries' embeddings; its tokens."""
    used = sorted(set(gold))
    batch = {
        "query": texts(queries), "document": texts([documents[one] for one in used]),
        "target": torch.tensor([used.index(one) for one in gold]),
    }  # fmt: skip

    seen: list[torch.Tensor] = []

    def loss(query_QD: torch.Tensor, document_MD: torch.Tensor, batch: dict[str, Any]) -> losses.Loss:
        seen[:] = [query_QD.detach()]
        return losses.info_nce(query_QD, document_MD, batch["target"], 0.05)

    alone: Any = SimpleNamespace(
        num_processes=1, backward=lambda value: value.backward(), no_sync=lambda model: contextlib.nullcontext()
    )
    step = grad_cache.cached(loss, alone, budget)

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        step(model, batch, 1 / len(queries))
        return seen[0]

    return run, sum(map(len, queries)) + sum(len(documents[one]) for one in used)


def row(count: int, vocabulary: int, repeats: int) -> list[dict]:
    """One batch size."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    queries, gold, documents = rows(count, vocabulary)
    embedder = Embedder(common.make_model(vocabulary).model, "last", BUDGET).train()
    run, tokens = our_step(embedder, queries, gold, documents)
    with tempfile.TemporaryDirectory() as folder:
        common.make_model(vocabulary).save_pretrained(folder)
        common.make_tokenizer(vocabulary).save_pretrained(folder)
        module = Transformer(folder)
        module.processor = common.make_tokenizer(vocabulary)
        model = SentenceTransformer(modules=[module, Pooling(common.WIDTH, "lasttoken"), Normalize()], device="cpu")
    seen = 0

    def count_tokens(_module: Any, inputs: tuple[dict[str, torch.Tensor]]) -> None:
        nonlocal seen
        seen += inputs[0]["input_ids"].numel() if torch.is_grad_enabled() else 0

    module.register_forward_pre_hook(count_tokens)
    features = [texts(queries), texts([documents[one] for one in gold])]
    for one in features:
        one["modality"] = "text"  # type: ignore[assignment]

    def theirs(loss: Any) -> Any:
        def run() -> None:
            nonlocal seen
            seen = 0
            model.train()
            model.zero_grad(set_to_none=True)
            loss([dict(one) for one in features], torch.zeros(count)).backward()

        run()
        return run, seen

    cost = lambda tokens, factor: common.flops(tokens, 0, vocabulary, factor)  # noqa: E731
    peers = []
    for name, options in [
        ("sentence-transformers CachedMNRL, mini_batch_size=32", {"mini_batch_size": 32}),
        ("sentence-transformers CachedMNRL, mini_batch_num_tokens", {"mini_batch_num_tokens": BUDGET}),
    ]:
        made, padded = theirs(CachedMultipleNegativesRankingLoss(model, **options))
        peers.append(Arm(name, made, padded, cost(padded, 8)))
    recipe = Embedder(common.make_model(vocabulary).model, "last").train()
    recipe.packing_refusal = "as the public recipe does"
    modeling.enable_gradient_checkpointing(recipe.backbone)
    used = [documents[one] for one in gold]
    eights = [(texts(queries[at : at + 8]), texts(used[at : at + 8])) for at in range(0, count, 8)]
    padded = sum(one["input_ids"].numel() for pair in eights for one in pair)

    def plain() -> torch.Tensor:
        recipe.zero_grad(set_to_none=True)
        parts = [recipe(*pair) for pair in eights]
        query_QD, document_QD = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        losses.info_nce(query_QD, document_QD, torch.arange(count), 0.05)[0].div(count).backward()
        return query_QD.detach()

    peers.append(Arm("plain InfoNCE with checkpointing, sub-batches of 8", plain, padded, cost(padded, 8)))
    own = Arm("GradCache, distinct documents, packed", run, tokens, cost(tokens, 8))
    name = f"retriever step batch={count}"
    return common.compare(
        name, own, peers, repeats, target={peer.name: {"of_limit": 0.9, "ratio": 1.0} for peer in peers}
    )


def main() -> None:
    """A batch of 64, or 12."""
    options = common.arguments(__doc__)
    common.write(options.json, row(12 if options.quick else 64, 2048, options.repeats))


if __name__ == "__main__":
    main()
