import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import running
import yaml

from podium import config
from podium.errors import ArgumentError, DataError, InterruptedRun, MissingFileError
from podium.maths import datasets, evaluation, flags, prompts, report, run, statistics
from podium.maths.datasets import Columns, Problem
from podium.maths.engine import Engine, Sampling
from podium.maths.evaluation import Judge
from podium.maths.grading import Tolerance
from podium.maths.sandbox import ProgramResult, Sandbox
from podium.maths.settings import AnalyzeMath, EvalMath

ROOT = Path(__file__).parents[1]
ADDED = [
    Problem(str(n), f"What is {n} plus {n + 1}?", str(2 * n + 1), "number", (), float(n % 5 + 1)) for n in range(20)
]
JUDGE = Judge(Tolerance(), None, None)


def asked(prompt: str) -> tuple[int, bool]:
    """The problem's number in a prompt, and whether a program is wanted."""
    question = prompt.rsplit("What is ", 1)[1]
    return int(question.split(" ")[0]), prompts.PROGRAM_SUFFIX.strip() in question


def adder(wrong: set[int] = frozenset(), broken: set[int] = frozenset()):
    """A model that adds: wrong on some problems, with broken programs on others; remembers what it was asked."""
    calls: list[tuple[int, Sampling]] = []

    def generate(texts: list[str], sampling: Sampling) -> list[str]:
        calls.append((len(texts), sampling))
        answers = []
        for text in texts:
            number, program = asked(text)
            value = 2 * number + 1 + (number in wrong)
            if program:
                answers.append(f"x = {value}\nprint(x{'y' if number in broken else ''})")
            else:
                answers.append(f"We add {number} and {number + 1}.\nThe answer is {value}.")
        return answers

    return Engine(generate, lambda texts: [len(text.split()) for text in texts], 200), calls


def evaluate(tmp_path, engine, problems=ADDED, mode="cot", how=JUDGE, samples=1, **changes):
    settings = {"form": "alpaca", "shots": 0, "samples": samples, "sampling": Sampling(16), "context_tokens": None}
    settings |= {"allow_too_long": False, "problems_per_batch": 6, **changes}
    tmp_path.mkdir(exist_ok=True)
    return evaluation.evaluate(problems, mode, tmp_path / f"set-{mode}.jsonl", engine, how, **settings)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(2) as box:
        yield box


# --- evaluating ------------------------------------------------------------------------------------------------------


def test_every_problem_has_a_record_with_texts_verdict_and_reason(tmp_path):
    engine, calls = adder(wrong={3, 4})
    records = evaluate(tmp_path, engine)
    assert [record["id"] for record in records] == [problem.id for problem in ADDED]
    assert [n for n, record in enumerate(records) if not record["correct"]] == [3, 4]
    assert records[0]["samples"][0]["output"].startswith("We add 0 and 1.")
    assert all(record["method"] and record["reason"] for record in records)
    assert [count for count, _ in calls] == [6, 6, 6, 2]
    assert records == evaluation.read_records(tmp_path / "set-cot.jsonl")


