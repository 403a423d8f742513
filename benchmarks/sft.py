"""A step of supervised fine-tuning: packed documents, losses in chunks; against TRL's SFTTrainer and HF's default."""

import tempfile
from typing import Any

import common
import torch
from common import Arm

from podium import losses, modeling
from podium.batching import chat
from podium.batching.padding import pad
from podium.modeling import LabelScorer


def row(count: int, vocabulary: int, repeats: int, checkpointing: bool = False) -> list[dict]:
    """`count` prompts of 60–260 tokens with completions of 20–80; `checkpointing`: gradient checkpointing in all arms."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    examples = []
    for _ in range(count):
        prompt, completion = (int(torch.randint(low, high, (1,))) for low, high in ((60, 261), (20, 81)))
        examples.append((common.random_ids(prompt + completion, vocabulary), prompt))
    scorer = LabelScorer(common.make_model(vocabulary)).train()
    batch = chat.micro_batch(examples, True, 0)

    def ours() -> torch.Tensor:
        scorer.zero_grad(set_to_none=True)
        _, (loss_N, hit_N) = scorer(
            batch["input_ids"], lm_read=batch["lm_read"], lm_target=batch["target"], layout=batch["layout"]
        )
        total, weight, _ = losses.token_sum(loss_N, hit_N)
        (total / weight).backward()
        return total.detach() / weight

    ids, mask = pad([tokens for tokens, _ in examples], 0)
    labels = ids.masked_fill(mask == 0, -100)
    for at, (_, border) in enumerate(examples):
        labels[at, :border] = -100
    default = common.make_model(vocabulary).train()
    if checkpointing:
        modeling.enable_gradient_checkpointing(scorer.backbone)
        modeling.enable_gradient_checkpointing(default)

    def hugging_face() -> torch.Tensor:
        default.zero_grad(set_to_none=True)
        loss = default(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    with tempfile.TemporaryDirectory() as folder:
        trained = common.make_model(vocabulary)
        data = Dataset.from_list(
            [{"input_ids": tokens, "completion_mask": [int(at >= border) for at in range(len(tokens))]}
             for tokens, border in examples]
        )  # fmt: skip
        trainer = SFTTrainer(
            trained, processing_class=common.make_tokenizer(vocabulary), train_dataset=data,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=count, max_length=None, completion_only_loss=True, report_to="none", use_cpu=True,
                gradient_checkpointing=checkpointing, bf16=False, max_steps=1, logging_strategy="no", disable_tqdm=True,
            ),
        )  # fmt: skip
        inputs: Any = next(iter(trainer.get_train_dataloader()))

        def trl() -> torch.Tensor:
            trained.zero_grad(set_to_none=True)
            loss = trainer.compute_loss(trained, dict(inputs))
            trainer.accelerator.backward(loss)
            return loss.detach()

        tokens, padded, read = sum(len(one) for one, _ in examples), ids.numel(), len(batch["target"])
        cost = lambda tokens, rows: common.flops(tokens, rows, vocabulary, 8.0 if checkpointing else 6.0)  # noqa: E731
        peers = [
            Arm("TRL SFTTrainer", trl, padded, cost(padded, read)),
            Arm("HF default: padded, full logits", hugging_face, padded, cost(padded, padded)),
        ]
        own = Arm("packed, chunked losses", ours, tokens, cost(tokens, read))
        targets = {peers[0].name: {"ratio": 0.95}, peers[1].name: {"memory": 5.0}}
        name = f"SFT step {count} rows V={vocabulary}{' checkpointing' if checkpointing else ''}"
        return common.compare(name, own, peers, repeats, target=targets)


def main() -> None:
    """16 rows, or 4; then a vocabulary that is to the width as Qwen2.5-0.5B's, with checkpointing."""
    options = common.arguments(__doc__)
    entries = row(4 if options.quick else 16, 8192, options.repeats)
    if not options.quick:
        entries += row(16, 65_536, options.repeats, checkpointing=True)
    common.write(options.json, entries)


if __name__ == "__main__":
    main()
