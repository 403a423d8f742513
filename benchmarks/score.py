"""Scoring a query's candidates: packed with two label rows, against the ways of others on the same weights and tokens."""

import tempfile

import common
import torch
from common import LABELS, Arm
from transformers import DynamicCache

from podium.batching.groups import collate_packed, pack
from podium.batching.padding import pad
from podium.modeling import LabelScorer


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, padded on the left."""
    ids, mask = pad([row[::-1] for row in rows], 0)
    return ids.flip(1), mask.flip(1)


def yes_minus_no(logits: torch.Tensor) -> torch.Tensor:
    """(B,) score of (B, V) logits."""
    return logits[:, LABELS[0]] - logits[:, LABELS[1]]


def row(prefix: int, suffix: int, candidates: int, vocabulary: int, repeats: int, everybody: bool) -> list[dict]:
    """One shape; `everybody`: all peers, else the two-row head on separate rows and the expanded cache."""
    model = common.make_model(vocabulary)
    scorer = LabelScorer(common.make_model(vocabulary))
    model.config._attn_implementation = "sdpa"
    context, suffixes = common.group_of(prefix, suffix, candidates, vocabulary)
    prompts = [[*context, *one] for one in suffixes]
    total = sum(map(len, prompts))

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        logits, _ = scorer(**collate_packed([pack(prompts, [(0, 0)] * candidates)]), label_ids=LABELS)
        return logits[:, 0] - logits[:, 1]

    @torch.inference_mode()
    def separate() -> torch.Tensor:
        parts = []
        for start in range(0, candidates, 8):
            batch = collate_packed([pack(prompts[start : start + 8], [(0, 0)] * len(prompts[start : start + 8]), 1e9)])
            logits, _ = scorer(**batch, label_ids=LABELS)
            parts.append(logits[:, 0] - logits[:, 1])
        return torch.cat(parts)

    def padded(keep: int) -> torch.Tensor:
        parts = []
        with torch.inference_mode():
            for start in range(0, candidates, 8):
                ids, mask = left_padded(prompts[start : start + 8])
                position = (mask.cumsum(1) - 1).clamp(min=0)
                logits = model(
                    ids, attention_mask=mask, position_ids=position, logits_to_keep=keep, use_cache=False
                ).logits
                parts.append(yes_minus_no(logits[:, -1]))
        return torch.cat(parts)

    @torch.inference_mode()
    def expanded_cache() -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        model.model(torch.tensor([context]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(candidates)
        ids, mask = pad(suffixes, 0)
        whole = torch.cat([torch.ones(candidates, prefix, dtype=torch.long), mask], dim=1)
        hidden = model.model(ids, attention_mask=whole, past_key_values=cache, use_cache=True).last_hidden_state
        last = hidden[torch.arange(candidates), mask.sum(1) - 1]
        return yes_minus_no(model.lm_head(last))

    shared = prefix + sum(map(len, suffixes))
    padded_total = sum(
        max(len(one) for one in prompts[at : at + 8]) * len(prompts[at : at + 8]) for at in range(0, candidates, 8)
    )
    cost = lambda tokens, rows: common.flops(tokens, rows, vocabulary)  # noqa: E731
    label_cost = 2.0 * candidates * common.WIDTH * 2
    own = Arm("packed, two label rows", ours, shared, cost(shared, 0) + label_cost)
    peers = [
        Arm("two label rows on padding-free separate rows", separate, total, cost(total, 0) + label_cost),
        Arm("HF cache of the prefix, expanded", expanded_cache, shared, own.flops),
    ]
    with tempfile.TemporaryDirectory() as folder:
        if everybody:
            peers += [
                Arm("full-vocabulary logits, left-padded, batch 8", lambda: padded(0), padded_total,
                    cost(padded_total, padded_total)),
                Arm("logits_to_keep=1, left-padded, batch 8", lambda: padded(1), padded_total, cost(padded_total, candidates)),
            ]  # fmt: skip
            model.save_pretrained(folder)
            common.make_tokenizer(vocabulary).save_pretrained(folder)  # replaced below: qwen2 would read it its own way
            from sentence_transformers import CrossEncoder

            cross = CrossEncoder(folder, device="cpu")
            cross[0].processor = common.make_tokenizer(vocabulary, padding_side="left")
            pairs = [(common.words(context), common.words(one)) for one in suffixes]
            peers.append(
                Arm("sentence-transformers CrossEncoder, causal LM",
                    lambda: torch.tensor(cross.predict(pairs, batch_size=8, show_progress_bar=False,
                                                       activation_fn=torch.nn.Identity())),
                    padded_total, cost(padded_total, candidates))
            )  # fmt: skip
        least = 0.95 if candidates == 24 else 0.8
        targets = {peer.name: {"ratio": 1.0} if "cache" in peer.name else {"of_limit": least} for peer in peers}
        name = f"score P={prefix} s={suffix} n={candidates} V={vocabulary}"
        return common.compare(name, own, peers, repeats, target=targets)


def main() -> None:
    """All shapes."""
    options = common.arguments(__doc__)
    if options.quick:
        entries = row(300, 28, 8, 2048, options.repeats, True)
    else:
        entries = row(500, 28, 24, 2048, options.repeats, True)
        entries += row(500, 28, 24, 8192, options.repeats, False)
        entries += row(500, 28, 8, 2048, options.repeats, False)
        entries += row(500, 28, 64, 2048, options.repeats, False)
    common.write(options.json, entries)


if __name__ == "__main__":
    main()
