"""Rankers: shared-prefix rows against separate ones, negatives, lists, blending, and the recipe's defects there."""

import numpy as np
import pandas as pd
import pytest
import torch

from podium import attention, blending, contracts, losses, metrics, prompts, ranker_data, ranking, tokenization
from podium.batching.groups import PointwiseCollator, PointwiseRenderer, collate_packed, common_prefix, pack
from podium.batching.lists import ListRenderer, ListwiseCollator, collate_lists
from podium.batching.queries import select
from podium.errors import DataError
from podium.modeling import LabelScorer, load_backbone


@pytest.fixture(scope="module")
def model(backbone_dir):
    torch.manual_seed(0)
    return LabelScorer(load_backbone(backbone_dir, "causal_lm").double()).eval()


@pytest.fixture(scope="module")
def labels(tokenizer):
    return tokenization.label_token_ids(tokenizer, [prompts.YES, prompts.NO])


@pytest.fixture(scope="module")
def renderer(rows, tokenizer):
    return PointwiseRenderer(rows, tokenizer, "plain", 400)


def separate_scores(model, renderer, index, candidates, labels, rationale=None):
    """One candidate a row, nothing shared, full logits: what packing must equal."""
    scores = []
    for one in candidates:
        parts = prompts.pointwise_parts(
            renderer.rows.text[index], renderer.rows.names[one], renderer.style, rationale=rationale
        )
        ids = tokenization.encode(renderer.tokenizer, ["".join(parts)])
        logits = model.backbone(torch.tensor(ids)).logits[0, -1]
        scores.append((logits[labels[0]] - logits[labels[1]]).item())
    return scores


@pytest.mark.parametrize("style", ["plain", "instruct", "candidate_first"])
@pytest.mark.parametrize("use_rationale", [False, True])
def test_packed_scores_equal_separate_rows(model, rows, tokenizer, labels, style, use_rationale):
    renderer = PointwiseRenderer(rows, tokenizer, style, 480)
    ids = sorted(rows.names)
    lists = [(0, ids[:7]), (1, ids[5:8]), (2, ids[9:10])]
    packed = ranking.score_pointwise(
        model, renderer, lists, labels, use_rationale=use_rationale, max_tokens_per_batch=4096, quiet=True
    )
    with torch.no_grad():
        for (index, candidates), scores in zip(lists, packed, strict=True):
            rationale = rows.rationales[index][0] if use_rationale else None
            plain = separate_scores(model, renderer, index, candidates, labels, rationale)
            # labels are read in fp32, so fp64 agreement ends there
            np.testing.assert_allclose(scores, plain, atol=2e-6)
    assert np.std(packed[0]) > 1e-4, "all candidates score alike: the comparison would be vacuous"


def test_order_of_candidates_and_batch_size_do_not_matter(model, renderer, rows, labels):
    ids = sorted(rows.names)[:6]
    score = lambda lists, budget: ranking.score_pointwise(  # noqa: E731
        model, renderer, lists, labels, use_rationale=True, max_tokens_per_batch=budget, quiet=True
    )
    forward, backward = score([(0, ids), (3, ids)], 10_000), score([(0, ids[::-1]), (3, ids)], 100)
    np.testing.assert_allclose(forward[0], backward[0][::-1], atol=1e-6)
    np.testing.assert_allclose(forward[1], backward[1], atol=1e-6)


def test_changing_one_candidate_changes_no_other_score(model, renderer, rows, labels):
    ids = sorted(rows.names)
    first = ranking.score_pointwise(model, renderer, [(0, [ids[0], ids[1], ids[2]])], labels, use_rationale=True,
                                    max_tokens_per_batch=4096, quiet=True)[0]  # fmt: skip
    other = ranking.score_pointwise(model, renderer, [(0, [ids[0], ids[60], ids[2]])], labels, use_rationale=True,
                                    max_tokens_per_batch=4096, quiet=True)[0]  # fmt: skip
    np.testing.assert_allclose(first[[0, 2]], other[[0, 2]], atol=1e-6)
    assert abs(first[1] - other[1]) > 3e-6


