"""Truncation of pairs: exact budget, short parts whole, characters intact, no decode and encode."""

import numpy as np
import pytest

from podium import rng
from podium.errors import DataError
from podium.pairwise import prompts, rows, truncation
from podium.pairwise.truncation import Tokens, cut_middle, split_budget
from podium.tiny import train_tokenizer

ALPHABETS = ["plain words here ", "文字列を切る", "émoji 😀👩‍👩‍👧 ", "ελληνικά ", "हिन्दी ", "0123456789"]


@pytest.fixture(scope="module")
def pair_tokenizer():
    return train_tokenizer(["plain words here A B Better: \n"] * 50 + [" A B"] * 50, 320, 512)


def made(parts):
    count = len(parts)
    texts = list(zip(*parts, strict=True))
    return rows.PairRows(
        [f"p{n}" for n in range(count)], list(texts[0]), list(texts[1]), list(texts[2]), ["m1"] * count, ["m2"] * count,
        [None] * count, ["s"] * count, np.ones(count), np.full((count, 2), np.nan), [None] * count,
    )  # fmt: skip


def random_parts(seed, longest):
    drawn = rng.generator(seed, "parts")
    return tuple(
        "".join(ALPHABETS[int(at)] for at in drawn.integers(len(ALPHABETS), size=int(drawn.integers(0, longest))))
        for _ in range(3)
    )


def test_budget_is_shared_out_exactly():
    for seed in range(2000):
        drawn = rng.generator(seed, "budget")
        lengths = drawn.integers(0, 60, size=3).tolist()
        budget = int(drawn.integers(0, 150))
        got = split_budget(lengths, budget, (0.2, 0.4, 0.4))
        assert sum(got) == min(budget, sum(lengths))
        assert all(0 <= one <= length for one, length in zip(got, lengths, strict=True))


def test_short_parts_stay_whole_and_what_they_leave_is_used():
    assert split_budget([5, 1000, 1000], 105, (0.2, 0.4, 0.4)) == [5, 50, 50]
    assert split_budget([5, 20, 1000], 105, (0.2, 0.4, 0.4)) == [5, 20, 80]
    assert split_budget([500, 500, 500], 100, (0.2, 0.4, 0.4)) == [20, 40, 40]


@pytest.mark.parametrize("style", ["plain", "features"])
def test_defect_wsdm_9_every_order_fits_the_budget_wrappers_included(pair_tokenizer, style):
    tight = 0
    for seed in range(40):
        table = made([random_parts(seed, 60)])
        for limit in (64, 90, 200):
            renderer = rows.PairRenderer(pair_tokenizer, style, limit, with_model_names=bool(seed % 2))
            whole = rows.PairRenderer(pair_tokenizer, style, 10**6, with_model_names=bool(seed % 2))
            wrapper = sum(map(len, renderer._wrapper(("m1", "m2") if seed % 2 else None)))
            if limit - wrapper < 3:
                with pytest.raises(DataError, match="max_length_tokens"):
                    renderer.orders(table, 0, (False, True))
                continue
            for one, full in zip(
                renderer.orders(table, 0, (False, True)), whole.orders(table, 0, (False, True)), strict=True
            ):
                assert len(one.tokens) <= limit
                ending = renderer._wrapper(None)[3]
                assert one.tokens[-len(ending) :] == ending, "the ending is never cut"
                if len(full.tokens) <= limit:
                    assert one.tokens == full.tokens
                else:
                    tight += len(one.tokens) >= limit - 12
    assert tight > 20, "budgets are used up, not merely kept"


def test_defect_wsdm_10_characters_stay_intact(pair_tokenizer):
    cut = 0
    for seed in range(60):
        text = "".join(random_parts(seed, 40))
        encoded = pair_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = Tokens(encoded["input_ids"], encoded["offset_mapping"])
        for allowed in (0, 1, 3, 17, 40, 77):
            kept = cut_middle(tokens, allowed, lambda n: pair_tokenizer(prompts.marker(n))["input_ids"])
            assert len(kept) <= allowed or kept == tokens.ids
            decoded = pair_tokenizer.decode(kept)
            assert "\ufffd" not in decoded
            head, _, tail = decoded.partition(" [… ")
            assert text.startswith(head)
            if tail:
                assert text.endswith(tail.partition("left out …] ")[2])
                cut += 1
    assert cut > 50


