"""One GPU, random weights of Qwen2.5's shapes, bf16: scoring, encoding, LoRA, SFT and contrastive steps; absolute figures.

    python benchmarks/gpu.py --json outputs/benchmarks/gpu.json              # 7B shapes
    python benchmarks/gpu.py --size 0.5B                                      # on smaller cards
    python benchmarks/gpu.py --smoke                                          # every row once with a tiny model on the CPU

It has been run on the CPU only: no GPU was at hand. TFLOP/s are those of linear layers and head, to be read against the card's limit.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from podium import attention, grad_cache, losses, modeling
from podium.batching import chat
from podium.batching.groups import collate_packed, pack
from podium.batching.padding import pad
from podium.modeling import Embedder, LabelScorer
from podium.training import to_device

SHAPES = {
    "tiny": (64, 2, 4, 2, 128), "0.5B": (896, 24, 14, 2, 4864), "1.5B": (1536, 28, 12, 2, 8960),
    "7B": (3584, 28, 28, 4, 18944),
}  # fmt: skip
"""width, layers, heads, key-value heads, intermediate width of Qwen2.5; tiny is for the smoke test."""
VOCABULARY = 151_936
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_model(size: str, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """Random weights on the device."""
    width, layers, heads, kv_heads, intermediate = SHAPES[size]
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=intermediate, tie_word_embeddings=size != "7B",
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = Qwen2ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    return model


def parameters(size: str) -> int:
    """Weights that every token passes through, embeddings and head left out."""
    width, layers, heads, kv_heads, intermediate = SHAPES[size]
    return layers * (2 * width * width + 2 * width * width * kv_heads // heads + 3 * width * intermediate)


def measure(
    name: str, run: Callable[[], Any], tokens: int, units: int, flops: float, warm_up: int = 2, repeats: int = 5
) -> dict[str, Any]:
    """Median of the repeats after a warm-up, with CUDA's own peak memory; a row that runs out of memory says so."""
    figures: dict[str, Any] = {"row": name, "tokens": tokens}
    cuda = torch.cuda.is_available()
    seconds = []
    try:
        for turn in range(warm_up + repeats):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            if turn >= warm_up:
                seconds.append(time.perf_counter() - started)
    except torch.cuda.OutOfMemoryError:
        figures["out_of_memory"] = True
        torch.cuda.empty_cache()
    else:
        middle = statistics.median(seconds)
        figures |= {
            "seconds": middle, "tokens_per_second": tokens / middle, "units_per_second": units / middle,
            "tflops": flops / middle / 1e12, "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        }  # fmt: skip
    print(json.dumps(figures), flush=True)
    return figures


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float | None:
    """How many times faster; None where one ran out of memory."""
    return slow["seconds"] / fast["seconds"] if "seconds" in slow and "seconds" in fast else None


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="7B")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU: shows that every row runs")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.smoke):
        sys.exit("benchmarks/gpu.py needs a GPU; the rows for CPU are in benchmarks/run_all.py")
    torch.manual_seed(0)
    smoke, size = options.smoke, "tiny" if options.smoke else options.size
    device = torch.device("cpu" if smoke else "cuda")
    vocabulary = 500 if smoke else VOCABULARY
    prefix, suffix, count, queries = (40, 6, 5, 2) if smoke else (500, 28, 24, 4)
    draw = lambda length: torch.randint(10, vocabulary, (length,)).tolist()  # noqa: E731
    body, head = parameters(size), SHAPES[size][0] * vocabulary
    label_ids = torch.tensor([5, 6], device=device)
    groups = []
    for _ in range(queries):
        context = draw(prefix)
        groups.append([[*context, 10 + at, *draw(suffix - 1)] for at in range(count)])
    shared = collate_packed([pack(one, [(0, 0)] * count) for one in groups])
    rows = [prompt for one in groups for prompt in one]
    tokens, padded = shared["input_ids"].numel(), sum(map(len, rows))
    batch = to_device(shared, device)
    ids, mask = (one.to(device) for one in pad(rows, 0))
    pairs = len(rows)

    results = []
    plain = make_model(size, vocabulary, device, torch.float32 if smoke else torch.bfloat16).eval()
    scorer = LabelScorer(plain)
    with torch.inference_mode():
        results.append(
            measure("score, packed", lambda: scorer(**batch, label_ids=label_ids), tokens, pairs, 2.0 * tokens * body)
        )
        plain.config._attn_implementation = "sdpa"
        eights = [(ids[at : at + 8], mask[at : at + 8]) for at in range(0, pairs, 8)]
        results.append(
            measure(
                "score, padded rows, full logits, batch 8",
                lambda: [plain(one, attention_mask=seen).logits[:, -1, label_ids] for one, seen in eights],
                padded, pairs, 2.0 * padded * (body + head),
            )
        )  # fmt: skip
        lengths = [20 + int(one) for one in torch.randint(0, 200, (8 if smoke else 256,))]
        texts = [draw(length) for length in lengths]
        embedder = Embedder(plain.model, "last", 32_768).eval()
        documents = dict(zip(("input_ids", "attention_mask"), (one.to(device) for one in pad(texts, 0))))
        results.append(
            measure("encode", lambda: embedder(documents), sum(lengths), len(texts), 2.0 * sum(lengths) * body)
        )

    attention.install(plain)
    adapted = modeling.add_lora(
        plain, "causal_lm", rank=64, alpha=128.0, dropout=0.0, target_modules=TARGETS
    ).train()  # fmt: skip
    scorer = LabelScorer(adapted)
    targets = torch.ones(queries, dtype=torch.long, device=device)
    valid = torch.ones(queries, count, dtype=torch.bool, device=device)

    def train() -> None:
        adapted.zero_grad(set_to_none=True)
        logits, _ = scorer(**batch, label_ids=label_ids)
        losses.group_softmax((logits[:, 0] - logits[:, 1]).view(queries, count), targets, valid)[0].backward()

    results.append(measure("LoRA r64 step, packed", train, tokens, pairs, 4.0 * tokens * body))
    length = 64 if smoke else 512
    examples = [(draw(length), length // 2) for _ in range(8)]
    sft = to_device(chat.micro_batch(examples, True, 0), device)

    def finetune() -> None:
        adapted.zero_grad(set_to_none=True)
        _, (loss_N, _) = scorer(sft["input_ids"], lm_read=sft["lm_read"], lm_target=sft["target"], layout=sft["layout"])
        loss_N.mean().backward()

    learnt = length * 8
    results.append(
        measure(
            f"SFT LoRA step, {learnt:,} tokens packed", finetune, learnt, 8, 4.0 * (learnt * body + learnt // 2 * head)
        )
    )

    many = 16 if smoke else 2048
    questions = [draw(30 + int(one)) for one in torch.randint(0, 121, (many,))]
    names = [draw(8 + int(one)) for one in torch.randint(0, 17, (many,))]
    texts_of = lambda ids: dict(zip(("input_ids", "attention_mask"), (one.to(device) for one in pad(ids, 0))))  # noqa: E731
    contrastive = {"query": texts_of(questions), "document": texts_of(names)}
    gold = torch.arange(many, device=device)
    alone: Any = SimpleNamespace(
        num_processes=1, backward=lambda value: value.backward(), no_sync=lambda model: contextlib.nullcontext()
    )
    embedder = Embedder(adapted.get_base_model().model, "last", 16_384).train()
    cached = grad_cache.cached(lambda one, two, _: losses.info_nce(one, two, gold, 0.05), alone, 16_384)

    def contrast() -> None:
        adapted.zero_grad(set_to_none=True)
        cached(embedder, contrastive, 1 / many)

    work = sum(map(len, questions)) + sum(map(len, names))
    results.append(
        measure(f"contrastive LoRA step, batch {many:,}, GradCache", contrast, work, many, 6.0 * work * body, 1, 3)
    )

    attention_before = adapted.get_base_model().config._attn_implementation
    adapted.get_base_model().config._attn_implementation = "sdpa"
    modeling.enable_gradient_checkpointing(adapted)

    def recipe() -> None:
        adapted.zero_grad(set_to_none=True)
        for at in range(queries):
            part = slice(at * count, (at + 1) * count)
            logits = adapted(input_ids=ids[part], attention_mask=mask[part]).logits[:, -1, label_ids].float()
            scores = (logits[:, 0] - logits[:, 1])[None]
            losses.group_softmax(scores, targets[:1], valid[:1])[0].backward()

    results.append(
        measure("LoRA r64 step, padded rows, full logits, checkpointing", recipe, padded, pairs,
                6.0 * padded * body + 4.0 * padded * head)
    )  # fmt: skip

    def plain_contrast() -> None:
        adapted.zero_grad(set_to_none=True)
        kinds = [contrastive["query"], contrastive["document"]]
        parts = [[{key: one[at : at + 8] for key, one in kind.items()} for at in range(0, many, 8)] for kind in kinds]
        query_QD, document_QD = (
            torch.cat([embedder._padded(one["input_ids"], one["attention_mask"]) for one in part]) for part in parts
        )
        losses.info_nce(query_QD, document_QD, gold, 0.05)[0].div(many).backward()

    results.append(
        measure(f"contrastive LoRA step, batch {many:,}, checkpointing, sub-batches of 8", plain_contrast,
                sum(one["input_ids"].numel() for one in contrastive.values()), many,
                6.0 * sum(one["input_ids"].numel() for one in contrastive.values()) * body, 0, 1)
    )  # fmt: skip
    adapted.get_base_model().config._attn_implementation = attention_before
    named = {one["row"].split(",")[0] + ("" if "packed" in one["row"] or "GradCache" in one["row"] else ", peer"): one
             for one in results}  # fmt: skip
    summary = {
        "device": "CPU" if smoke else torch.cuda.get_device_name(), "torch": torch.__version__, "size": size, "rows": results,
        "score_ratio": ratio(named["score, peer"], named["score"]),
        "train_ratio": ratio(named["LoRA r64 step, peer"], named["LoRA r64 step"]),
        "contrastive_ratio": ratio(named["contrastive LoRA step, peer"], named["contrastive LoRA step"]),
    }  # fmt: skip
    print(json.dumps({key: summary[key] for key in ("score_ratio", "train_ratio", "contrastive_ratio")}))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