def test_packed_gradients_equal_separate_rows(backbone_dir, renderer, rows, labels):
    model = LabelScorer(load_backbone(backbone_dir, "causal_lm").double()).eval()
    candidates = sorted(rows.names)[:5]
    label_ids = torch.tensor(labels)
    batch = collate_packed([renderer.packed(0, candidates)])
    logits, _ = model(**batch, label_ids=label_ids)
    losses.group_softmax((logits[:, 0] - logits[:, 1])[None], torch.tensor([2]), torch.ones(1, 5, dtype=bool))[
        0
    ].backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    scores = []
    for one in candidates:
        ids = tokenization.encode(
            renderer.tokenizer, ["".join(prompts.pointwise_parts(rows.text[0], rows.names[one], "plain"))]
        )
        row = model.backbone(torch.tensor(ids)).logits[0, -1].float()
        scores.append(row[labels[0]] - row[labels[1]])
    losses.group_softmax(torch.stack(scores)[None], torch.tensor([2]), torch.ones(1, 5, dtype=bool))[0].backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1e-12)
        assert (packed[name] - parameter.grad).abs().max() / scale < 1e-4, name
    assert max(gradient.abs().max() for gradient in packed.values()) > 1e-4


def test_pack_restarts_positions_and_hides_siblings():
    row = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]], [(2, 3), (2, 3), (2, 5)], min_ratio=1.0)
    assert row.tokens == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.groups == [(2, [2, 1, 3])]
    assert row.last == [3, 4, 7]
    assert row.name_tokens == [[3], [5], [6, 7, 8]]
    assert row.name_read == [[1], [1], [1, 5, 6]]
    batch = collate_packed([row, row])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 2, 3, 4] * 2]
    assert batch["label_read"][:, 1].tolist() == [3, 4, 7, 11, 12, 15]
    mask = attention.visible(batch["layout"])
    assert mask[4].tolist() == [True, True, False, False, True, False, False, False] + [False] * 8
    assert mask[12].tolist() == [False] * 8 + [True, True, False, False, True, False, False, False]
    assert common_prefix([[1, 2], [1, 2]]) == 1, "every row keeps a token of its own"


def test_long_question_is_cut_but_never_the_answers(rows, tokenizer):
    long = select(rows, [0])
    long.text[0] = long.text[0].__class__(
        long.text[0].construct, long.text[0].subject, "word " * 800, "right 11", "wrong 22"
    )
    packed = PointwiseRenderer(long, tokenizer, "plain", 120).packed(0, sorted(long.names)[:3], rationale="because 33")
    text = tokenizer.decode(packed.tokens)
    assert "right 11" in text and "wrong 22" in text and "because 33" in text and "…" in text
    longest = max(prefix + max(suffixes) for prefix, suffixes in packed.groups)
    assert longest <= 120


# --- groups ----------------------------------------------------------------------------------------------------------


def candidates_of(tables, ids):
    queries = tables.questions[tables.questions["misconception_id"].notna()]
    frames = []
    for number, query in enumerate(queries["query_id"]):
        order = np.roll(ids, number)
        frames.append(pd.DataFrame({"query_id": query, "rank": range(1, len(ids) + 1), "misconception_id": order,
                                    "score": -np.arange(len(ids), dtype=float), "source": "t"}))  # fmt: skip
    return queries.reset_index(drop=True), pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def grouped(tables):
    ids = tables.catalogue["misconception_id"].tolist()[:60]
    queries, candidates = candidates_of(tables, ids)
    positives = set(queries.loc[queries["fold"] != 0, "misconception_id"].astype(int))
    groups = ranker_data.build_groups(
        queries, candidates, 0, [(1, 16, 0.9), (17, 40, 0.1)], 10, 12, positives, 0.0, seed=1, teacher=None
    )
    return queries, candidates, positives, groups


def test_defect_2_gold_is_never_its_own_negative(grouped):
    queries, _, _, groups = grouped
    gold = queries.set_index("query_id")["misconception_id"]
    negatives = groups[~groups["label"]]
    assert len(negatives) > 100
    train = queries.loc[queries["fold"] != 0, "query_id"]
    assert (negatives["misconception_id"] != negatives["query_id"].map(gold)).all()
    assert groups[groups["query_id"].isin(train)].groupby("query_id")["label"].sum().eq(1).all()


def test_defect_2_is_refused_when_somebody_else_wrote_the_groups(rows, grouped):
    _, _, _, groups = grouped
    spoilt = groups.copy()
    spoilt.loc[spoilt["label"], "label"] = False
    with pytest.raises(DataError, match="has misconception .* as a negative in its group"):
        ranker_data.ranker_rows(rows, spoilt, [], False)


