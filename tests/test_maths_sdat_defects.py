"""The defects that SYSTEMS.md, section 4.2, lists for the published evaluation, each as a regression test.

Number and severity are those of the table. Defects of training (1, 10–13) belong to the trainer's tests.
"""

import ast
import re
import time
from pathlib import Path

import pytest

from podium import config
from podium.errors import DataError
from podium.maths import evaluation, prompts, run
from podium.maths.datasets import Problem
from podium.maths.engine import Engine, Sampling
from podium.maths.evaluation import Judge
from podium.maths.extraction import extract, extract_program_output
from podium.maths.grading import Tolerance, grade
from podium.maths.sandbox import Limits, Sandbox
from podium.maths.settings import EvalMath

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "code" / "podium" / "maths").glob("*.py"))


def right(answer: str, gold: str, kind: str = "number", **more) -> bool:
    return grade(answer, gold, kind, **more).correct


def canned(texts: list[str]) -> Engine:
    """A model that says what it is told to, prompt by prompt."""
    return Engine(lambda asked, sampling: texts[: len(asked)], lambda asked: [1] * len(asked), None)


def evaluate(tmp_path: Path, engine: Engine, problems: list[Problem], mode: str = "cot", **changes) -> list[dict]:
    settings = {"form": "alpaca", "shots": 0, "samples": 1, "sampling": Sampling(8), "context_tokens": None}
    settings |= {"allow_too_long": False, "problems_per_batch": 10} | changes
    how = settings.pop("how", Judge(Tolerance(), None, None))
    return evaluation.evaluate(problems, mode, tmp_path / f"x-{mode}.jsonl", engine, how, **settings)


@pytest.mark.parametrize("folder", [".", "./out", "results.v1"])
def test_defect_2_decimal_points_survive_whatever_the_folders_are_called(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    problems = [Problem("a", "?", "3.75", "number"), Problem("b", "?", "0.5", "number")]
    records = evaluate(Path(folder), canned(["The answer is 3.75.", "So it is .5"]), problems)
    assert [record["answer"] for record in records] == ["3.75", ".5"]
    assert [record["gold"] for record in records] == ["3.75", "0.5"]
    assert all(record["correct"] for record in records)
    stored = evaluation.read_records(Path(folder) / "x-cot.jsonl")
    assert stored[0]["samples"][0]["output"] == "The answer is 3.75."


def test_defect_3_the_time_limit_given_is_the_time_limit_kept():
    with Sandbox(1, Limits(wall_seconds=3.0, cpu_seconds=3)) as box:
        assert box.run("import time; time.sleep(1.8); print(1)").stdout == "1\n"
        assert box.run("import time; time.sleep(9)").status == "timeout"
    cfg = config.load(EvalMath, "eval_math", "base", ["model_name_or_path=m"])
    assert cfg.sandbox.wall_seconds == 5.0


def test_defects_4_and_9_the_evaluator_never_evaluates_model_text():
    for path in SOURCES:
        if path.name == "sandbox_child.py":
            continue  # the one place where programs run: contained, see test_maths_sandbox.py
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{path.name}:{node.lineno}"


def test_defect_4_a_program_sees_nothing_of_the_evaluator(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "sk-canary")
    with Sandbox(1) as box:
        seen = box.run("import os, sys\nprint(sorted(os.environ), sorted(sys.modules), globals().keys())").stdout
        assert "SECRET_KEY" not in seen and "evaluation" not in seen and "grading" not in seen
        assert box.run("print(open('/etc/hostname').read())").status == "error"


def test_defect_5_programs_run_side_by_side_and_runaways_do_not_exhaust_the_pool():
    with Sandbox(3, Limits(wall_seconds=1.0, cpu_seconds=1)) as box:
        started = time.monotonic()
        results = box.run_many(["import time; time.sleep(0.6); print(1)"] * 3)
        assert [result.status for result in results] == ["ok"] * 3
        assert time.monotonic() - started < sum(result.seconds for result in results)
        results = box.run_many(["while True: pass"] * 7 + ["print(7)"] * 3)
        assert {result.status for result in results[:7]} <= {"timeout", "cpu"}
        assert [result.stdout for result in results[7:]] == ["7\n"] * 3


def test_defect_5_a_program_that_prints_the_word_timeout_did_not_time_out():
    with Sandbox(1) as box:
        result = box.run("print('TimeoutError')\nprint(5)")
    assert result.status == "ok" and extract_program_output(result.stdout, "number").answer == "5"


def test_defect_6_sampling_has_its_settings_at_every_temperature(tmp_path):
    seen = []

    def generate(asked: list[str], sampling: Sampling) -> list[str]:
        seen.append(sampling)
        return ["The answer is 1."] * len(asked)

    engine = Engine(generate, lambda asked: [1] * len(asked), None)
    for number, temperature in enumerate((0.0, 0.3, 1.0)):
        (tmp_path / str(number)).mkdir()
        samples = 1 if temperature == 0 else 4
        records = evaluate(tmp_path / str(number), engine, [Problem("a", "?", "1", "number")], samples=samples, sampling=Sampling(8, temperature, 0.9))  # fmt: skip
        assert len(records[0]["samples"]) == samples
        assert (seen[-1].temperature, seen[-1].top_p) == (temperature, 0.9)


def test_defect_6_the_context_is_checked(tmp_path):
    engine = Engine(lambda asked, sampling: ["1"] * len(asked), lambda asked: [1000] * len(asked), 1024)
    with pytest.raises(DataError, match="exceed the context of 1024"):
        evaluate(tmp_path, engine, [Problem("a", "?", "1", "number")], sampling=Sampling(100))


def test_defect_7_an_answer_that_is_no_letter_is_matched_by_content_and_never_guessed(tmp_path):
    options = ("10 km", "20 km", "30 km", "40 km")
    problems = [Problem(name, "?", "A", "choice", options) for name in "abcd"]
    records = evaluate(
        tmp_path, canned(["It is 10 km", "It is 30 km", "I cannot tell.", "The answer is 77 km."]), problems
    )
    assert [record["correct"] for record in records] == [True, False, False, False]
    assert [bool(record["error"]) for record in records] == [False, False, True, False]
    assert all("matching_outputs" not in record for record in records)


def test_defect_7_a_right_answer_carries_no_error_into_the_fallback(tmp_path):
    with Sandbox(1) as box:
        how = Judge(Tolerance(), None, box.run_many)
        problem = [Problem("a", "?", "B", "choice", ("10", "20", "30"))]
        (program,) = evaluate(tmp_path, canned(["print(20.0)"]), problem, "pot", how=how)
    assert program["correct"] and program["error"] == ""
    (text,) = evaluate(tmp_path, canned(["The answer is (C)."]), problem)
    assert evaluation.either([program], [text]) == [program]


def test_defect_8_stop_words_end_a_text_only_at_the_start_of_a_line(tmp_path):
    kept = (
        "The Question asks for x (Question: why?). Our Response is simple; each Instruction: add 1. The answer is 12."
    )
    assert prompts.cut_at_stops(kept) == kept
    assert prompts.cut_at_stops("The answer is 3.\nQuestion: what is 4?\nThe answer is 4.") == "The answer is 3."
    assert prompts.cut_at_stops("The answer is 3.\n\n### Instruction:\nNext") == "The answer is 3."
    seen = []

    def generate(asked: list[str], sampling: Sampling) -> list[str]:
        seen.extend(sampling.stop)
        return [kept]

    (record,) = evaluate(tmp_path, Engine(generate, lambda asked: [1], None), [Problem("a", "?", "12", "number")])
    assert (
        record["correct"]
        and seen
        and all(stop.startswith("\n") and stop.endswith((":", "instruction")) for stop in seen)
    )


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("3.4", "3", False),
        ("2.6", "3", False),
        ("3.0", "3", True),
        ("104", "100", False),
        ("10.4", "10.0", False),
        ("0.52", "0.5", False),
        ("0.50", ".5", True),
        (".5", "1/2", True),
        ("3/6", "0.5", True),
        ("1,000", "1000", True),
        ("3/", "3", False),
        ("/3", "3", False),
    ],
)
def test_defect_9_numbers_are_compared_exactly(answer, gold, expected):
    assert right(answer, gold) == expected
    assert right(answer, gold, "formula") == expected