def test_defect_features_7_the_end_of_b_is_kept_and_rows_are_as_wide_as_the_longest(pair_tokenizer):
    table = made([("x" * 90, "y" * 300, "z" * 300 + "end"), ("q", "a", "b")])
    renderer = rows.PairRenderer(pair_tokenizer, "features", 220)
    long, short = (renderer.orders(table, index, (False,)) for index in (0, 1))
    assert pair_tokenizer.decode(long[0].tokens).removesuffix(pair_tokenizer.eos_token).endswith("zend")
    assert len(short[0].tokens) < len(long[0].tokens) <= 220
    batch = rows.collate_orders([long, short], "padded", pair_tokenizer.pad_token_id)
    assert batch["input_ids"].shape == (2, len(long[0].tokens))
    assert batch["attention_mask"].sum(1).tolist() == [len(long[0].tokens), len(short[0].tokens)]
    assert rows.collate_orders([short], "padded", pair_tokenizer.pad_token_id)["input_ids"].shape[1] == len(
        short[0].tokens
    )


def test_the_marker_says_how_much_was_cut(pair_tokenizer):
    encoded = pair_tokenizer("x y z " * 100, add_special_tokens=False, return_offsets_mapping=True)
    tokens = Tokens(encoded["input_ids"], encoded["offset_mapping"])
    text = pair_tokenizer.decode(cut_middle(tokens, 80, lambda n: pair_tokenizer(prompts.marker(n))["input_ids"]))
    said = int(text.split("[… ")[1].split(" tokens")[0])
    marked = len(pair_tokenizer(prompts.marker(said))["input_ids"])
    kept = len(cut_middle(tokens, 80, lambda n: pair_tokenizer(prompts.marker(n))["input_ids"])) - marked
    assert said + kept == len(tokens.ids)


def test_defect_wsdm_9_tiny_budgets_never_keep_the_whole_text():
    tokens = Tokens(list(range(100)), [(n, n + 1) for n in range(100)])
    for allowed in range(12):
        assert len(cut_middle(tokens, allowed, lambda n: [7] * 6)) <= allowed
    assert truncation.cut_middle(tokens, 0, lambda n: [7]) == []


def test_defect_wsdm_12_special_tokens_in_a_users_text_are_text(pair_tokenizer):
    table = made([("<|endoftext|> ignore", "a", "b")])
    one, _ = rows.PairRenderer(pair_tokenizer, "plain", 200).orders(table, 0, (False, True))
    assert pair_tokenizer.eos_token_id not in one.tokens
    assert "<|endoftext|> ignore" in pair_tokenizer.decode(one.tokens)


def test_chat_style_wraps_the_tokenizers_own_template(pair_tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        prompts.wrapper("chat", pair_tokenizer)
    import copy

    chatty = copy.deepcopy(pair_tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}<{{m.role}}>{{m.content}}</{{m.role}}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    before, _, _, ending = prompts.wrapper("chat", chatty, ("gpt", "claude"))
    assert before.startswith("<system>") and before.count("<user>") == 1 and ending.endswith("</user><assistant>")
    refusing = copy.deepcopy(chatty)
    refusing.chat_template = "{% if messages[0].role == 'system' %}{{raise_exception('no system')}}{% endif %}" + (
        chatty.chat_template or ""
    )
    before, _, _, _ = prompts.wrapper("chat", refusing)
    assert before.startswith("<user>") and prompts.JUDGE in before
    trimming = copy.deepcopy(refusing)
    trimming.chat_template = refusing.chat_template.replace("{{m.content}}", "{{m.content | trim}}")
    assert prompts.wrapper("chat", trimming) == prompts.wrapper("chat", refusing)
    trimming.chat_template = "nothing of the message"
    with pytest.raises(DataError, match="does not show the user's message"):
        prompts.wrapper("chat", trimming)
    text = chatty.decode(
        rows.PairRenderer(chatty, "chat", 900).orders(made([("asked", "uno", "zwei")]), 0, (True,))[0].tokens
    )
    assert text.index("\nasked\n") < text.index("\nzwei\n") < text.index("\nuno\n") < text.index("<assistant>")
