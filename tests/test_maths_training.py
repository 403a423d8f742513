"""Difficulty-adaptive training: how often rows count, templates, reading, and the trainer itself."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running
import torch
from safetensors.torch import load_file

from podium import config, contracts, losses, modeling, training
from podium.batching import instructions as batching
from podium.errors import DataError, MissingFileError
from podium.maths import adaptive, instructions, prompts, templates, word_problems
from podium.maths.extraction import extract
from podium.maths.sandbox import Sandbox
from podium.modeling import LabelScorer

SDAT = ["conf_sdat_llemma_7b", "conf_sdat_small", "conf_sdat_cpu"]


@pytest.fixture(scope="session")
def words_dir(tmp_path_factory):
    """Built-in word problems: 60 to train on (two rows each), 10 to test on."""
    folder = tmp_path_factory.mktemp("words")
    word_problems.write_sets(folder, {"train": 60, "test": 10}, seed=3)
    return folder


def rows_of(words_dir, difficulty="difficulty_level"):
    return instructions.read_rows([str(words_dir / "train.jsonl")], difficulty=difficulty)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def overrides(words_dir, backbone_dir, output_dir, *more):
    """What makes an SDAT config run for seconds."""
    return [
        f"model.backbone={backbone_dir}", f"instructions.files=[{words_dir}/train.jsonl]", f"output_dir={output_dir}",
        "instructions.validation_share=0.2", "device=cpu", "loop.max_steps=2", "loop.batch_size=6",
        "loop.num_workers=0", "sample_generations=1", "max_new_tokens=4", "model.gradient_checkpointing=false", *more,
    ]  # fmt: skip


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- word problems ---------------------------------------------------------------------------------------------------


def test_every_built_in_solution_is_right():
    problems = word_problems.generate(150, 1, "train")
    with Sandbox(1) as box:
        printed = [result.stdout.strip() for result in box.run_many([problem.program for problem in problems])]
    assert printed == [str(problem.answer) for problem in problems]
    assert [extract(problem.reasoning, "number").answer for problem in problems] == printed
    for problem in problems:
        for left, operation, right, result in _steps(problem.reasoning):
            assert {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[operation] == result


def _steps(reasoning):
    for step in reasoning.split("The answer")[0].strip().rstrip(".").split(". "):
        left, operation, right, _, result = step.split()
        yield int(left), operation, int(right), int(result)


def test_levels_are_numbers_of_steps():
    problems = word_problems.generate(200, 2, "train")
    events = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4}
    assert all(len(list(_steps(one.reasoning))) == events[one.level] for one in problems)
    assert [one.level for one in problems[:10]] == [1, 2, 3, 4, 5] * 2
    assert all(1 <= one.answer <= word_problems.LARGEST for one in problems)
    fives = [{operation for _, operation, _, _ in _steps(one.reasoning)} for one in problems if one.level == 5]
    assert all({"*", "/"} <= kinds for kinds in fives)


def test_the_test_set_shares_no_text_and_above_level_1_no_arithmetic(tmp_path):
    word_problems.write_sets(tmp_path, {"train": 400, "test": 100}, seed=0)
    train = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(train) == 800 and len(test) == 100
    texts = {row["instruction"].removesuffix(prompts.PROGRAM_SUFFIX) for row in train}
    assert not texts & {row["question"] for row in test}
    arithmetic = {row["output"] for row in train if row["source"] == "words/cot"}
    by_question = {one.question: one for one in word_problems.generate(100, 0, "test")}
    shared = [row for row in test if by_question[row["question"]].reasoning in arithmetic]
    assert {row["difficulty_level"] for row in shared} <= {1}


def test_problems_are_a_pure_function_of_seed_and_split():
    assert word_problems.generate(20, 5, "train") == word_problems.generate(40, 5, "train")[:20]
    assert word_problems.generate(20, 5, "train") != word_problems.generate(20, 6, "train")


# --- how often a row counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "factor"), [(1, 2), (0, 1), (1, 0.5), (0.3, 0.17), (2, 1)])
@pytest.mark.parametrize("column", ["difficulty_level", "err_rate"])
def test_expected_copies_are_base_plus_factor_times_difficulty(base, factor, column):
    draw = np.random.default_rng(0)
    d = draw.integers(1, 6, 4000).astype(float) if column == "difficulty_level" else draw.random(4000)
    wanted = adaptive.factors(d, base, factor, ["s"] * 4000, {})
    assert np.allclose(wanted, base + factor * d)
    made = adaptive.copies(wanted, [f"row{at}" for at in range(4000)], seed=7)
    assert np.all((made == np.floor(wanted)) | (made == np.floor(wanted) + 1)), "only the last copy is left to chance"
    fraction = wanted - np.floor(wanted)
    error = np.sqrt((fraction * (1 - fraction)).sum())
    assert abs(made.sum() - wanted.sum()) <= 4 * error + 1e-9


def test_each_rows_copies_are_unbiased_over_seeds():
    wanted = np.array([0.0, 0.2, 1.0, 1.5, 2.9])
    drawn = np.stack([adaptive.copies(wanted, list("abcde"), seed) for seed in range(3000)])
    assert np.all(np.abs(drawn.mean(0) - wanted) < 0.04)
    assert np.all(drawn[:, 0] == 0) and np.all(drawn[:, 2] == 1)


def test_copies_follow_the_id_and_not_the_order():
    wanted, ids = np.full(50, 1.5), [f"r{at}" for at in range(50)]
    order = np.random.default_rng(0).permutation(50)
    made = adaptive.copies(wanted, ids, 1)
    assert np.array_equal(adaptive.copies(wanted, [ids[at] for at in order], 1), made[order])
    assert not np.array_equal(adaptive.copies(wanted, ids, 2), made)


def test_base_1_factor_0_is_every_row_once():
    of_sample, weight, _ = adaptive.samples(np.ones(20), list(map(str, range(20))), ["s"] * 20, "replicate", 0)
    assert of_sample.tolist() == list(range(20)) and weight is None


def test_the_control_has_the_same_difficulties_on_other_rows():
    d = np.arange(100, dtype=float)
    mixed = adaptive.shuffled(d, 3)
    assert sorted(mixed) == sorted(d) and (mixed == d).mean() < 0.1
    assert np.array_equal(mixed, adaptive.shuffled(d, 3)) and not np.array_equal(mixed, adaptive.shuffled(d, 4))


@pytest.fixture(scope="module")
def gradients(words_dir, backbone_dir, tokenizer):
    """(rows, parameters) gradient of each row's summed loss, and each row's number of answer tokens."""
    rows = instructions.select(rows_of(words_dir), list(range(6)))
    model = LabelScorer(modeling.load_backbone(backbone_dir, "causal_lm").double().eval())
    every = batching.InstructionCollator(rows, tokenizer, "plain", 0.0, 500, 4000, 0, np.arange(6), None)
    found, tokens = [], []
    for at in range(6):
        (batch,) = every(0, np.array([at]))
        model.zero_grad()
        _, logits = model(batch["input_ids"], lm_read=batch["lm_read"])
        torch.nn.functional.cross_entropy(logits, batch["target"], reduction="sum").backward()
        found.append(_flat(model))
        tokens.append(batch["weight"])
    return torch.stack(found), torch.tensor(tokens, dtype=torch.float64), rows, model, tokenizer


def _flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def _gradient(model, collator):
    """The gradient that the loop would take of all samples in one step, and its normaliser."""
    model.zero_grad()
    batches = collator(0, np.arange(len(collator)))
    for batch in batches:
        _, logits = model(batch["input_ids"], lm_read=batch["lm_read"])
        losses.next_token(logits, batch["target"], batch.get("token_weight"))[0].backward()
    return _flat(model), sum(batch["weight"] for batch in batches)


def test_weights_and_replication_agree_in_expected_gradient(gradients):
    each, tokens, rows, model, tokenizer = gradients

    def collator(wanted, method, seed):
        of_sample, weight, _ = adaptive.samples(wanted, rows.id, rows.source, method, seed)
        return batching.InstructionCollator(rows, tokenizer, "plain", 0.0, 500, 600, 0, of_sample, weight)

    whole = np.array([1.0, 3.0, 2.0, 0.0, 1.0, 4.0])
    by_copies, copied = _gradient(model, collator(whole, "replicate", 0))
    by_weight, weighed = _gradient(model, collator(whole, "weight", 0))
    expected = torch.tensor(whole) @ each
    scale = expected.abs().max()
    assert copied == weighed == float(torch.tensor(whole) @ tokens)
    assert (by_copies - expected).abs().max() < 1e-5 * scale and (by_weight - expected).abs().max() < 1e-5 * scale

    wanted = np.array([0.25, 1.5, 2.75, 0.0, 1.0, 3.1])
    by_weight, weighed = _gradient(model, collator(wanted, "weight", 0))
    by_copies, copied = _gradient(model, collator(wanted, "replicate", 5))
    made = adaptive.copies(wanted, rows.id, 5)
    assert (by_copies - torch.tensor(made, dtype=torch.float64) @ each).abs().max() < 1e-5 * scale
    # a gradient is linear in the copies, so their mean over seeds is what is left to compare
    draws = torch.tensor(
        np.stack([adaptive.copies(wanted, rows.id, seed) for seed in range(4000)]), dtype=torch.float64
    )
    mean = draws.mean(0) @ each
    assert (mean - by_weight).norm() < 0.03 * by_weight.norm()
    assert abs(float(draws.mean(0) @ tokens) - weighed) < 0.03 * weighed


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SDAT)
def test_every_config_trains_two_steps(name, words_dir, backbone_dir, tmp_path):
    more = ["adap_base=1", "adap_factor=2", "instructions.drop_too_long=true", "instructions.validation_rows=10"]
    running.run("train_llm_reasoner", *overrides(words_dir, backbone_dir, tmp_path, *more), config_name=name)
    meta = contracts.read_meta(tmp_path, "maths")
    assert meta.extra["expected_samples"] == pytest.approx(meta.extra["rows"] + 2 * _levels(words_dir))
    losses_ = [line["loss"] for line in lines_of(tmp_path) if "loss" in line]
    assert len(losses_) == 2 and all(np.isfinite(losses_))
    before, after = load_file(backbone_dir / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert any(not before[key].equal(after[key]) for key in before)


def _levels(words_dir):
    train, _ = instructions.split(rows_of(words_dir), 0.2, None, False)
    return float(train.difficulty.sum())


def test_base_1_factor_0_is_plain_fine_tuning_bit_for_bit(words_dir, backbone_dir, tmp_path):
    variants = {
        "plain": ["instructions.difficulty=null"],
        "copies": ["adap_base=1", "adap_factor=0", "adap_method=replicate"],
        "weights": ["adap_base=1", "adap_factor=0", "adap_method=weight"],
        "adaptive": ["adap_base=1", "adap_factor=1"],
    }
    for name, more in variants.items():
        running.run(
            "train_llm_reasoner", *overrides(words_dir, backbone_dir, tmp_path / name, "loop.max_steps=3", *more),
            config_name="conf_sdat_cpu",
        )  # fmt: skip
    digest = {name: contracts.sha256(tmp_path / name / "model.safetensors") for name in variants}
    assert digest["plain"] == digest["copies"] == digest["weights"] != digest["adaptive"]
    curves = {name: [line.get("loss") for line in lines_of(tmp_path / name)] for name in variants}
    assert curves["plain"] == curves["copies"] == curves["weights"] != curves["adaptive"]


def test_plain_fine_tuning_has_the_loss_that_transformers_computes(words_dir, backbone_dir, tmp_path, tokenizer):
    more = ["instructions.difficulty=null", "loop.max_steps=1", "loop.batch_size=500"]
    running.run("train_llm_reasoner", *overrides(words_dir, backbone_dir, tmp_path, *more), config_name="conf_sdat_cpu")
    train, _ = instructions.split(rows_of(words_dir, None), 0.2, None, False)
    model = modeling.load_backbone(backbone_dir, "causal_lm").eval()
    model.config.attention_dropout = 0.0
    total = count = 0.0
    for task, answer in zip(train.instruction, train.output, strict=True):
        prompt = tokenizer(f"{task}\nResponse:", add_special_tokens=False)["input_ids"]
        target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + target])
        with torch.no_grad():
            total += model(torch.tensor([prompt + target]), labels=labels).loss.item() * len(target)
        count += len(target)
    (logged,) = [line["loss"] for line in lines_of(tmp_path) if "loss" in line]
    # the trainer has dropout on
    assert logged == pytest.approx(total / count, rel=0.02)


def test_arms_of_a_comparison_train_on_equal_tokens(words_dir, backbone_dir, tmp_path):
    arms = {
        "plain": ["adap_factor=0"],
        "adaptive": ["adap_factor=2"],
        "control": ["adap_factor=2", "adap_shuffled=true"],
    }
    steps = {}
    for name, more in arms.items():
        running.run(
            "train_llm_reasoner",
            *overrides(words_dir, backbone_dir, tmp_path / name, "loop.epochs=null", "loop.max_steps=50",
                       "training_tokens=3000", "loop.batch_size=4", "sample_generations=0", *more),
            config_name="conf_sdat_cpu",
        )  # fmt: skip
        steps[name] = max(line["step"] for line in lines_of(tmp_path / name))
    assert all(3 < count < 20 for count in steps.values())


def test_equal_tokens_are_fewer_steps_where_long_rows_count_more(words_dir, tokenizer):
    rows = rows_of(words_dir)
    every = batching.InstructionCollator(rows, tokenizer, "plain", 0.0, 500, 4000, 0, np.arange(len(rows)), None)
    lengths = np.array(every.lengths())
    assert [len(every.example(at)[0]) for at in range(5)] == lengths[:5].tolist()
    steps = {}
    for name, d in {"adaptive": rows.difficulty, "control": adaptive.shuffled(rows.difficulty, 0)}.items():
        of_sample, _, _ = adaptive.samples(
            adaptive.factors(d, 0, 1, rows.source, {}), rows.id, rows.source, "replicate", 0
        )
        steps[name] = training.steps_for_tokens(lengths[of_sample], 8, 0, 500_000)
    # difficult problems are longer, so the same number of steps would be more tokens
    assert steps["adaptive"] < 0.97 * steps["control"]


def test_steps_for_tokens_counts_what_the_loop_takes():
    lengths = np.arange(1, 11)
    for tokens in (1, 10, 55, 56, 200):
        steps = training.steps_for_tokens(lengths, 3, 0, tokens)
        order = training.StepBatches(10, 3, lambda epoch, ids: [], seed=0, steps=steps)
        seen = [int(lengths[order.sample_ids(step)[1]].sum()) for step in range(steps)]
        assert sum(seen) >= tokens > sum(seen[:-1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["instructions.difficulty=null", "adap_factor=1"], "adap_factor=1 needs difficulties"),
        (["instructions.difficulty=null", "adap_shuffled=true"], "no difficulties to shuffle"),
        (["instructions.difficulty=err_rate"], "no column err_rate; run code/estimate_difficulty.py"),
        (["adap_base=0", "adap_factor=0"], "every row the weight 0"),
        (["copies_of_source={nobody:2}"], "source 'nobody'.*words/cot"),
        (["max_length_tokens=40"], "more than max_length_tokens=40"),
        (["instructions.output_column=solution"], "no column `solution`.*'output'"),
        (
            ["data={questions_dir:.,train_folds:[1],validation_fold:0,validation_rows:5,leaking_rows:refuse}"],
            "are both given",
        ),
        (["instructions=null"], "are both null"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(more, message, words_dir, backbone_dir, tmp_path):
    with pytest.raises((DataError, MissingFileError), match=message):
        settings = [one for one in overrides(words_dir, backbone_dir, tmp_path) if "=null" not in one]
        if "instructions=null" in more:
            settings = [one for one in settings if not one.startswith("instructions")]
        running.run("train_llm_reasoner", *settings, *more, config_name="conf_sdat_cpu")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_rows_that_are_too_long_are_left_out_only_when_asked_and_said(words_dir, backbone_dir, tmp_path, capsys):
    more = ["max_length_tokens=110", "instructions.drop_too_long=true", "loop.max_steps=1"]
    running.run("train_llm_reasoner", *overrides(words_dir, backbone_dir, tmp_path, *more), config_name="conf_sdat_cpu")
    assert "over max_length_tokens=110, left out" in capsys.readouterr().out
    assert contracts.read_meta(tmp_path).extra["rows"] < len(rows_of(words_dir))


# --- templates -------------------------------------------------------------------------------------------------------


def test_the_first_template_is_the_one_the_evaluator_uses():
    assert templates.render("2 + 2?", "alpaca", 0.0, 1) == prompts.alpaca("2 + 2?")
    assert templates.render("2 + 2?", "plain", 0.9, 1) == prompts.plain("2 + 2?")


def test_templates_are_different_keep_the_task_and_take_braces():
    task = "Simplify {x} and {instruction_} \\frac{1}{2}"
    texts = {variant.replace("{instruction}", task) for variant in templates.VARIANTS} | {prompts.alpaca(task)}
    assert len(texts) == len(templates.VARIANTS) + 1 >= 12
    assert all(text.count(task) == 1 for text in texts)
    drawn = {templates.render(task, "alpaca", 1.0, 0, epoch, "id") for epoch in range(200)}
    assert drawn == texts - {prompts.alpaca(task)}


def test_variation_is_a_share_of_the_samples():
    own = prompts.alpaca("t")
    kept = sum(templates.render("t", "alpaca", 0.25, 0, 0, f"row{at}") == own for at in range(4000))
    assert 0.72 < kept / 4000 < 0.78


# --- reading ---------------------------------------------------------------------------------------------------------


PUBLIC = {
    "instruction": "1 + 1?",
    "output": "The answer is 2.",
    "source": "CoT/gsm",
    "difficulty_level": 3,
    "err_rate": 0.5,
}


def test_the_public_columns_are_read_from_json_jsonl_and_parquet(tmp_path):
    rows = [{**PUBLIC, "instruction": f"{at} + 1?"} for at in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [
        instructions.read_rows([str(tmp_path / f"a.{kind}")], difficulty="err_rate")
        for kind in ("json", "jsonl", "parquet")
    ]
    assert read[0].id == read[1].id == read[2].id and len(set(read[0].id)) == 5
    assert read[0].source == ["CoT/gsm"] * 5 and read[0].difficulty.tolist() == [0.5] * 5
    levels = instructions.read_rows([str(tmp_path / "a.json")], difficulty="difficulty_level")
    assert levels.difficulty.tolist() == [3.0] * 5


def test_other_columns_are_named(tmp_path):
    path = write_rows(tmp_path / "gsm.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    rows = instructions.read_rows([path], "question", "answer")
    assert rows.instruction == ["1 + 1?"] and rows.output == ["2"] and rows.source == ["gsm"]


@pytest.mark.parametrize(
    ("row", "difficulty", "message"),
    [
        ({"difficulty_level": 0}, "difficulty_level", "goes from 1 to 5, but 'row 1: 0'"),
        ({"difficulty_level": 0.4}, "difficulty_level", "goes from 1 to 5"),
        ({"err_rate": 3}, "err_rate", "goes from 0 to 1, but 'row 1: 3'"),
        ({"err_rate": None}, "err_rate", "row 1: None"),
        ({"err_rate": True}, "err_rate", "row 1: True"),
        ({"err_rate": "0.5"}, "err_rate", "row 1: '0.5'"),
        ({"output": " "}, None, "column output of row 1 .* empty"),
        ({"instruction": 5}, None, "column instruction of row 1 .* not a text"),
    ],
)
def test_bad_rows_are_named(row, difficulty, message, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [PUBLIC, PUBLIC | row])
    with pytest.raises(DataError, match=message):
        instructions.read_rows([path], difficulty=difficulty)


def test_doubled_ids_and_absent_files_are_refused(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [PUBLIC | {"id": "a"}, PUBLIC | {"id": "a"}])
    with pytest.raises(DataError, match="id 'a' .* not unique"):
        instructions.read_rows([path])
    assert len(set(instructions.read_rows([write_rows(tmp_path / "y.jsonl", [PUBLIC, PUBLIC])]).id)) == 2
    with pytest.raises(MissingFileError):
        instructions.read_rows([str(tmp_path / "nope.jsonl")])


def test_equal_tasks_are_held_out_together_and_nothing_is_lost(words_dir):
    rows = rows_of(words_dir)
    doubled = instructions.select(rows, [*range(len(rows)), *range(40)])
    train, validation = instructions.split(doubled, 0.2, None, False)
    assert not set(train.instruction) & set(validation.instruction)
    assert len(train) + len(validation) == len(doubled)
    assert len(instructions.split(doubled, 0.2, None, True)[0]) == len(doubled)
    with pytest.raises(DataError, match="validation_share"):
        instructions.split(instructions.select(rows, [0]), 0.2, None, False)


# --- the published trainer's defects ---------------------------------------------------------------------------------


def test_defect_1_an_error_rate_is_not_cut_to_whole_copies():
    """int(b + w·err_rate) made b=1, w=0.5 a no-op, and left b=0, w=1 with the never-solved rows only."""
    rate = np.linspace(0, 1, 2001)
    ids, source = [str(at) for at in range(2001)], ["s"] * 2001
    half = adaptive.copies(adaptive.factors(rate, 1, 0.5, source, {}), ids, 0)
    assert half.sum() == pytest.approx(2001 * 1.25, rel=0.03)
    alone = adaptive.copies(adaptive.factors(rate, 0, 1, source, {}), ids, 0)
    assert alone.sum() == pytest.approx(2001 / 2, rel=0.05) and alone[(rate > 0.2) & (rate < 0.8)].sum() > 400


def test_defect_1_the_scale_is_said_and_checked(words_dir, tmp_path):
    for name in SDAT:
        cfg = running.settings("train_llm_reasoner", "model.backbone=b", config_name=name)
        assert cfg.instructions.difficulty in instructions.RANGES
    levels_named_as_rates = write_rows(tmp_path / "x.jsonl", [PUBLIC | {"err_rate": 4}])
    with pytest.raises(DataError, match="set difficulty to the column that is meant"):
        instructions.read_rows([levels_named_as_rates], difficulty="err_rate")


def test_defect_1_the_published_step_counts_follow_from_difficulty_levels():
    """4,651 steps of 128 with b=0, w=1 and 9,302 with b=0, w=2 on 168,810 rows: levels with a mean of 3.527."""
    d = np.full(168_810, 3.527)
    for base, factor, steps in ((0, 1, 4651), (0, 2, 9302)):
        total = adaptive.factors(d, base, factor, ["s"] * len(d), {}).sum()
        assert training.total_steps(round(total), 128, 1, None) == pytest.approx(steps, rel=0.001)


def test_defect_11_every_sample_and_epoch_has_its_own_template_and_every_run_the_same(words_dir, tokenizer):
    rows = rows_of(words_dir)

    def seen(seed, epoch):
        made = batching.InstructionCollator(rows, tokenizer, "alpaca", 0.5, 900, 9000, seed, np.arange(len(rows)), None)
        return [tokenizer.decode(made.example(at, epoch)[0]) for at in range(20)]

    assert seen(0, 0) == seen(0, 0), "drawn from (seed, epoch, id), never from the clock"
    assert seen(0, 0) != seen(0, 1) and seen(0, 0) != seen(1, 0)
    shapes = {text.split(rows.instruction[at])[0] for at, text in enumerate(seen(0, 0))}
    assert len(shapes) > 3, "one run shows many templates"
    own = prompts.alpaca("").split("\n\n###")[0]
    assert 3 < sum(text.startswith(own) for text in seen(0, 0)) < 17, "the evaluator's template is trained too"


def test_defect_12_loss_begins_at_the_exact_token_and_ends_with_end_of_text(words_dir, tokenizer):
    rows = rows_of(words_dir)
    made = batching.InstructionCollator(rows, tokenizer, "alpaca", 0.0, 900, 9000, 0, np.arange(len(rows)), None)
    for at in range(12):
        tokens, border = made.example(at)
        asked = tokenizer(prompts.alpaca(rows.instruction[at]), add_special_tokens=False)["input_ids"]
        assert tokens[:border] == asked, "the prompt's tokens are those of inference, whatever follows"
        assert tokenizer.decode(tokens[border:-1]) == rows.output[at] and tokens[-1] == tokenizer.eos_token_id
    batches = made(0, np.arange(12))
    for batch in batches:
        targets = batch["target"].tolist()
        assert targets.count(tokenizer.eos_token_id) == len(batch["input_ids"])
        assert batch["weight"] == len(targets)
        for (row, column), target in zip(batch["lm_read"].tolist(), targets, strict=True):
            assert batch["input_ids"][row, column + 1] == target


def test_defect_12_rows_are_never_cut_silently(words_dir, tokenizer):
    rows = rows_of(words_dir)
    made = batching.InstructionCollator(rows, tokenizer, "alpaca", 0.5, 60, 9000, 0, np.arange(len(rows)), None)
    with pytest.raises(DataError, match="more than max_length_tokens=60"):
        made.check()


def test_defect_12_copies_of_a_source_reach_the_sampler():
    """The published trainer's factor for one source was never handed on."""
    source = ["CoT/number_comparison", "CoT/gsm"] * 50
    wanted = adaptive.factors(np.full(100, 3.0), 1, 2, source, {"CoT/number_comparison": 0.5})
    assert wanted[::2].tolist() == [0.5] * 50 and wanted[1::2].tolist() == [7.0] * 50
    cfg = running.settings(
        "train_llm_reasoner", "model.backbone=b", "copies_of_source={CoT/number_comparison:0.5}",
        config_name="conf_sdat_small",
    )  # fmt: skip
    assert cfg.copies_of_source == {"CoT/number_comparison": 0.5}


