"""Two orders of a pair: one row with a shared context, against two padded rows. Little to gain, and shown as such."""

import common
import torch
from common import LABELS, Arm

from podium.batching.groups import collate_packed, pack
from podium.batching.padding import pad
from podium.modeling import LabelScorer


def row(context: int, response: int, pairs: int, vocabulary: int, repeats: int) -> list[dict]:
    """Pairs of responses of `response` ± a quarter tokens to contexts of `context`."""
    scorer, plain = LabelScorer(common.make_model(vocabulary)), LabelScorer(common.make_model(vocabulary))
    both = []
    for _ in range(pairs):
        before, (one, two) = common.group_of(context, response, 2, vocabulary)
        both.append([[*before, *one, *two], [*before, *two, *one]])

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return scorer(**collate_packed([pack(orders, [(0, 0)] * 2, 1.1) for orders in both]), label_ids=LABELS)[0]

    rows = [order for orders in both for order in orders]
    ids, mask = pad(rows, 0)
    last = torch.stack([torch.arange(len(rows)), mask.sum(1) - 1], dim=1)

    @torch.inference_mode()
    def padded() -> torch.Tensor:
        return plain(ids, label_read=last, label_ids=LABELS)[0]

    tokens = sum(len(orders[0]) * 2 - context for orders in both)
    cost = lambda tokens: common.flops(tokens, 0, vocabulary)  # noqa: E731
    name = f"pairwise context={context} response={response}, {pairs} pairs"
    own = Arm("two orders in one row", ours, tokens, cost(tokens))
    peer = Arm("two padded rows", padded, ids.numel(), cost(ids.numel()))
    return common.compare(name, own, [peer], repeats, target={peer.name: {"of_limit": 0.9}})


def main() -> None:
    """Long and short contexts."""
    options = common.arguments(__doc__)
    pairs = 2 if options.quick else 8
    common.write(
        options.json, row(500, 200, pairs, 2048, options.repeats) + row(150, 250, pairs, 2048, options.repeats)
    )


if __name__ == "__main__":
    main()