def test_never_positive_ids_are_negatives_only_when_asked_for(grouped):
    queries, candidates, positives, groups = grouped
    train = set(queries.loc[queries["fold"] != 0, "query_id"])
    negatives = groups[~groups["label"] & groups["query_id"].isin(train)]
    assert set(negatives["misconception_id"]) <= positives
    wide = ranker_data.build_groups(queries, candidates, 0, [(1, 60, 1.0)], 60, 12, positives, 1.0, 1, None)
    assert not set(wide.loc[~wide["label"], "misconception_id"]) <= positives


def test_validation_lists_are_not_helped(grouped):
    queries, candidates, _, groups = grouped
    validation = queries[queries["fold"] == 0]
    lists = groups[groups["query_id"].isin(validation["query_id"])]
    top = candidates[candidates["query_id"].isin(validation["query_id"]) & (candidates["rank"] <= 12)]
    assert len(lists) == len(top) == 12 * len(validation)
    missed = set(validation["query_id"]) - set(lists.loc[lists["label"], "query_id"])
    assert missed, "some gold must be outside the list, or this test shows nothing"


def test_defect_11_short_pools_do_not_raise():
    few = ranker_data.negatives_by_bands([5, 6, 7], 5, [(1, 32, 0.9)], 24, {5, 6, 7}, 0.0, 0, "x")
    assert few == [6, 7]


def test_defect_10_and_34_groups_are_drawn_from_the_seed(grouped):
    queries, candidates, positives, groups = grouped
    arguments = (queries, candidates, 0, [(1, 16, 0.9), (17, 40, 0.1)], 10, 12, positives, 0.0)
    pd.testing.assert_frame_equal(groups, ranker_data.build_groups(*arguments, seed=1, teacher=None))
    other = ranker_data.build_groups(*arguments, seed=2, teacher=None)
    assert not groups["misconception_id"].equals(other["misconception_id"])


def collator(rows, grouped, tokenizer, **options):
    train = ranker_data.ranker_rows(rows, grouped[3], options.pop("unlabelled", []), False)
    return PointwiseCollator(
        PointwiseRenderer(train.rows, tokenizer, "plain", 300), train.pools, None, train.labelled, [4, 6], 2000, seed=0,
        topic_dropout=0.5, rationale_dropout=0.5, **options,
    )  # fmt: skip


def test_groups_are_a_pure_function_of_seed_epoch_and_id(rows, grouped, tokenizer):
    one, two = collator(rows, grouped, tokenizer), collator(rows, grouped, tokenizer)
    for index in range(12):
        assert one.group(3, index)[0] == two.group(3, index)[0]
        assert one.group(3, index)[2] == two.group(3, index)[2]
    assert any(one.group(3, index)[0] != one.group(4, index)[0] for index in range(12))


def test_defect_3_thoughts_are_really_dropped_per_epoch(rows, grouped, tokenizer):
    made = collator(rows, grouped, tokenizer)
    seen = {epoch: ["Why:" in tokenizer.decode(made.group(epoch, i)[2].tokens) for i in range(40)] for epoch in (0, 1)}
    assert 8 < sum(seen[0]) < 32
    assert seen[0] != seen[1]


def test_batches_hold_whole_groups_with_gold_where_target_says(rows, grouped, tokenizer):
    made = collator(rows, grouped, tokenizer)
    batches = made(0, np.arange(17))
    assert sum(batch["weight"] for batch in batches) == 17
    assert len(batches) > 1
    for batch in batches:
        assert batch["valid"].sum() == len(batch["label_read"])
        assert batch["valid"][torch.arange(len(batch["target"])), batch["target"]].all()
        assert batch["lm_weight"].sum().item() == pytest.approx(len(batch["target"]))
        names = tokenizer.decode(batch["lm_target"])
        assert names.strip()


def test_unlabelled_sources_learn_nothing_from_their_label(rows, grouped, tokenizer):
    made = collator(rows, grouped, tokenizer)
    made.labelled = [False] * len(made.labelled)
    (batch, *_) = made(0, np.arange(4))
    assert not batch["labelled"].any() and len(batch["lm_read"]) == 0
    scores = torch.randn(len(batch["target"]), batch["valid"].shape[1], requires_grad=True)
    total, _, _ = losses.group_softmax(scores, batch["target"], batch["valid"], batch["labelled"])
    assert total.item() == 0