@pytest.mark.parametrize("name", SDAT)
def test_defect_13_runs_are_seeded_saved_and_not_bound_to_a_machine(name):
    cfg = running.settings("train_llm_reasoner", "model.backbone=b", config_name=name)
    assert cfg.loop.seed == 0
    steps = 168_810 // cfg.loop.batch_size
    assert cfg.loop.save_every_steps is not None and cfg.loop.save_every_steps < steps, "saved within an epoch"
    text = (config.CONF / "llm_reasoner" / f"{name}.yaml").read_text()
    assert "CUDA_VISIBLE" not in text and "gpu_ids" not in text
    assert cfg.loop.num_workers <= 8


def test_defect_13_an_interrupted_adaptive_run_goes_on_to_the_same_weights(words_dir, backbone_dir, tmp_path):
    def train(folder):
        more = ["loop.max_steps=4", "loop.save_every_steps=1", "adap_factor=1", "instructions.template_variation=0.5"]
        running.run(
            "train_llm_reasoner", *overrides(words_dir, backbone_dir, tmp_path / folder, *more),
            "instructions.prompt_form=alpaca", "max_length_tokens=400", "sample_generations=0",
            config_name="conf_sdat_cpu",
        )  # fmt: skip

    train("whole")
    real = training.optim.set_learning_rate
    calls = []

    def dies(optimizer, scale):
        calls.append(scale)
        if len(calls) == 3:
            running.kill_self()
        real(optimizer, scale)

    def work():
        training.optim.set_learning_rate = dies
        train("cut")

    assert running.forked(work) == -9
    assert training.steps_done(tmp_path / "cut") == 2
    train("cut")
    assert contracts.sha256(tmp_path / "cut" / "model.safetensors") == contracts.sha256(
        tmp_path / "whole" / "model.safetensors"
    )
