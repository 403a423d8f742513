"""Attention of packed rows: many prompts in one row of tokens, without padding, with or without a shared prefix.

A row is a sequence of groups. A group is a prefix and its suffixes: a suffix sees the prefix and itself, never a
sibling or another group, and its positions go on from the prefix. A group without suffixes is a document alone. All
other layers of a transformer work token by token, so attention is the only one that needs to know.

Back ends: `parts` (any machine, the reference on GPU too): prefixes causal, then suffixes over their prefix's keys and
their own, both through torch's scaled_dot_product_attention; `flex` (GPU): FlexAttention with a block mask.
"""

import functools
import heapq
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "podium"
MODEL_TYPES = frozenset({"gemma2", "llama", "mistral", "qwen2", "qwen3"})
"""Decoders whose attention depends on positions, a window and a soft cap only; checked against them in the tests."""
BUCKET_WASTE = 1.25
"""Groups share one attention call while its padded size stays below this multiple of the real one."""
BUCKET_PAIRS = 4_000_000
"""Query-key pairs of one call: bounds the memory of the gathered keys."""
COPY_PAIRS = 28
"""What copying one key and value of a prefix costs, in query-key pairs (measured on two CPU cores, fp32)."""

Group = tuple[int, Sequence[int]]
"""(tokens of the prefix, tokens of each suffix); a document alone has no suffixes."""
Layout = dict[str, Any]


def refusal(config: Any) -> str | None:
    """Why a backbone cannot take packed rows, or None if it can; its prompts then go one a row, right-padded."""
    if config.model_type not in MODEL_TYPES:
        return f"packed rows are proven for {', '.join(sorted(MODEL_TYPES))}, not for {config.model_type}"
    if config._attn_implementation not in ("sdpa", "eager", NAME):
        # transformers would take restarted positions for new sequences and drop the mask without a word
        return f"attn_implementation={config._attn_implementation} has no shared prefixes; sdpa has"
    return None


def install(model: Any) -> str | None:
    """Route a transformers model's attention through this module; plain calls stay scaled_dot_product_attention.

    Returns:
        None, or the reason why the model keeps its own attention.
    """
    reason = refusal(model.config)
    if reason is None:
        model.config._attn_implementation = NAME
    return reason


# --- layout ----------------------------------------------------------------------------------------------------------


def token_ratio(prefix: int, suffixes: Sequence[int]) -> float:
    """Tokens of separate rows over tokens of one shared row: the most that sharing can gain."""
    return (len(suffixes) * prefix + sum(suffixes)) / (prefix + sum(suffixes))


