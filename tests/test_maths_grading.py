import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podium.maths.equivalence import Comparer
from podium.maths.extraction import extract, extract_program_output, last_boxed
from podium.maths.grading import Tolerance, Verdict, grade
from podium.maths.quantities import parse_quantity, tidy

DATA = Path(__file__).parent / "data"
GRADING = [json.loads(line) for line in (DATA / "maths_grading_golden.jsonl").read_text().splitlines()]
EXTRACTION = [json.loads(line) for line in (DATA / "maths_extraction_golden.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def comparer():
    with Comparer() as running:
        yield running


def test_the_golden_sets_are_large_enough():
    cases = [(row["kind"], row["gold"], answer) for row in GRADING for answer in row["right"] + row["wrong"]]
    assert len(cases) >= 500
    assert {row["kind"] for row in GRADING} == {"number", "formula", "choice"}
    assert len(EXTRACTION) >= 140


@pytest.mark.parametrize("row", GRADING, ids=lambda row: f"{row['kind']} {row['gold']}")
def test_golden_grading(row, comparer):
    wrong = []
    for expected in ("right", "wrong"):
        for answer in row[expected]:
            verdict = grade(
                answer, row["gold"], row["kind"], options=row.get("options", ()), equivalent=comparer.equivalent
            )
            assert verdict.method and verdict.reason
            if verdict.correct != (expected == "right"):
                wrong.append(f"{answer!r} should be {expected}: {verdict}")
    assert not wrong


def test_golden_extraction():
    wrong = []
    for row in EXTRACTION:
        found = extract(row["text"], row["kind"], row["letters"])
        if found.answer != row["answer"]:
            wrong.append(f"{row['text']!r}: {found}, expected {row['answer']!r}")
    assert not wrong


# --- numbers ---------------------------------------------------------------------------------------------------------

integers = st.integers(-(10**12), 10**12)
decimals = st.builds(lambda n, d: (n, d), st.integers(-(10**9), 10**9), st.integers(1, 6))


def written(number: int, places: int) -> str:
    digits = str(abs(number)).rjust(places + 1, "0")
    return ("-" if number < 0 else "") + digits[:-places] + "." + digits[-places:]


@settings(max_examples=300, deadline=None)
@given(integers)
def test_an_integer_is_read_back_from_every_notation(number):
    notations = [
        str(number),
        f"{number:,}",
        f"${number}$",
        f"**{number}**",
        f"{number}.",
        f"{number}.0",
        f"{number} apples",
    ]
    for notation in notations:
        quantity = parse_quantity(tidy(notation))
        assert quantity is not None and quantity.value == number, notation
        assert grade(notation, str(number), "number").correct


@settings(max_examples=300, deadline=None)
@given(decimals)
def test_a_decimal_is_read_exactly(case):
    number, places = case
    quantity = parse_quantity(written(number, places))
    assert quantity is not None
    assert quantity.value == Fraction(number, 10**places) and quantity.decimals == places


@settings(max_examples=300, deadline=None)
@given(integers, integers)
def test_two_integers_are_equal_only_if_they_are(first, second):
    assert grade(str(first), str(second), "number").correct == (first == second)


@settings(max_examples=300, deadline=None)
@given(st.integers(-1000, 1000), st.integers(1, 999))
def test_no_decimal_is_accepted_for_an_integer(gold, thousandths):
    assert not grade(written(abs(gold) * 1000 + thousandths, 3), str(abs(gold)), "number").correct


@settings(max_examples=200, deadline=None)
@given(decimals, st.integers(1, 9))
def test_a_changed_last_digit_is_wrong(case, change):
    number, places = case
    last = abs(number) % 10
    other = abs(number) - last + (last + change) % 10
    assert not grade(written(other, places), written(abs(number), places), "number").correct


@settings(max_examples=200, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_equal_their_multiples_and_their_floats(top, bottom):
    gold = f"\\frac{{{top}}}{{{bottom}}}" if top >= 0 else f"-\\frac{{{-top}}}{{{bottom}}}"
    for answer in (f"{3 * top}/{3 * bottom}", repr(top / bottom) if top % bottom else str(top // bottom)):
        assert grade(answer, gold, "number").correct, answer
    assert not grade(f"{top + 1}/{bottom}", gold, "number").correct


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["number", "formula", "choice"]))
def test_no_text_breaks_extraction_or_grading(text, kind):
    found = extract(text, kind)
    assert found.answer is None or isinstance(found.answer, str)
    assert isinstance(grade(text, "B" if kind == "choice" else "7", kind, options=("1", "2", "3")), Verdict)


def test_the_tolerance_is_what_was_asked_for():
    loose, strict = Tolerance(relative=1e-3), Tolerance(relative=0.0, rounding_decimals=None)
    assert grade("0.3333", "1/3", "number", tolerance=loose).correct
    assert not grade("0.3333", "1/3", "number").correct
    assert not grade("0.33333333", "1/3", "number", tolerance=strict).correct
    assert grade("33.333", "33.33", "number").correct
    assert not grade("33.333", "33.33", "number", tolerance=strict).correct
    assert grade("33.333", "33.3", "number", tolerance=Tolerance(rounding_decimals=1)).correct
    assert not grade("33.333", "33.3", "number").correct
    assert not grade("33.333", "33", "number", tolerance=Tolerance(relative=0.5, rounding_decimals=1)).correct


def test_a_number_of_absurd_size_is_no_attack():
    for text in ("1e999999999", "9" * 5000, "10^{10^{10}}", "1" + "0" * 100_000, "1/" + "0" * 300):
        assert not grade(text, "7", "number").correct


def test_every_verdict_says_how_and_why():
    assert grade(None, "7", "number") == Verdict(False, "none", "no answer was found")
    assert grade("18 cents", "18 dollars", "number") != grade("18 dollars", "18 dollars", "number")
    assert grade("5 kg", "5 km", "number").method == "unit"
    assert grade("600", "C", "choice", options=("1", "6000", "600")).reason == "the content of option C"
    assert "several" in grade("4/2", "A", "choice", options=("2", "2.0", "3")).reason


# --- formulas: the killable process ----------------------------------------------------------------------------------


def test_a_comparison_that_never_ends_is_killed_and_the_next_one_answers():
    with Comparer(timeout_seconds=1.0) as comparer:
        assert comparer.equivalent("x+1", "1+x") == (True, "equivalent formulas")
        same, reason = comparer.equivalent("9^{9^{9^9}}", "2")
        assert not same and "no verdict within 1 s" in reason
        assert comparer.killed == 1
        comparer.timeout_seconds = 10.0
        assert comparer.equivalent("(x+1)^2", "x^2+2x+1")[0]


def test_model_text_is_not_evaluated_as_python(tmp_path, comparer):
    target = tmp_path / "written"
    for text in (
        f"__import__('os').system('touch {target}')",
        f"open('{target}','w')",
        f'exec(\'open("{target}","w")\')',
    ):
        assert not grade(text, "7", "formula", equivalent=comparer.equivalent).correct
    assert not target.exists()
    assert comparer.contained


def test_formulas_count_as_text_without_a_comparison():
    assert not grade("1+x", "x+1", "formula").correct
    assert grade("1 + x", "1+x", "formula").correct


# --- programs' output and boxes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "kind", "answer"),
    [
        ("42\n", "number", "42"),
        ("first 3\n42.0\n\n", "number", "42.0"),
        ("The answer is 42", "number", "42"),
        ("x = 42", "number", "42"),
        ("0.30000000000000004", "number", "0.30000000000000004"),
        ("[1, 2]", "formula", "[1, 2]"),
        ("sqrt(2)/2", "formula", "sqrt(2)/2"),
        ("B", "choice", "B"),
        ("speed = 60.0", "choice", "60.0"),
        ("", "number", None),
        ("  \n \n", "number", None),
    ],
)
def test_what_a_program_printed(output, kind, answer):
    assert extract_program_output(output, kind).answer == answer


def test_boxes_are_balanced():
    assert last_boxed("\\boxed{a} and \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{a} and \\boxed{\\frac{1}{2") == "a"
    assert last_boxed("no box") is None
