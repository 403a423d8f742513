"""Where a shared prefix gains nothing: what the planner chooses is never slower than the plain path."""

import common
import torch
from common import LABELS, Arm

from podium.batching.groups import collate_packed, pack
from podium.batching.padding import pad
from podium.modeling import LabelScorer


def row(name: str, groups: list[list[list[int]]], vocabulary: int, repeats: int) -> list[dict]:
    """Groups of whole prompts, as the planner takes them and one prompt a padded row."""
    scorer, plain = LabelScorer(common.make_model(vocabulary)), LabelScorer(common.make_model(vocabulary))
    rows = [prompt for prompts in groups for prompt in prompts]
    ids, mask = pad(rows, 0)
    last = torch.stack([torch.arange(len(rows)), mask.sum(1) - 1], dim=1)

    @torch.inference_mode()
    def planned() -> torch.Tensor:
        return scorer(**collate_packed([pack(one, [(0, 0)] * len(one)) for one in groups]), label_ids=LABELS)[0]

    @torch.inference_mode()
    def padded() -> torch.Tensor:
        return plain(ids, label_read=last, label_ids=LABELS)[0]

    tokens = sum(len(pack(one, [(0, 0)] * len(one)).tokens) for one in groups)
    cost = lambda tokens: common.flops(tokens, 0, vocabulary)  # noqa: E731
    peer = Arm("plain padded rows", padded, ids.numel(), cost(ids.numel()))
    own = Arm("as planned", planned, tokens, cost(tokens))
    return common.compare(f"planner {name}", own, [peer], repeats, target={peer.name: {"ratio": 0.95}})


def main() -> None:
    """One candidate; long suffixes; candidate first."""
    options = common.arguments(__doc__)
    options.repeats = options.repeats if options.smoke else 9  # the arms are all but equal, and cheap
    vocabulary, draw = 2048, lambda length: common.random_ids(length, 2048)
    count = 4 if options.quick else 12
    length = 100 if options.quick else 400
    context = draw(length)
    entries = row("n=1", [[draw(length)] for _ in range(count)], vocabulary, options.repeats)
    suffixes = [[*context[:20], 10 + at, *draw(length)] for at in range(count)]
    entries += row("suffixes much longer than the prefix", [suffixes], vocabulary, options.repeats)
    first = [[10 + at, *context] for at in range(count)]
    entries += row("candidate first", [first], vocabulary, options.repeats)
    common.write(options.json, entries)


if __name__ == "__main__":
    main()