def bundles(prefix: int, suffixes: Sequence[int]) -> list[list[int]]:
    """Which suffixes go against one copy of their prefix's keys together, masked from each other.

    Fewer copies cost less to make, more masked pairs cost more to compute; queries fill blocks better.
    """
    if not suffixes:
        return []
    total, longest = sum(suffixes), max(suffixes)

    def cost(count: int) -> int:
        width = max(longest, -(-total // count))
        return count * (prefix + width) * (width + COPY_PAIRS)

    made: list[list[int]] = [[] for _ in range(min(range(1, len(suffixes) + 1), key=cost))]
    filled = [(0, number) for number in range(len(made))]
    for at in sorted(range(len(suffixes)), key=lambda at: -suffixes[at]):
        tokens, number = heapq.heappop(filled)
        made[number].append(at)
        heapq.heappush(filled, (tokens + suffixes[at], number))
    return made


def _pairs(prefix: int, count: int, width: int) -> int:
    """Query-key pairs of a group in a padded call."""
    return prefix * prefix // 2 + count * width * (prefix + width)


def _buckets(shape: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Groups of similar (prefix, bundles, width of a bundle), which go through one call together."""
    order = sorted(range(len(shape)), key=lambda at: (shape[at][1] > 0, shape[at], at))
    buckets: list[list[int]] = []
    real = 0
    for at in order:
        own = _pairs(*shape[at])
        if buckets:
            members = [*buckets[-1], at]
            padded = len(members) * _pairs(*(max(shape[one][part] for one in members) for part in range(3)))
            mixed = (shape[at][1] > 0) != (shape[buckets[-1][0]][1] > 0)
            if not mixed and padded <= BUCKET_PAIRS and padded <= BUCKET_WASTE * (real + own):
                buckets[-1], real = members, real + own
                continue
        buckets.append([at])
        real = own
    return buckets


def make_layout(groups: Sequence[Group]) -> Layout:
    """Where each group's tokens are, and how they are gathered into padded slots for attention.

    Args:
        groups: in the order of the row; each prefix is followed by its suffixes.

    Returns:
        segment (T,) 0 on prefixes and documents, 1 … n on suffixes; group (T,); position (T,); index (S,) token of each
        slot and inverse (T,) slot of each token, or None for both where slots are the tokens as they are; padding (S,)
        slots without a token of their own; buckets: (groups, prefix width, bundles, bundle width) of every call, its
        prefix slots before its bundles' slots; lengths {bucket: (groups,)} of its prefixes; sibling and step {bucket:
        (groups × bundles, width)}: which suffix is in a bundle's slot, and which of its tokens.
    """
    starts = list(itertools.accumulate((prefix + sum(suffixes) for prefix, suffixes in groups), initial=0))
    segment: list[int] = []
    group: list[int] = []
    position: list[int] = []
    for number, (prefix, suffixes) in enumerate(groups):
        segment += [0] * prefix
        position += range(prefix)
        for at, length in enumerate(suffixes, 1):
            segment += [at] * length
            position += range(prefix, prefix + length)
        group += [number] * (prefix + sum(suffixes))
    index: list[int] = []
    padding: list[bool] = []

    def place(start: int, length: int, width: int) -> None:
        index.extend(range(start, start + length))
        index.extend([0] * (width - length))
        padding.extend([False] * length + [True] * (width - length))

    bundled = [bundles(*group) for group in groups]
    shape = [
        (prefix, len(made), max((sum(suffixes[at] for at in one) for one in made), default=0))
        for (prefix, suffixes), made in zip(groups, bundled, strict=True)
    ]
    buckets, lengths, sibling, step = [], {}, {}, {}
    for number, members in enumerate(_buckets(shape)):
        prefix, count, width = (max(shape[at][part] for at in members) for part in range(3))
        for at in members:
            place(starts[at], groups[at][0], prefix)
        siblings: list[int] = []
        steps: list[int] = []
        for at in members:
            suffixes = groups[at][1]
            begin = list(itertools.accumulate(suffixes, initial=starts[at] + groups[at][0]))
            for bundle in [*bundled[at], *[[]] * (count - len(bundled[at]))]:
                for one in bundle:
                    place(begin[one], suffixes[one], suffixes[one])
                    siblings += [one] * suffixes[one]
                    steps += range(suffixes[one])
                rest = width - sum(suffixes[one] for one in bundle)
                place(0, 0, rest)
                siblings += [-1] * rest
                steps += range(rest)
        buckets.append((len(members), prefix, count, width))
        if count:
            lengths[number] = torch.tensor([groups[at][0] for at in members])
            sibling[number] = torch.tensor(siblings).reshape(-1, width)
            step[number] = torch.tensor(steps).reshape(-1, width)
    layout: Layout = {
        "segment": torch.tensor(segment),
        "group": torch.tensor(group),
        "position": torch.tensor(position),
        "buckets": buckets,
        "lengths": lengths,
        "sibling": sibling,
        "step": step,
        "index": None,
        "inverse": None,
        "padding": None,
    }
    if index != list(range(len(segment))):
        index_S, padding_S = torch.tensor(index), torch.tensor(padding)
        inverse_T = torch.empty(len(segment), dtype=torch.long)
        inverse_T[index_S[~padding_S]] = torch.arange(len(index))[~padding_S]
        layout |= {"index": index_S, "inverse": inverse_T, "padding": padding_S}
    return layout


def visible(layout: Layout, window: int | None = None) -> Tensor:
    """(T, T) True where token q may see token k: the definition that every back end has to meet."""
    group_T, segment_T, position_T = layout["group"], layout["segment"], layout["position"]
    order_T = torch.arange(len(group_T), device=group_T.device)
    shared_TT = (segment_T[None, :] == 0) | (segment_T[:, None] == segment_T[None, :])
    visible_TT = (order_T[:, None] >= order_T[None, :]) & (group_T[:, None] == group_T[None, :]) & shared_TT
    if window is not None:
        visible_TT &= position_T[:, None] - position_T[None, :] < window
    return visible_TT


def to_device(layout: Layout, device: torch.device) -> Layout:
    """The layout with its tensors on a device."""
    nested = {key: {at: one.to(device) for at, one in layout[key].items()} for key in ("lengths", "sibling", "step")}
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in layout.items()} | nested


def body_options(config: Any, layout: Layout, input_ids: Tensor, position_ids: Tensor | None) -> dict[str, Any]:
    """Arguments of a transformers body for one packed row.

    The masks are cached for the layers of this one forward. A ready 4-D mask, which is then not looked at, keeps
    transformers from making its own: it takes restarted positions for new sequences.

    Raises:
        ValueError: the backbone's attention is not this module's, so it would ignore the layout without a word.
    """
    if config._attn_implementation != NAME:
        raise ValueError(
            f"packed rows need attn_implementation={NAME}, not {config._attn_implementation}: attention.install(model)"
        )
    return {
        "attention_mask": torch.empty(1, 1, 1, 1, device=input_ids.device),
        "position_ids": layout["position"][None] if position_ids is None else position_ids,
        "layout": {**layout, "masks": {}},
    }


# --- parts -----------------------------------------------------------------------------------------------------------


class _Spread(torch.autograd.Function):
    """(1, H, T, D) tokens into (1, H, S, D) slots. Every token has one slot of its own, so backward is a gather too."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index_S: Tensor, inverse_T: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(inverse_T)
        return tokens.index_select(2, index_S)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        # nothing reads what a padding slot computes, so its gradient is zero and can be left out
        return gradient.index_select(2, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """(S, H, D) slots back into (T, H, D) tokens."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, index_S: Tensor, inverse_T: Tensor, padding_S: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index_S, padding_S)
        return slots.index_select(0, inverse_T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        index_S, padding_S = ctx.saved_tensors
        return gradient.index_select(0, index_S).masked_fill_(padding_S[:, None, None], 0.0), None, None, None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """(B, H, Q, D) attention; mask is additive, None is causal. A soft cap needs the scores themselves."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    repeats = query.shape[1] // key.shape[1]
    scores = (query @ key.repeat_interleave(repeats, dim=1).transpose(-1, -2)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, float("-inf"))
    else:
        scores = scores + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(value.dtype)
    return F.dropout(weights, dropout) @ value.repeat_interleave(repeats, dim=1)


def _masks(layout: Layout, number: int, window: int | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Additive masks of a bucket: of its prefixes (None: causal) and of its bundles; windows count positions."""
    cache = layout["masks"]
    if (number, window) not in cache:
        _, prefix, bundles, _ = layout["buckets"][number]
        key_P = torch.arange(prefix, device=like.device)
        prefix_mask = suffix_mask = None
        if window is not None and prefix > window:
            apart_PP = key_P[:, None] - key_P[None, :]
            prefix_mask = _additive((apart_PP >= 0) & (apart_PP < window), like)
        if bundles:
            sibling_BW, step_BW = layout["sibling"][number], layout["step"][number]
            length_B1 = layout["lengths"][number].repeat_interleave(bundles)[:, None]
            apart_BWW = step_BW[:, :, None] - step_BW[:, None, :]
            own_BWW = (sibling_BW[:, :, None] == sibling_BW[:, None, :]) & (apart_BWW >= 0)
            shared_BWP = (key_P < length_B1)[:, None].expand(-1, step_BW.shape[1], -1)
            if window is not None:
                own_BWW &= apart_BWW < window
                shared_BWP = shared_BWP & ((length_B1 + step_BW)[:, :, None] - key_P < window)
            suffix_mask = _additive(torch.cat([shared_BWP, own_BWW], dim=-1), like)[:, None]
        cache[number, window] = prefix_mask, suffix_mask
    return cache[number, window]


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


def _parts(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None, scaling: float,
    softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """(1, T, H, D) attention of a packed row, bucket by bucket."""
    if layout["index"] is not None:
        query, key, value = (_Spread.apply(one, layout["index"], layout["inverse"]) for one in (query, key, value))
    outputs, start = [], 0
    for number, (count, prefix, bundles, width) in enumerate(layout["buckets"]):
        prefix_mask, suffix_mask = _masks(layout, number, window, query)

        def rows(tensor: Tensor, first: int, batch: int, width: int) -> Tensor:
            """(batch, heads, width, D) view of consecutive slots."""
            return tensor[0, :, first : first + batch * width].unflatten(1, (batch, width)).transpose(0, 1)

        shared = [rows(tensor, start, count, prefix) for tensor in (query, key, value)]
        outputs.append(_flat(_attend(shared[0], shared[1], shared[2], prefix_mask, scaling, softcap, dropout)))
        start += count * prefix
        if bundles:
            own = [rows(tensor, start, count * bundles, width) for tensor in (query, key, value)]
            # backward of the expansion sums the bundles' gradients of their prefix
            both = [
                torch.cat(
                    [before[:, None].expand(-1, bundles, -1, -1, -1), after.unflatten(0, (count, bundles))], dim=3
                ).flatten(0, 1)
                for before, after in zip(shared[1:], own[1:], strict=True)
            ]
            outputs.append(_flat(_attend(own[0], both[0], both[1], suffix_mask, scaling, softcap, dropout)))
            start += count * bundles * width
    slots = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if layout["index"] is not None:
        slots = _Collect.apply(slots, layout["index"], layout["inverse"], layout["padding"])  # type: ignore[assignment]
    return slots[None]


def _flat(output: Tensor) -> Tensor:
    """(B, H, Q, D) -> (B × Q, H, D)."""
    return output.transpose(1, 2).flatten(0, 1)


# --- flex ------------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_supports(query: Tensor, dropout: float) -> bool:
    """FlexAttention runs on GPUs from Ampere on, and has no dropout."""
    return query.is_cuda and dropout == 0.0 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def flex(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None, scaling: float,
    softcap: float | None, compiled: bool = True,
) -> Tensor:  # fmt: skip
    """(1, T, H, D) attention of a packed row with FlexAttention, its length padded to the block size of 128.

    Args:
        query: (1, H, T, D); key and value (1, KV, T, D).
        key: as above.
        value: as above.
        layout: of the row, prepared.
        window: positions seen, or None.
        scaling: of the scores.
        softcap: of the scores, or None.
        compiled: False runs the slow eager form, which also works on CPU (forward only).
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = query.shape[2]
    extra = -length % 128
    query, key, value = (F.pad(one, (0, 0, 0, extra)) for one in (query, key, value))
    cache = layout["masks"]
    if ("flex", window) not in cache:
        # padding is a group of its own, so that its softmax is defined
        group_T = F.pad(layout["group"], (0, extra), value=-1)
        segment_T, position_T = F.pad(layout["segment"], (0, extra)), F.pad(layout["position"], (0, extra))

        def seen(batch: Tensor, head: Tensor, at_query: Tensor, at_key: Tensor) -> Tensor:
            same = (segment_T[at_key] == 0) | (segment_T[at_key] == segment_T[at_query])
            allowed = (at_query >= at_key) & (group_T[at_query] == group_T[at_key]) & same
            if window is not None:
                allowed = allowed & (position_T[at_query] - position_T[at_key] < window)
            return allowed

        cache["flex", window] = create_block_mask(
            seen, None, None, length + extra, length + extra, device=str(query.device)
        )

    def capped(score: Tensor, batch: Tensor, head: Tensor, at_query: Tensor, at_key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap  # type: ignore[operator]

    call = _compiled_flex() if compiled else flex_attention
    output = call(
        query, key, value, score_mod=None if softcap is None else capped, block_mask=cache["flex", window],
        scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output[:, :, :length].transpose(1, 2)


# --- the function that transformers calls ----------------------------------------------------------------------------


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: packed where the caller gave a layout, scaled_dot_product_attention otherwise."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is not None:
        if flex_supports(query, dropout):
            return flex(query, key, value, layout, sliding_window, scaling, softcap), None
        return _parts(query, key, value, layout, sliding_window, scaling, softcap, dropout), None
    if softcap is not None:
        # sdpa would leave the cap out without a word
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            # not −inf: padding on the left sees nothing at all
            lowest = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, lowest)
        return _attend(query, key, value, attention_mask, scaling, softcap, dropout).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)  # type: ignore[return-value]


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
