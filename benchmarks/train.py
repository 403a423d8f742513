"""A training step of the pointwise ranker (LoRA r16, dropout 0): packed, against separate rows in the ways of others."""

import tempfile
from typing import Any

import common
import torch
from common import LABELS, Arm
from peft import LoraConfig
from score import left_padded

from podium import losses, modeling
from podium.batching.groups import collate_packed, pack
from podium.modeling import LabelScorer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(vocabulary: int) -> Any:
    """The model of all arms with the same adapters."""
    model = common.make_model(vocabulary)
    torch.manual_seed(1)
    model = modeling.add_lora(model, "causal_lm", rank=16, alpha=32.0, dropout=0.0, target_modules=TARGETS)
    return model.train()


def group_loss(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the group; the second candidate is the gold one."""
    valid = torch.ones(1, len(scores), dtype=torch.bool)
    return losses.group_softmax(scores[None], torch.tensor([1]), valid)[0]


def row(prefix: int, suffix: int, candidates: int, vocabulary: int, repeats: int, everybody: bool) -> list[dict]:
    """One shape; `everybody`: all peers, else the two-row head on separate rows alone."""
    context, suffixes = common.group_of(prefix, suffix, candidates, vocabulary)
    prompts = [[*context, *one] for one in suffixes]
    scorer, plain, checkpointed = LabelScorer(adapted(vocabulary)), adapted(vocabulary), adapted(vocabulary)
    for model in (plain, checkpointed):
        model.get_base_model().config._attn_implementation = "sdpa"
    modeling.enable_gradient_checkpointing(checkpointed)

    def step(model: Any, scores: torch.Tensor) -> torch.Tensor:
        """Backward; returns the scores, which the arms must agree on."""
        model.zero_grad(set_to_none=True)
        group_loss(scores).backward()
        return scores.detach()

    def ours(min_ratio: float) -> torch.Tensor:
        logits, _ = scorer(**collate_packed([pack(prompts, [(0, 0)] * candidates, min_ratio)]), label_ids=LABELS)
        return step(scorer, logits[:, 0] - logits[:, 1])

    def padded(model: Any) -> torch.Tensor:
        ids, mask = left_padded(prompts)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits[:, -1]
        return step(model, logits[:, LABELS[0]] - logits[:, LABELS[1]])

    shared, total = prefix + sum(map(len, suffixes)), sum(map(len, prompts))
    wide = max(map(len, prompts)) * candidates
    cost = lambda tokens, rows, factor: common.flops(tokens, rows, vocabulary, factor)  # noqa: E731
    own = Arm("packed, no checkpointing", lambda: ours(1.3), shared, cost(shared, 0, 4))
    peers = [Arm("two-row head on padding-free separate rows", lambda: ours(1e9), total, cost(total, 0, 4))]
    with tempfile.TemporaryDirectory() as folder:
        if everybody:
            peers += [
                Arm("public recipe: padded, full logits, checkpointing", lambda: padded(checkpointed), wide, cost(wide, wide, 6)),
                Arm("public recipe without checkpointing", lambda: padded(plain), wide, cost(wide, wide, 4)),
            ]  # fmt: skip
            common.make_model(vocabulary).save_pretrained(folder)
            common.make_tokenizer(vocabulary).save_pretrained(folder)  # replaced below: qwen2 would read it its own way
            from sentence_transformers import CrossEncoder
            from sentence_transformers.cross_encoder.losses import ListNetLoss

            cross = CrossEncoder(folder, device="cpu")
            cross[0].processor = common.make_tokenizer(vocabulary, padding_side="left")
            torch.manual_seed(1)
            cross.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS))
            list_net = ListNetLoss(cross)
            labels = [torch.eye(candidates)[1]]
            texts: list[Any] = [[common.words(context)], [[common.words(one) for one in suffixes]]]

            def sentence_transformers_step() -> None:
                cross.train()
                cross.zero_grad(set_to_none=True)
                list_net(texts, labels).backward()

            peers.append(
                Arm("sentence-transformers CrossEncoder, ListNet", sentence_transformers_step, wide,
                    cost(wide, candidates, 4))
            )  # fmt: skip
        name = f"train P={prefix} s={suffix} n={candidates} V={vocabulary}"
        return common.compare(
            name,
            own,
            peers,
            repeats,
            target={peer.name: {"of_limit": 0.9 if candidates == 24 else 0.8} for peer in peers},
        )


def main() -> None:
    """All shapes."""
    options = common.arguments(__doc__)
    if options.quick:
        entries = row(200, 28, 8, 2048, options.repeats, True)
    else:
        entries = row(500, 28, 24, 2048, options.repeats, True)
        entries += row(500, 28, 8, 2048, options.repeats, False)
        entries += row(500, 28, 64, 2048, options.repeats, False)
    common.write(options.json, entries)


if __name__ == "__main__":
    main()
