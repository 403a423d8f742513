"""Packed rows against separate ones, for every supported family: scores, gradients, training, and who sees whom."""

import copy
import itertools

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from podium import attention, losses, modeling
from podium.batching import chat
from podium.batching.groups import collate_packed, pack
from podium.modeling import LabelScorer

SHAPE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=7),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16, sliding_window=7, attn_logit_softcapping=2.0,
                                   final_logit_softcapping=3.0, query_pre_attn_scalar=16),
}  # fmt: skip
LABELS = torch.tensor([5, 9])


@pytest.fixture(autouse=True)
def cheap_copies(monkeypatch):
    """Small rows would all go in one bundle: with cheap copies they go in several, some of several suffixes."""
    monkeypatch.setattr(attention, "COPY_PAIRS", 1)


# the three shapes: uneven suffixes; one short prefix; a group that does not pay and goes as documents
PROMPTS = [(17, [5, 3, 9, 4, 6]), (3, [8, 8, 7]), (12, [2, 2, 2, 3, 2, 2, 2, 2]), (37, [3, 2, 3, 1, 2, 3, 2])]


def in_double(model):
    """The model in fp64, with norms that do not round to fp32 on the way."""

    def forward(self, hidden):
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + getattr(self, "variance_epsilon", 1e-6))
        return normed * (1 + self.weight) if isinstance(self, Gemma2RMSNorm) else normed * self.weight

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
            if hasattr(module, "eps"):
                module.variance_epsilon = module.eps
    return model.double()


def make(family, dtype=torch.float64, seed=0):
    """Reference and packed model of equal weights: transformers' own attention, and ours."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    # transformers' sdpa leaves the soft cap out: eager is its right answer
    config._attn_implementation = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = in_double(model) if dtype == torch.float64 else model.to(dtype)
    return model, LabelScorer(copy.deepcopy(model))


def groups_of(seed=0):
    """Prompts of each query, as whole token rows."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda count: torch.randint(3, 61, (count,), generator=generator).tolist()  # noqa: E731
    made = []
    for prefix, suffixes in PROMPTS:
        context = draw(prefix)
        # distinct first tokens, so that the common prefix is the context
        made.append([[*context, 3 + at, *draw(length - 1)] for at, length in enumerate(suffixes)])
    return made


def packed_batch(groups, min_ratio=1.3):
    return collate_packed([pack(prompts, [(0, 0)] * len(prompts), min_ratio) for prompts in groups])


def separate_scores(model, groups):
    rows = [model(torch.tensor([prompt])).logits[0, -1, LABELS] for prompts in groups for prompt in prompts]
    rows = torch.stack(rows)
    return rows[:, 0] - rows[:, 1]


def packed_scores(scorer, batch):
    logits, _ = scorer(**batch, label_ids=LABELS)
    return logits[:, 0] - logits[:, 1]


def loss_of(scores, groups):
    parts = scores.split([len(prompts) for prompts in groups])
    return sum(
        losses.group_softmax(one[None], torch.tensor([1]), torch.ones(1, len(one), dtype=bool))[0] for one in parts
    )