def test_a_rerun_continues_and_ends_with_the_same_file(tmp_path):
    engine, calls = adder()
    whole = evaluate(tmp_path, engine)
    path = tmp_path / "set-cot.jsonl"
    complete = path.read_bytes()
    evaluate(tmp_path, engine)
    assert len(calls) == 4  # nothing was generated again
    for cut in (0, 1, len(complete) // 3, len(complete) // 2, len(complete) - 2):
        path.write_bytes(complete[:cut])
        before = len(calls)
        assert evaluate(tmp_path, engine) == whole
        assert path.read_bytes() == complete
        assert len(calls) > before
        seeds = {sampling.seed for _, sampling in calls[:4]}
        assert {sampling.seed for _, sampling in calls[before:]} <= seeds and len(seeds) == 4


def test_records_of_other_problems_are_refused(tmp_path):
    engine, _ = adder()
    evaluate(tmp_path, engine)
    with pytest.raises(DataError, match="other problems"):
        evaluate(tmp_path, engine, problems=list(reversed(ADDED)))
    (tmp_path / "set-cot.jsonl").write_text('{"id": \n{"id": "1"}\n')
    with pytest.raises(DataError, match="line 1 is not JSON"):
        evaluate(tmp_path, engine)


def test_programs_run_and_the_fallback_takes_the_text_where_they_fail(tmp_path, sandbox):
    engine, _ = adder(wrong={1}, broken={5, 6})
    how = replace(JUDGE, run_programs=sandbox.run_many)
    programs = evaluate(tmp_path, engine, mode="pot", how=how)
    assert [n for n, record in enumerate(programs) if not record["correct"]] == [1, 5, 6]
    assert programs[5]["error"] == "error: NameError: name 'xy' is not defined"
    assert programs[0]["samples"][0]["run"]["stdout"] == "1\n"
    texts = evaluate(tmp_path, engine)
    both = evaluation.either(programs, texts)
    assert [n for n, record in enumerate(both) if not record["correct"]] == [1]
    assert both[5]["mode"] == "cot" and both[0]["mode"] == "pot" and not both[5]["error"]
    with pytest.raises(DataError, match="not of the same problems"):
        evaluation.either(programs, texts[:-1])
    assert evaluation.summary(programs)["errors"] == {"error": 2}


def test_a_text_without_a_program_is_read_and_counted_as_such():
    how = replace(JUDGE, run_programs=lambda sources: [ProgramResult("ok", "7\n") for _ in sources])
    problem = Problem("a", "?", "7", "number")
    records = evaluation.run_and_judge(
        [problem] * 3, "pot", [["The answer is 7."], ["print(7)"], ["print('seven?')"]], how
    )
    assert [record["error"] for record in records] == ["no program", "", ""]
    assert [record["correct"] for record in records] == [True, True, True]


def test_majority_votes_by_value_and_keeps_the_first_of_equals():
    assert evaluation.majority(["3", "4", "4.0", None], "number") == 1
    assert evaluation.majority(["3", "4"], "number") == 0
    assert evaluation.majority([None, None, "9"], "number") == 2
    assert evaluation.majority([None, None], "number") == 0
    assert evaluation.majority(["A", "(B)", "b", "B"], "choice") == 1
    assert evaluation.majority(["1/2", "0.5", "0.50", "2", "2", "3"], "number") == 0
    assert evaluation.majority(["50 cents", "$0.50", "1", "1", "$.5"], "number") == 0


def test_samples_vote(tmp_path):
    def generate(texts, sampling):
        assert sampling.temperature == 0.7
        return [f"The answer is {2 * asked(t)[0] + 1 + (k % 3 == 2)}." for k, t in enumerate(texts)]

    engine = Engine(generate, lambda texts: [1] * len(texts), None)
    records = evaluate(tmp_path, engine, samples=3, sampling=Sampling(8, 0.7))
    assert all(record["correct"] and record["votes"] == 2 and record["samples_correct"] == 2 for record in records)
    assert evaluation.summary(records)["sample_accuracy"] == pytest.approx(2 / 3)


def test_prompts_beyond_the_context_are_refused_or_counted_as_wrong(tmp_path):
    engine, calls = adder()
    long = [*ADDED[:3], Problem("long", "word " * 300 + "What is 1 plus 2?", "3", "number"), *ADDED[3:5]]
    with pytest.raises(DataError, match=r"prompt 3 \(1 in all\) of 6: up to 3\d\d tokens and max_new_tokens=16 exceed"):
        evaluate(tmp_path, engine, problems=long)
    assert not calls
    records = evaluate(tmp_path, engine, problems=long, allow_too_long=True)
    assert [record["correct"] for record in records] == [True, True, True, False, True, True]
    assert records[3]["error"] == "prompt too long" and records[3]["samples"] == []
    assert evaluate(tmp_path / "roomy", engine, problems=long, context_tokens=10_000)[3]["correct"]


def test_regrading_uses_the_stored_texts(tmp_path, sandbox):
    engine, calls = adder(wrong={2})
    how = replace(JUDGE, run_programs=sandbox.run_many)
    for mode in ("cot", "pot"):
        before = evaluate(tmp_path, engine, mode=mode, how=how)
        count = len(calls)
        changed = [replace(ADDED[2], gold="6") if problem.id == "2" else problem for problem in ADDED]
        after = evaluation.regrade(changed, mode, tmp_path / f"set-{mode}.jsonl", how)
        assert not before[2]["correct"] and after[2]["correct"] and len(calls) == count
    with pytest.raises(DataError, match="'99'"):
        evaluation.regrade([Problem("99", "?", "1", "number")], "cot", tmp_path / "set-cot.jsonl", how)


def test_an_engine_that_returns_too_few_texts_is_refused(tmp_path):
    engine = Engine(lambda texts, sampling: ["7"], lambda texts: [1] * len(texts), None)
    with pytest.raises(DataError, match="1 texts for 6 prompts"):
        evaluate(tmp_path, engine)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_match_the_published_form():
    text = prompts.alpaca(prompts.instruction("How many?", (), "cot", 0))
    assert text.endswith("### Instruction:\nHow many?\n\n### Response:")
    assert prompts.instruction("How many?", (), "pot", 0) == "How many? Let's write a program."
    assert prompts.instruction("Which?", ("1", "2 m"), "cot", 0) == "Which?\nAnswer Choices: (A) 1 (B) 2 m"


def test_shots_come_before_the_question_and_fit_its_kind():
    text = prompts.instruction("How many?", (), "cot", 2)
    assert text.count("Question:") == 3 and text.count("Response:") == 2 and text.endswith("Question: How many?")
    assert "(A)" in prompts.instruction("Which?", ("1", "2"), "cot", 1)
    assert "print(" in prompts.instruction("How many?", (), "pot", 1)


@pytest.mark.parametrize("demo", [*prompts.OPEN_DEMOS, *prompts.CHOICE_DEMOS], ids=lambda demo: demo.question[:20])
def test_reasoning_and_program_of_a_demo_agree(demo, sandbox):
    from podium.maths.extraction import extract
    from podium.maths.grading import grade

    result = sandbox.run(demo.program)
    kind = "choice" if demo.options else "number"
    gold = extract(demo.reasoning, kind).answer
    assert result.status == "ok"
    assert grade(result.stdout.strip(), gold, kind, options=demo.options).correct


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1 + 1)", "print(1 + 1)"),
        ("Sure!\n```python\nx = 2\nprint(x)\n```\nDone.", "x = 2\nprint(x)"),
        ("First we compute.\nx = 2\nprint(x)", "x = 2\nprint(x)"),
        ("```\ndef solution():\n    return 4\n```", "def solution():\n    return 4\nprint(solution())"),
        ("a = 3\nans = a * 2", "a = 3\nans = a * 2\nprint(ans)"),
        ("import math\nprint(math.pi)", "import math\nprint(math.pi)"),
        ("The answer is 5.", None),
        ("She has x == 3 apples.", None),
        ("```python\n```", None),
        ("", None),
    ],
)
def test_programs_are_found(text, program):
    assert prompts.program_in(text) == program


