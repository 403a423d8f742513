"""Encoding a corpus with repeated texts: distinct, sorted, budgeted; against sentence-transformers and plain sub-batches."""

import tempfile

import common
import torch
from common import Arm, texts

from podium.engines import transformers as engine
from podium.modeling import Embedder


def row(count: int, vocabulary: int, repeats: int) -> list[dict]:
    """`count` texts of 5–120 tokens, a fifth of them repeated."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    distinct = [common.random_ids(5 + int(n), vocabulary) for n in torch.randint(0, 116, (count - count // 5,))]
    ids = [*distinct, *distinct[: count // 5]]
    corpus = [common.words(one) for one in ids]
    tokenizer = common.make_tokenizer(vocabulary)
    embedder = Embedder(common.make_model(vocabulary).model, "last").eval()

    def tokenize(part: list[str]) -> dict[str, torch.Tensor]:
        return texts(tokenizer(part, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def ours() -> torch.Tensor:
        return engine.embed(embedder, corpus, tokenize, 1024, quiet=True)  # of 256…4096 the fastest

    with tempfile.TemporaryDirectory() as folder:
        common.make_model(vocabulary).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        module = Transformer(folder)
        module.processor = tokenizer
        model = SentenceTransformer(modules=[module, Pooling(common.WIDTH, "lasttoken"), Normalize()], device="cpu")

    def theirs() -> torch.Tensor:
        return model.encode(corpus, batch_size=32, convert_to_tensor=True, show_progress_bar=False)

    padded_embedder = Embedder(common.make_model(vocabulary).model, "last").eval()
    padded_embedder.packing_refusal = "as the public recipe does"

    @torch.inference_mode()
    def eights() -> torch.Tensor:
        return torch.cat([padded_embedder(texts(ids[at : at + 8]))[0] for at in range(0, count, 8)])

    def widths(size: int, rows: list[list[int]]) -> int:
        parts = [rows[at : at + size] for at in range(0, count, size)]
        return sum(max(map(len, part)) * len(part) for part in parts)

    cost = lambda tokens: common.flops(tokens, 0, vocabulary)  # noqa: E731
    own = sum(map(len, distinct))
    sorted_32, unsorted_8 = widths(32, sorted(ids, key=len)), widths(8, ids)
    peers = [
        Arm("sentence-transformers encode", theirs, sorted_32, cost(sorted_32)),
        Arm("sub-batches of 8, unsorted", eights, unsorted_8, cost(unsorted_8)),
    ]
    return common.compare(
        f"encode {count} texts", Arm("distinct, sorted, packed", ours, own, cost(own)), peers, repeats,
        target={peers[0].name: {"ratio": 1.0}, peers[1].name: {"ratio": 2.0}},
    )  # fmt: skip


def main() -> None:
    """600 texts, or 100."""
    options = common.arguments(__doc__)
    common.write(options.json, row(100 if options.quick else 600, 2048, options.repeats))


if __name__ == "__main__":
    main()