def relative(one, two):
    return ((one - two).abs().max() / two.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("min_ratio", [1.0, 1.3, 99.0])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_scores_and_gradients_are_those_of_separate_rows(family, min_ratio):
    # transformers' eager softmax of Gemma 2 is computed in fp32
    scores_to, gradients_to = (1e-6, 1e-5) if family == "gemma2" else (1e-10, 1e-7)
    model, scorer = make(family)
    groups = groups_of()
    reference = separate_scores(model, groups)
    scores = packed_scores(scorer, packed_batch(groups, min_ratio))
    assert reference.std() > 1e-2, "all candidates score alike: the comparison would be vacuous"
    torch.testing.assert_close(scores, reference, atol=scores_to, rtol=0)
    # the loss works in fp32, so the same one is taken of both
    weights = torch.randn(len(scores), dtype=torch.float64)
    (reference * weights).sum().backward()
    (scores * weights).sum().backward()
    for (name, mine), theirs in zip(scorer.backbone.named_parameters(), model.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < gradients_to, name


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_fp32(family):
    model, scorer = make(family, torch.float32)
    groups = groups_of()
    reference, scores = separate_scores(model, groups), packed_scores(scorer, packed_batch(groups))
    torch.testing.assert_close(scores, reference, atol=1e-5, rtol=1e-5)
    loss_of(reference, groups).backward()
    loss_of(scores, groups).backward()
    for (name, mine), theirs in zip(scorer.backbone.named_parameters(), model.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < 1e-4, name


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_bf16_errs_no_more_than_separate_rows(family):
    exact, _ = make(family, torch.float32)
    groups = [prompts for seed in range(6) for prompts in groups_of(seed)]
    half, scorer = make(family, torch.bfloat16)
    scores, gradients = [], []
    for model, found in (
        (exact, separate_scores(exact, groups)),
        (half, separate_scores(half, groups)),
        (scorer, packed_scores(scorer, packed_batch(groups))),
    ):
        loss_of(found.float(), groups).backward()
        scores.append(found.detach().float())
        gradients.append(torch.cat([one.grad.float().flatten() for one in model.parameters()]))
    for truth, separate, packed in (scores, gradients):
        errors = [(one - truth).square().mean().sqrt() for one in (separate, packed)]
        assert 0 < errors[1] <= 1.25 * errors[0]


def test_fifty_steps_are_those_of_separate_rows():
    model, scorer = make("qwen2", torch.float32)
    figures = []
    for one, step_scores in [
        (model, lambda groups: separate_scores(model, groups)),
        (scorer, lambda groups: packed_scores(scorer, packed_batch(groups))),
    ]:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)
        seen = []
        for step in range(50):
            loss = loss_of(step_scores(groups := groups_of(step % 4)), groups)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        figures.append(torch.tensor(seen))
    assert figures[0][-1] < 0.7 * figures[0][0], "the model did not learn: the comparison would be vacuous"
    torch.testing.assert_close(figures[1], figures[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [0, 3], ids=["one by one", "bundled"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_candidates_are_independent(family, number):
    _, scorer = make(family)
    groups = groups_of()
    first, others, prefix = groups[number], groups[:number] + groups[number + 1 :], PROMPTS[number][0]
    count = len(first)
    with torch.no_grad():
        before = packed_scores(scorer, packed_batch([first, *others], 1.0))
        order = [3, 0, 4, 2, 1, *range(5, count)][::-1]
        permuted = packed_scores(scorer, packed_batch([[first[at] for at in order], *others], 1.0))
        torch.testing.assert_close(permuted[:count], before[order], atol=1e-13, rtol=0)
        torch.testing.assert_close(permuted[count:], before[count:], atol=1e-13, rtol=0)

        other = copy.deepcopy(first)
        other[2][-1] = 60 if other[2][-1] != 60 else 59
        changed = packed_scores(scorer, packed_batch([other, *others], 1.0))
        same = [at for at in range(len(before)) if at != 2]
        torch.testing.assert_close(changed[same], before[same], atol=1e-13, rtol=0)
        assert (changed[2] - before[2]).abs() > 1e-4

        # the last token of the prefix is inside every window
        for prompt in other:
            prompt[prefix - 1] = 60 if prompt[prefix - 1] != 60 else 59
        prefixed = packed_scores(scorer, packed_batch([other, *others], 1.0))
        assert ((prefixed[:count] - changed[:count]).abs() > 1e-6).all()
        torch.testing.assert_close(prefixed[count:], changed[count:], atol=1e-13, rtol=0)


def test_short_suffixes_share_a_copy_of_their_prefix(monkeypatch):
    assert [len(attention.bundles(*group)) for group in PROMPTS] == [3, 3, 6, 2], "the tests would not cover bundles"
    monkeypatch.undo()
    made = attention.bundles(500, [28, 35, 21] * 8)
    assert sorted(at for one in made for at in one) == list(range(24)) and 4 <= len(made) <= 8
    fills = [sum([28, 35, 21][at % 3] for at in one) for one in made]
    assert max(fills) - min(fills) <= 14
    assert len(attention.bundles(100, [60] * 24)) == 24, "masked pairs would cost more than copies"
    assert attention.bundles(9, ()) == []


def test_gradient_checkpointing_changes_nothing():
    model, scorer = make("qwen2")
    groups = groups_of()
    packed_scores(scorer, packed_batch(groups)).sum().backward()
    _, checkpointed = make("qwen2")
    modeling.enable_gradient_checkpointing(checkpointed.backbone)
    checkpointed.train()
    packed_scores(checkpointed, packed_batch(groups)).sum().backward()
    for one, two in zip(scorer.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_lora_over_packed_rows():
    model, _ = make("qwen2")
    adapted = modeling.add_lora(
        model, "causal_lm", rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "down_proj"]
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    in_double(adapted)
    reference = separate_scores(adapted, groups := groups_of())
    torch.testing.assert_close(packed_scores(LabelScorer(adapted), packed_batch(groups)), reference, atol=1e-10, rtol=0)


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("rows_of_logits", [1, 7, 1000])
def test_packed_documents_and_chunked_losses_are_the_padded_ones(family, rows_of_logits, monkeypatch):
    scores_to, gradients_to = (1e-6, 1e-5) if family == "gemma2" else (1e-10, 1e-7)
    model, scorer = make(family)
    examples = [
        (torch.randint(3, 61, (length,)).tolist(), border) for length, border in [(9, 4), (21, 20), (14, 1), (9, 8)]
    ]
    monkeypatch.setattr(scorer, "max_logits", rows_of_logits * SHAPE["vocab_size"])
    weights = torch.rand(sum(len(tokens) - border for tokens, border in examples), dtype=torch.float64)

    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([tokens])).logits[0, border - 1 : -1],
                torch.tensor(tokens[border:]),
                reduction="none",
            )
            for tokens, border in examples
        ]
    )
    batch = chat.micro_batch(examples, True, 0)
    assert batch["input_ids"].shape == (1, 53) and batch["weight"] == len(expected)
    _, (losses_N, hits_N) = scorer(batch["input_ids"], lm_read=batch["lm_read"], lm_target=batch["target"],
                                   layout=batch["layout"])  # fmt: skip
    torch.testing.assert_close(losses_N, expected, atol=scores_to, rtol=0)
    padded = chat.micro_batch(examples, False, 0)
    with torch.no_grad():
        _, (again, hits) = scorer(padded["input_ids"], lm_read=padded["lm_read"], lm_target=padded["target"])
        torch.testing.assert_close(again, expected, atol=scores_to, rtol=0)
    assert hits.equal(hits_N)
    (expected * weights).sum().backward()
    losses.token_sum(losses_N, hits_N, weights)[0].backward()
    for (name, mine), theirs in zip(scorer.backbone.named_parameters(), model.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < gradients_to, name


# --- the definition --------------------------------------------------------------------------------------------------

ROWS = [
    [(17, [5, 3, 9]), (4, ()), (3, [8, 8]), (6, ())],
    [(9, [4, 4])],
    [(5, ()), (5, ()), (130, ())],
    [(20, [3]), (21, [3, 3, 3]), (19, [2, 3]), (1, [1])],
    [(40, [3, 1, 2, 3, 2]), (38, [2, 2, 3]), (16, [1] * 9)],
]


def by_definition(query, key, value, layout, window, softcap):
    """Attention with the explicit (T, T) mask."""
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, dim=1).transpose(-1, -2) * 0.3
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~attention.visible(layout, window), float("-inf"))
    return (scores.softmax(-1) @ value.repeat_interleave(repeats, dim=1)).transpose(1, 2)


@pytest.mark.parametrize(("window", "softcap"), itertools.product([None, 6], [None, 1.5]))
@pytest.mark.parametrize("copy_pairs", [1, 28])
@pytest.mark.parametrize("groups", ROWS)
def test_parts_and_flex_are_the_definition(groups, copy_pairs, window, softcap, monkeypatch):
    monkeypatch.setattr(attention, "COPY_PAIRS", copy_pairs)
    torch.manual_seed(0)
    layout = {**attention.make_layout(groups), "masks": {}}
    length = len(layout["group"])
    tensors = [torch.randn(1, heads, length, 16, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    expected = by_definition(*tensors, layout, window, softcap)
    output, _ = attention.attention_forward(
        None, *tensors, None, scaling=0.3, sliding_window=window, softcap=softcap, layout=layout
    )
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=0)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, gradient)
    for mine, theirs in zip(torch.autograd.grad(output, tensors, gradient), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    with torch.no_grad():
        flexed = attention.flex(*tensors, layout, window, 0.3, softcap, compiled=False)
    torch.testing.assert_close(flexed, expected, atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or hidden: GPU_TESTS=1 pytest -m gpu")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 1.5)])
@pytest.mark.parametrize("groups", ROWS)
def test_compiled_flex_is_the_definition(groups, window, softcap):
    torch.manual_seed(0)
    layout = attention.to_device(attention.make_layout(groups), torch.device("cuda")) | {"masks": {}}
    length = len(layout["group"])
    tensors = [torch.randn(1, heads, length, 64, device="cuda", requires_grad=True) for heads in (4, 2, 2)]
    assert attention.flex_supports(tensors[0], 0.0)
    expected = by_definition(*tensors, layout, window, softcap)
    output, _ = attention.attention_forward(
        None, *tensors, None, scaling=0.3, sliding_window=window, softcap=softcap, layout=layout
    )
    torch.testing.assert_close(output, expected, atol=5e-3, rtol=5e-3)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, gradient)
    for mine, theirs in zip(torch.autograd.grad(output, tensors, gradient), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=2e-2)


def test_positions_and_ratio():
    layout = attention.make_layout([(3, [2, 1]), (2, ())])
    assert layout["position"].tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert layout["segment"].tolist() == [0, 0, 0, 1, 1, 2, 0, 0]
    assert attention.token_ratio(500, [28] * 24) == pytest.approx(24 * 528 / 1172)
    # a real reordering has its inverse
    mixed = attention.make_layout([(3, [2, 1]), (9, ()), (3, [2, 2])])
    assert mixed["index"][mixed["inverse"]].tolist() == list(range(len(mixed["group"])))


def test_planner_takes_documents_where_sharing_does_not_pay():
    context = list(range(20, 40))
    shared = pack([[*context, 3, 4], [*context, 5]], [(0, 0)] * 2)
    assert shared.groups == [(20, [2, 1])]
    candidate_first = pack([[3, *context], [4, *context]], [(0, 0)] * 2)
    assert candidate_first.groups == [(21, ()), (21, ())]
    assert pack([[*context, 3]], [(0, 0)]).groups == [(21, ())]
    long_suffixes = pack([[*context, 3, *range(100)], [*context, 4, *range(100)]], [(0, 0)] * 2)
    assert long_suffixes.groups == [(121, ()), (121, ())]


# --- models that are left alone --------------------------------------------------------------------------------------


def test_others_are_refused_with_the_reason_and_still_score(rows, tokenizer):
    from podium import ranking
    from podium.batching.groups import PointwiseRenderer

    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    scorer = LabelScorer(model)
    assert "bloom" in scorer.packing_refusal and "padded" in modeling.packing_note(scorer)
    with pytest.raises(ValueError, match="cannot be used: packed rows are proven for gemma2"):
        scorer(**packed_batch(groups_of()), label_ids=LABELS)
    renderer = PointwiseRenderer(rows, tokenizer, "plain", 300)
    lists = [(0, sorted(rows.names)[:3]), (1, sorted(rows.names)[:4])]
    scores = ranking.score_pointwise(
        scorer, renderer, lists, [5, 9], use_rationale=False, max_tokens_per_batch=700, quiet=True
    )
    for (index, candidates), mine in zip(lists, scores, strict=True):
        row = renderer.packed(index, candidates)
        assert len(row.groups) == 1, "the renderer itself stays as it was"
        for at, score in enumerate(mine):
            (prefix, suffixes), starts = row.groups[0], [0, *itertools.accumulate(row.groups[0][1])]
            ids = [*row.tokens[:prefix], *row.tokens[prefix + starts[at] : prefix + starts[at] + suffixes[at]]]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            assert score == pytest.approx((logits[5] - logits[9]).item(), abs=1e-5)


def test_flash_attention_refuses_layouts_and_masks():
    model, _ = make("qwen2", torch.float32)
    model.config._attn_implementation = "flash_attention_2"
    scorer = LabelScorer(model)
    assert "sdpa has" in scorer.packing_refusal
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    for options in ({"layout": attention.make_layout([(4, ())])}, {"mask": mask}):
        with pytest.raises(ValueError, match="flash_attention_2 has no shared prefixes"):
            scorer(torch.ones(1, 4, dtype=torch.long), **options)


def test_a_layout_that_attention_would_ignore_is_refused():
    _, scorer = make("qwen2", torch.float32)
    batch = packed_batch(groups_of())
    scorer(**batch, label_ids=LABELS)
    for changed in ("sdpa", "eager", "flash_attention_2"):
        # e.g. model.set_attn_implementation after the scorer was made
        scorer.backbone.config._attn_implementation = changed
        with pytest.raises(ValueError, match=f"need attn_implementation=podium, not {changed}"):
            scorer(**batch, label_ids=LABELS)


@pytest.mark.parametrize(
    "config", [MambaConfig(), JambaConfig(), RecurrentGemmaConfig(), Qwen3NextConfig()], ids=lambda one: one.model_type
)
def test_recurrent_and_hybrid_layers_are_refused(config):
    # their state runs through the whole row: siblings would be seen whatever the mask
    config._attn_implementation = "sdpa"
    assert config.model_type in attention.refusal(config)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_plain_calls_and_generation_stay_what_they_were(family, tmp_path):
    model, scorer = make(family, torch.float32)
    ids = torch.tensor([[0, 0, 5, 6, 7, 9, 11, 12, 13, 14, 15], [8, 9, 10, 11, 12, 3, 4, 5, 6, 7, 8]])
    mask = (ids != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(scorer.backbone(ids, attention_mask=mask).logits[mask.bool()],
                                   model(ids, attention_mask=mask).logits[mask.bool()], atol=1e-5, rtol=1e-5)  # fmt: skip
    options = dict(attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(scorer.backbone.generate(ids, **options), model.generate(ids, **options))
    scorer.backbone.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