def test_unlabelled_sources_without_a_teacher_are_left_out(rows, grouped, capsys):
    mixed = select(rows, list(range(len(rows))))
    mixed.source = ["synthetic" if at % 3 == 0 else "train" for at in range(len(rows))]
    made = ranker_data.ranker_rows(mixed, grouped[3], ["synthetic"], False)
    assert set(made.rows.source) == {"train"} and all(made.labelled) and "need a teacher" in capsys.readouterr().out
    taught = grouped[3].assign(teacher_score=1.0)
    made = ranker_data.ranker_rows(mixed, taught, ["synthetic"], True)
    assert made.labelled == [source == "train" for source in made.rows.source] and not all(made.labelled)
    with pytest.raises(DataError, match="teacher only"):
        ranker_data.ranker_rows(mixed, grouped[3], ["synthetic", "train"], False)


def test_missing_teacher_scores_are_refused(rows, grouped):
    with pytest.raises(DataError, match="no teacher score"):
        ranker_data.ranker_rows(rows, grouped[3], [], with_teacher=True)


# --- lists -----------------------------------------------------------------------------------------------------------


def test_listwise_averages_both_orders(model, rows, tokenizer):
    renderer = ListRenderer(rows, tokenizer, "plain", 400)
    letters = tokenization.label_token_ids(tokenizer, prompts.option_labels(5))
    candidates = sorted(rows.names)[:5]
    got = ranking.score_listwise(model, renderer, [(0, candidates)], letters, use_rationale=False,
                                 max_tokens_per_batch=4096, quiet=True)[0]  # fmt: skip
    expected = np.zeros(5)
    for order in (list(range(5)), list(range(5))[::-1]):
        ids = renderer.row(0, [candidates[at] for at in order]).tokens
        with torch.no_grad():
            logits = model.backbone(torch.tensor([ids])).logits[0, -1, letters].float()
        expected[order] += torch.log_softmax(logits, -1).numpy() / 2
    np.testing.assert_allclose(got, expected, atol=1e-5)
    reverse = ranking.score_listwise(model, renderer, [(0, candidates[::-1])], letters, use_rationale=False,
                                     max_tokens_per_batch=4096, quiet=True)[0]  # fmt: skip
    np.testing.assert_allclose(got, reverse[::-1], atol=1e-5)


def test_options_are_read_after_their_own_text(rows, tokenizer):
    renderer = ListRenderer(rows, tokenizer, "plain", 400)
    candidates = sorted(rows.names)[:4]
    row = renderer.row(0, candidates)
    assert len(row.option_read) == 4
    for number, column in enumerate(row.option_read):
        text = tokenizer.decode(row.tokens[: column + 1])
        assert rows.names[candidates[number]] in text
        assert number + 1 == 4 or rows.names[candidates[number + 1]] not in text


def test_packed_lists_read_what_padded_ones_read(model, rows, tokenizer, labels):
    renderer = ListRenderer(rows, tokenizer, "plain", 400)
    made = [renderer.row(index, sorted(rows.names)[index : index + size]) for index, size in ((0, 5), (1, 3), (2, 4))]
    packed, padded = collate_lists(made, None), collate_lists(made, tokenizer.pad_token_id)
    assert packed["input_ids"].shape == (1, sum(len(row.tokens) for row in made))
    for kind in ("letters_read", "option_read"):
        one, two = (
            model(
                batch["input_ids"], label_read=batch[kind], label_ids=torch.tensor(labels), layout=batch.get("layout")
            )[0]
            for batch in (packed, padded)
        )
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
        assert one.std() > 1e-3


def test_lists_are_shuffled_and_sized_per_epoch(rows, grouped, tokenizer):
    train = ranker_data.ranker_rows(rows, grouped[3], [], False)
    made = ListwiseCollator(
        ListRenderer(train.rows, tokenizer, "plain", 400), train.pools, None, train.labelled, [3, 5], 4000, seed=0
    )
    drawn = [made.example(epoch, index) for epoch in range(3) for index in range(20)]
    assert {len(options) for options, _, _ in drawn} == {3, 5}
    assert len({target for _, target, _ in drawn}) == 5
    for (options, target, _), index in zip(drawn[:20], range(20), strict=True):
        assert options[target] == train.rows.label[index]