def test_defect_9_an_isolated_A_is_no_option():
    found = extract("A train leaves. A man waits for it, and A total of 12 km remains, so 12.", "choice")
    assert found.answer == "12"
    assert not right("A total of 12", "A", "choice", options=("10", "11", "13"))


def test_defect_9_model_text_cannot_run_code_while_being_graded(tmp_path):
    target = tmp_path / "evil"
    for text in (f"__import__('pathlib').Path('{target}').touch()", f"open('{target}','w')"):
        for kind in ("number", "formula", "choice"):
            grade(text, "1", kind, options=("1", "2")) if kind != "choice" else grade(
                text, "A", kind, options=("1", "2")
            )
            extract(f"The answer is {text}", kind)
            extract_program_output(text, kind)
    assert not target.exists()


def test_defect_14_no_key_and_no_private_path_is_in_the_sources():
    for path in [*SOURCES, ROOT / "code" / "eval_math.py", ROOT / "code" / "analyze_math.py"]:
        text = path.read_text()
        assert not re.search(r"sk-[A-Za-z0-9]{16,}|AIza[\w-]{20,}|api[_-]?key\s*=\s*['\"]", text, re.IGNORECASE)
        assert not re.search(r"['\"]/(?:home|data|mnt|work|ssd)/", text), path


def test_an_existing_result_is_continued_and_not_a_reason_to_exit(tmp_path):
    """The published script leaves when its output file exists, however little is in it."""
    problems = [Problem(str(n), "?", "1", "number") for n in range(4)]
    evaluate(tmp_path, canned(["The answer is 1."] * 4), problems[:2], problems_per_batch=2)
    assert len(evaluate(tmp_path, canned(["The answer is 1."] * 4), problems, problems_per_batch=2)) == 4


def test_the_published_modes_are_the_flags_of_the_published_script():
    assert run.MODE_OF_FLAG == {"": ("cot",), "pot_prompt": ("pot",), "both": ("cot", "pot")}