# --- data sets -------------------------------------------------------------------------------------------------------


def write_sets(folder: Path) -> Path:
    """One row of every published format, of our own making."""
    folder.mkdir(exist_ok=True)
    lines = {
        "gsm8k.jsonl": [{"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}],
        "AQuA.jsonl": [{"question": "Half of 8?", "options": ["A)4", "B)2", "C)1", "D)8", "E)0"], "correct": "A"}],
    }
    whole = {
        "SVAMP.json": [{"ID": "s-1", "Body": "Tom has 3 pens", "Question": "How many pens?", "Answer": 3.0}],
        "MATH.json": [
            {"question": "Root of 4?", "answer": ["2", 2.0], "level": "Level 3"},
            {"question": "Root of 2?", "answer": ["\\sqrt{2}", 1.41]},
        ],
        "numglue.json": [{"question": "1.5 twice?", "answer": 3.0}, {"question": "Half?", "answer": 0.5}],
        "deepmind.json": [{"question": "x?", "answer": "-3"}],
        "simuleq.json": [{"question": "y?", "answer": 7}],
        "sat.json": [{"question": "Sum? Answer Choices: (A) 1, (B) 2 (C) 3 (D) 4", "answer": "B"}],
        "mathematics.json": [{"question": "1+1?", "choices": ["1", "2", "3", "4"], "answer": 1}],
        "physics.json": [{"question": "F?", "choices": ["ma", "m", "a", "0"], "answer": 0}],
        "chemistry.json": [{"question": "H2O?", "choices": ["salt", "water", "air", "iron"], "answer": "B"}],
        "biology.json": [{"question": "Cell?", "choices": ["a", "b", "c", "d"], "answer": 3}],
    }
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rows in whole.items():
        (folder / name).write_text(json.dumps(rows))
    return folder


def test_every_published_format_is_read(tmp_path):
    folder = write_sets(tmp_path / "sets")
    read = {name: datasets.read_set(name, folder, check_count=False)[0] for name in datasets.SETS}
    golds = {name: [problem.gold for problem in problems] for name, problems in read.items()}
    assert golds == {
        "gsm8k": ["4"], "svamp": ["3"], "math": ["2", "\\sqrt{2}"], "numglue": ["3", "0.5"], "deepmind": ["-3"],
        "simuleq": ["7"], "aqua": ["A"], "sat": ["B"], "mmlu_mathematics": ["B"], "mmlu_physics": ["A"],
        "mmlu_chemistry": ["B"], "mmlu_biology": ["D"],
    }  # fmt: skip
    assert read["svamp"][0].question == "Tom has 3 pens. How many pens?" and read["svamp"][0].id == "s-1"
    assert read["aqua"][0].options == ("4", "2", "1", "8", "0")
    assert read["sat"][0].options == ("1", "2", "3", "4") and read["sat"][0].question == "Sum?"
    assert read["math"][0].difficulty == 3.0
    assert {name: one.count for name, one in datasets.SETS.items()} == {
        "gsm8k": 1319, "svamp": 1000, "math": 5000, "numglue": 1042, "deepmind": 1000, "simuleq": 514, "aqua": 254,
        "sat": 220, "mmlu_mathematics": 974, "mmlu_physics": 253, "mmlu_chemistry": 303, "mmlu_biology": 454,
    }  # fmt: skip


def test_wrong_sizes_and_bad_rows_are_refused_with_their_number(tmp_path):
    folder = write_sets(tmp_path / "sets")
    with pytest.raises(DataError, match=r"gsm8k.jsonl: 1 problems, but gsm8k has 1319.*check_counts=false"):
        datasets.read_set("gsm8k", folder)
    bad = {
        "gsm8k.jsonl": ('{"question": "2?", "answer": "4"}\n', "row 0: the answer has no `####` line"),
        "AQuA.jsonl": ('{"question": "2?", "options": ["A)1"], "correct": "Z"}\n', "answer 'Z' is no option letter"),
        "SVAMP.json": ('[{"Body": "x", "Question": "y"}]', "column Answer is missing"),
        "MATH.json": ('[{"question": "y", "answer": [true]}]', "an answer of type bool"),
        "simuleq.json": ('[{"question": "", "answer": 3}]', "question or answer is empty"),
        "deepmind.json": ("[1, 2]", r"row 0, 1 \(2 in all\) is no object"),
        "sat.json": ('{"question": "x"', "neither JSON nor JSON lines"),
        "numglue.json": ("[]", "holds no rows"),
    }
    for name, (text, message) in bad.items():
        (folder / name).write_text(text)
        known = next(key for key, one in datasets.SETS.items() if name in one.files)
        with pytest.raises(DataError, match=message):
            datasets.read_set(known, folder, check_count=False)


def test_missing_doubled_and_unknown_sets_are_told(tmp_path):
    with pytest.raises(MissingFileError, match="python download_datasets.py maths"):
        datasets.read_set("gsm8k", tmp_path / "absent")
    with pytest.raises(MissingFileError, match="no gsm8k.jsonl or gsm8k_test.jsonl"):
        datasets.read_set("gsm8k", tmp_path)
    folder = write_sets(tmp_path / "sets")
    (folder / "more").mkdir()
    (folder / "more" / "gsm8k_test.jsonl").write_text("{}")
    with pytest.raises(DataError, match="several files"):
        datasets.read_set("gsm8k", folder)
    with pytest.raises(ArgumentError, match="did you mean `svamp`"):
        datasets.read_set("swamp", folder)


def test_other_sets_come_in_by_columns(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"q": "2?", "a": 1, "o": ["x", "y"], "d": 2, "k": "n1"}\n')
    columns = Columns("mine.jsonl", "choice", "q", "a", "o", "d", "k")
    problems, _ = datasets.read_set("mine", tmp_path, columns=columns)
    assert problems == [Problem("n1", "2?", "B", "choice", ("x", "y"), 2.0)]
    with pytest.raises(DataError, match="column z is missing"):
        datasets.read_set("mine", tmp_path, columns=replace(columns, question="z"))
    (tmp_path / "mine.jsonl").write_text('{"q": "2?", "a": "1", "k": "n"}\n' * 2)
    with pytest.raises(DataError, match=r"id 'n' \(1 in all\) is not unique"):
        datasets.read_set("mine", tmp_path, columns=Columns("mine.jsonl", "number", "q", "a", id="k"))


# --- the script ------------------------------------------------------------------------------------------------------


def settings_for(tmp_path: Path, *overrides: str) -> EvalMath:
    lines = [
        {"question": problem.question, "answer": problem.gold, "difficulty": problem.difficulty} for problem in ADDED
    ]
    (tmp_path / "added.json").write_text(json.dumps(lines))
    given = ["model_name_or_path=some/adder", f"eval_datasets_dir={tmp_path}", f"eval_results_dir={tmp_path}/out"]
    given += ["eval_dataset=added", "+other_sets.added={file: added.json, kind: number, difficulty: difficulty}"]
    return config.load(
        EvalMath, "eval_math", "base", [*given, "problems_per_batch=8", "context_tokens=2000", *overrides]
    )


def test_both_modes_end_in_metrics_with_intervals_and_the_fallback(tmp_path, capsys):
    engine, _ = adder(wrong={1}, broken={2, 3})
    metrics = run.eval_math(settings_for(tmp_path, "stem_flan_type=both"), lambda *_: engine)
    folder = tmp_path / "out" / "adder"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    accuracy = {mode: one["accuracy"] for mode, one in metrics["sets"]["added"].items()}
    assert accuracy == {"cot": 0.95, "pot": 0.85, "pot_or_cot": 0.95}
    assert metrics["macro_average"] == accuracy
    assert (metrics["sets"]["added"]["cot"]["low"], metrics["sets"]["added"]["cot"]["high"]) == statistics.wilson(
        19, 20
    )
    printed = capsys.readouterr().out
    assert "sandbox: " in printed and "95.00%" in printed and (folder / "manifest.json").is_file()


def test_mixing_settings_in_one_folder_is_refused(tmp_path):
    engine, calls = adder()
    run.eval_math(settings_for(tmp_path), lambda *_: engine)
    count = len(calls)
    with pytest.raises(DataError, match="max_new_tokens: 512 -> 100"):
        run.eval_math(settings_for(tmp_path, "max_new_tokens=100"), lambda *_: engine)
    run.eval_math(settings_for(tmp_path), lambda *_: engine)
    assert len(calls) == count
    lines = json.loads((tmp_path / "added.json").read_text())
    changed = settings_for(tmp_path)
    (tmp_path / "added.json").write_text(json.dumps([{**row, "answer": "0"} for row in lines]))
    with pytest.raises(DataError, match="data: "):
        run.eval_math(changed, lambda *_: engine)


def test_regrading_needs_no_model(tmp_path):
    engine, _ = adder()
    run.eval_math(settings_for(tmp_path), lambda *_: engine)

    def refuse(*_):
        raise AssertionError("the model was loaded")

    metrics = run.eval_math(settings_for(tmp_path, "regrade=true"), refuse)
    assert metrics["sets"]["added"]["cot"]["accuracy"] == 1.0


def test_a_signal_ends_after_the_batch_and_the_same_command_continues(tmp_path):
    engine, calls = adder()

    def interrupted(texts, sampling):
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return engine.generate(texts, sampling)

    cfg = settings_for(tmp_path)
    with pytest.raises(InterruptedRun, match="after 16 problems; the same command continues") as stopped:
        run.eval_math(cfg, lambda *_: replace(engine, generate=interrupted))
    assert stopped.value.exit_code == 75
    metrics = run.eval_math(cfg, lambda *_: engine)
    assert metrics["sets"]["added"]["cot"]["problems"] == 20 and len(calls) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_published_flags_are_overrides():
    published = ["--model_name_or_path", "m/n", "--stem_flan_type", "", "--eval_dataset", "gsm8k", "--gpu_ids", "0,1"]
    published += [
        "--eval_results_dir",
        "out dir",
        "--eval_datasets_dir=it's",
        "shots=2",
        "--config-name",
        "base",
        "--cfg",
        "job",
    ]
    overrides = flags.to_overrides(published, EvalMath)
    assert overrides[-4:] == ["--config-name", "base", "--cfg", "job"]
    cfg = config.load(EvalMath, "eval_math", "base", overrides[:-4])
    assert (cfg.model_name_or_path, cfg.stem_flan_type, cfg.gpu_ids, cfg.shots) == ("m/n", "", "0,1", 2)
    assert (cfg.eval_results_dir, cfg.eval_datasets_dir) == ("out dir", "it's")
    pot = flags.to_overrides(
        ["--model_name_or_path=m", "--stem_flan_type", "pot_prompt", "--temperature", "0.5"], EvalMath
    )
    assert config.load(EvalMath, "eval_math", "base", pot).temperature == 0.5
    with pytest.raises(ArgumentError, match="did you mean `eval_dataset`"):
        flags.to_overrides(["--eval_datset", "gsm8k"], EvalMath)
    with pytest.raises(ArgumentError, match="needs a value"):
        flags.to_overrides(["--eval_dataset", "--gpu_ids", "0"], EvalMath)


def test_set_names():
    cfg = config.load(EvalMath, "eval_math", "base", ["model_name_or_path=m", "eval_dataset=all"])
    assert run.set_names(cfg) == list(datasets.SETS)
    assert run.set_names(replace(cfg, eval_dataset="gsm8k, SVAMP,gsm8k")) == ["gsm8k", "svamp"]
    with pytest.raises(ArgumentError, match="did you mean `gsm8k`"):
        run.set_names(replace(cfg, eval_dataset="gsm8"))


@pytest.mark.parametrize(
    ("stage", "settings", "given"),
    [("eval_math", EvalMath, ["model_name_or_path=m"]), ("analyze_math", AnalyzeMath, ["runs.a=b"])],
)
def test_configs_state_every_key_and_are_read(stage, settings, given):
    for path in (ROOT / "conf" / stage).glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) == set(config.field_types(settings))
        config.load(settings, stage, path.stem, given)
    source = "".join(path.read_text() for path in (ROOT / "code" / "podium" / "maths").glob("*.py"))
    source += (ROOT / "code" / "analyze_math.py").read_text()
    for key in config.field_types(settings):
        assert f"cfg.{key}" in source, f"{key} is read nowhere"


def test_bad_settings_are_refused():
    for override, message in [
        ("samples=3", "raise temperature"),
        ("stem_flan_type=program", "stem_flan_type"),
        ("sandbox.memory_megabytes=1", "greater than or equal to 64"),
        ("tolerance={relative: 0.5, rounding_decimals: 2}", "less than or equal to 0.01"),
        ("top_p=0", "top_p"),
    ]:
        with pytest.raises(DataError, match=message):
            config.load(EvalMath, "eval_math", "base", ["model_name_or_path=m", override])


def test_the_script_answers_a_mistake_in_one_line():
    misspelt = running.process("eval_math", "--eval_datset", "gsm8k")
    assert misspelt.returncode == 2 and misspelt.stderr.count("\n") == 1 and "`eval_dataset`" in misspelt.stderr


def test_what_is_missing_is_told_before_the_model_is_loaded(tmp_path):
    def refuse(*_):
        raise AssertionError("the model was loaded")

    cfg = config.load(EvalMath, "eval_math", "base", ["model_name_or_path=m", "eval_datasets_dir=/nowhere"])
    with pytest.raises(MissingFileError, match="eval_datasets_dir /nowhere is no folder"):
        run.eval_math(cfg, refuse)
    folder = write_sets(tmp_path / "sets")
    cfg = replace(cfg, eval_datasets_dir=str(folder), check_counts=False, dry_run=True, stem_flan_type="both")
    assert run.eval_math(cfg, refuse) == {}


# --- statistics ------------------------------------------------------------------------------------------------------


def test_wilson_solves_its_equation_and_covers():
    for correct, total in [(0, 10), (10, 10), (3, 7), (500, 1319), (1, 1)]:
        for bound in statistics.wilson(correct, total):
            if 0 < bound < 1:
                score = abs(correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
                assert score == pytest.approx(statistics.Z95)
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    draw = np.random.default_rng(0)
    hits = [low <= 0.3 <= high for low, high in (statistics.wilson(int(n), 60) for n in draw.binomial(60, 0.3, 4000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_the_paired_test_equals_scipy_and_holds_its_level():
    from scipy.stats import binomtest

    draw = np.random.default_rng(1)
    rejected = 0
    for _ in range(300):
        first, second = draw.random(80) < 0.6, draw.random(80) < 0.6
        test = statistics.paired(list(first), list(second))
        discordant = test.only_first + test.only_second
        assert test.p == pytest.approx(binomtest(test.only_second, discordant).pvalue if discordant else 1.0)
        assert test.difference == pytest.approx(second.mean() - first.mean())
        assert test.low < test.difference < test.high
        rejected += test.p < 0.05
    assert rejected < 24
    with pytest.raises(ValueError):
        statistics.paired([True], [True, False])


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == [] and statistics.holm([0.9, 0.8]) == [1.0, 1.0]


# --- analysis --------------------------------------------------------------------------------------------------------


def make_run(tmp_path: Path, name: str, wrong: set[int], sandbox: Sandbox | None = None) -> str:
    folder = tmp_path / name
    engine, _ = adder(wrong=wrong, broken={0})
    evaluate(folder, engine)
    if sandbox:
        evaluate(folder, engine, mode="pot", how=replace(JUDGE, run_programs=sandbox.run_many))
    return str(folder)


def test_the_analysis_draws_tables_figures_and_one_page(tmp_path, sandbox):
    runs = {
        "plain": make_run(tmp_path, "plain", set(range(12)), sandbox),
        "better": make_run(tmp_path, "better", {1}, sandbox),
    }
    result = report.write_report(runs, tmp_path / "report", "plain", [], 0.05)
    page = (tmp_path / "report" / "index.html").read_text()
    for image in ("accuracy", "difficulty", "length", "errors"):
        assert (tmp_path / "report" / f"{image}.png").read_bytes().startswith(b"\x89PNG")
        assert f'src="{image}.png"' in page
    assert "http" not in page
    verdicts = {(row["mode"], row["run"]): row for row in result["comparisons"]}
    assert verdicts["cot", "better"]["verdict"] == "better" and verdicts["cot", "better"]["difference"] == 0.55
    assert verdicts["cot", "better"]["only_run"] == 11 and verdicts["cot", "better"]["only_baseline"] == 0
    assert {row["difficulty"] for row in result["difficulty"]} == {1.0, 2.0, 3.0, 4.0, 5.0}
    (level,) = [r for r in result["difficulty"] if (r["run"], r["mode"], r["difficulty"]) == ("better", "cot", 2.0)]
    assert (level["problems"], level["accuracy"]) == (4, 0.75)
    assert {row["NameError"] for row in result["program_errors"]} == {1}


def test_a_difference_inside_the_spread_of_repeats_is_not_called_one(tmp_path):
    runs = {"plain": make_run(tmp_path, "plain", set(range(12))), "better": make_run(tmp_path, "better", set())}
    runs |= {"seed1": make_run(tmp_path, "seed1", set(range(15))), "seed2": make_run(tmp_path, "seed2", {1})}
    records = report.read_runs(runs)
    verdicts = {row.run: row for row in report.compare(records, "plain", ["seed1", "seed2"], 0.05)}
    assert verdicts["better"].verdict == "inside the spread of repeats"
    assert verdicts["better"].spread == pytest.approx(0.7)
    assert verdicts["seed1"].verdict == "no difference shown"
    assert {row.run: row.verdict for row in report.compare(records, "plain", [], 0.05)}["better"] == "better"


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    plain = make_run(tmp_path, "plain", set())
    with pytest.raises(MissingFileError, match="run other"):
        report.read_runs({"plain": plain, "other": str(tmp_path / "absent")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="run empty"):
        report.read_runs({"empty": str(tmp_path / "empty")})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other-cot.jsonl").write_bytes((Path(plain) / "set-cot.jsonl").read_bytes())
    with pytest.raises(DataError, match="shares a set and method"):
        report.write_report({"plain": plain, "b": str(tmp_path / "elsewhere")}, tmp_path / "r", None, [], 0.05)
    with pytest.raises(DataError, match="run `x` is not in runs"):
        config.load(AnalyzeMath, "analyze_math", "base", [f"runs.plain={plain}", "baseline=x"])


def test_the_analysis_script_runs(tmp_path, capsys):
    runs = [f"runs.{name}={make_run(tmp_path, name, wrong)}" for name, wrong in (("plain", {1}), ("other", {2}))]
    running.run("analyze_math", *runs, f"output_dir={tmp_path}/a")
    assert (tmp_path / "a" / "index.html").is_file() and (tmp_path / "a" / "manifest.json").is_file()
    assert "cot: other - plain = +0.00%" in capsys.readouterr().out