# --- reordering, blending, metrics -----------------------------------------------------------------------------------


def ranked(query, ids):
    return pd.DataFrame({"query_id": query, "rank": range(1, len(ids) + 1), "misconception_id": ids,
                         "score": np.linspace(1, 0, len(ids)), "source": "t"})  # fmt: skip


def test_reorder_keeps_every_candidate_and_what_was_not_scored_behind():
    candidates = pd.concat([ranked("a", [1, 2, 3, 4]), ranked("b", [9, 8])])
    scores = pd.DataFrame({"query_id": ["a", "a", "a"], "misconception_id": [1, 2, 3], "score": [-5.0, 2.0, 2.0]})
    got = ranking.reorder(candidates, scores, "x")
    assert got[got["query_id"] == "a"]["misconception_id"].tolist() == [2, 3, 1, 4]
    assert got[got["query_id"] == "b"]["misconception_id"].tolist() == [9, 8]
    contracts.validate(got, contracts.CANDIDATES, "test")
    assert got.groupby("query_id")["score"].apply(lambda s: s.is_monotonic_decreasing).all()


def blend_case(noise):
    generator = np.random.default_rng(0)
    lists, scores, gold = [], [], {}
    for number in range(300):
        query = f"q{number}"
        gold[query] = int(generator.integers(8))
        strength = np.where(np.arange(8) == gold[query], 1.0, 0.0)
        own = strength + generator.normal(0, 1.0, 8)
        order = np.argsort(-own)
        lists.append(
            pd.DataFrame(
                {"query_id": query, "rank": range(1, 9), "misconception_id": order, "score": own[order], "source": "t"}
            )
        )
        scores.append(pd.DataFrame({"query_id": query, "misconception_id": range(8), "model": "m",
                                    "score": 10 * (strength + generator.normal(0, noise, 8))}))  # fmt: skip
    return pd.concat(lists), pd.concat(scores), pd.Series(gold)


def test_blend_finds_the_better_source_and_beats_both():
    candidates, scores, gold = blend_case(noise=0.5)
    table = blending.feature_table(candidates, scores, 8)
    weights = blending.fit_weights(table, gold)
    assert weights["m"] * table["m"].std() > weights["list"] * table["list"].std() > 0
    of = lambda frame: metrics.report(frame, gold, set(range(8)))["map@25"]["all"]  # noqa: E731
    blended = of(ranking.reorder(candidates, blending.apply_weights(table, weights), "b"))
    assert blended > of(candidates) and blended >= of(ranking.reorder(candidates, scores, "m")) - 1e-9


def test_blend_gives_noise_almost_no_weight():
    candidates, scores, gold = blend_case(noise=1000.0)
    table = blending.feature_table(candidates, scores, 8)
    weights = blending.fit_weights(table, gold)
    assert weights["m"] * table["m"].std() < 0.1 * weights["list"] * table["list"].std()


def test_defect_24_a_missing_score_is_an_error_not_a_dropped_row():
    candidates, scores, gold = blend_case(noise=1.0)
    with pytest.raises(DataError, match=r"no score for 'q0\|0'"):
        blending.feature_table(candidates, scores.iloc[1:], 8)


def test_list_figures_count_every_row():
    lists = [(0, [1, 2, 3]), (1, [4, 5, 6]), (2, [7, 8, 9])]
    scores = [np.array([0.0, 1.0, 0.5]), np.array([0.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0])]
    figures = metrics.list_figures(lists, scores, [2, 6, 1], seen={2, 6})
    assert figures["map@25"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert figures["map@25/seen"] == pytest.approx((1 + 1 / 3) / 2)
    assert figures["map@25/unseen"] == 0
    assert figures["in_list"] == pytest.approx(2 / 3)


def test_blend_without_anything_to_fit_on_keeps_the_list(capsys):
    candidates, scores, gold = blend_case(noise=1.0)
    table = blending.feature_table(candidates, scores, 8)
    weights = blending.fit_weights(table, gold * 0 + 99)
    assert weights == {"list": 1.0, "m": 0.0} and "warning" in capsys.readouterr().out
    kept = ranking.reorder(candidates, blending.apply_weights(table, weights), "b")
    first = candidates[candidates["rank"] == 1].set_index("query_id")["misconception_id"]
    assert kept[kept["rank"] == 1].set_index("query_id")["misconception_id"].eq(first).all()
