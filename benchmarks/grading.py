"""How right and how fast answers are extracted and graded, on gold solutions of gsm8k, SVAMP and AQuA.

    python benchmarks/grading.py --data ../shared/data/maths [--out outputs/bench_grading.json]

Right: every gold solution, its markers removed and its answer embedded in sentence forms written before and without the
extractor, must be judged right, and every corruption (digit, sign, size, unit, option) wrong. Every miss is printed.
Fast: 10,000 answers graded (1 in 20 a formula that goes to math-verify), solutions extracted, trivial programs run.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from podium import rng
from podium.contracts import write_json
from podium.maths.equivalence import Comparer
from podium.maths.extraction import extract
from podium.maths.grading import Equivalent, grade
from podium.maths.sandbox import Sandbox

NUMBER_FORMS = {
    "final answer": "{solution}\nSo the final answer is {answer}.",
    "labelled": "{solution}\n\nAnswer: {answer}",
    "boxed": "{solution} Therefore we obtain $\\boxed{{{answer}}}$.",
    "bold, with a remark": "{solution}\nThe answer to the question is therefore **{answer}**. Let me know if anything is unclear!",
    "reversed": "{solution}\nIt turns out that {answer} is the answer we were looking for.",
    "plain ending": "{solution}\nHence we conclude that the quantity asked for equals {answer}",
}
CHOICE_FORMS = {
    "parenthesised": "{solution}\nThe answer is ({letter}).",
    "with content": "{solution}\nSo the correct answer is {letter}) {content}.",
    "labelled": "{solution}\n\nAnswer: {letter}",
    "boxed": "{solution} Therefore $\\boxed{{\\text{{{letter}}}}}$",
    "option": "{solution}\nThus the correct option is {letter}.",
    "content only": "{solution}\nThe answer is {content}",
}


class Item(NamedTuple):
    """A problem with a gold solution."""

    id: str
    kind: str
    solution: str
    gold: str
    options: tuple[str, ...] = ()


def read_items(folder: Path) -> list[Item]:
    """The gold solutions in a folder, without `####`, calculator marks and closing "answer" lines."""
    items = []
    for name in ("gsm8k_train_2000.jsonl", "gsm8k_test.jsonl"):
        for number, line in enumerate((folder / name).read_text().splitlines()):
            solution, gold = json.loads(line)["answer"].rsplit("####", 1)
            items.append(Item(f"{name}:{number}", "number", re.sub(r"<<.*?>>", "", solution).strip(), gold.strip()))
    for row in json.loads((folder / "SVAMP.json").read_text()):
        items.append(
            Item(
                f"SVAMP:{row['ID']}",
                "number",
                f"We compute {row['Equation']}.",
                f"{row['Answer']:g}" if abs(row["Answer"]) < 1e5 else str(row["Answer"]),
            )
        )
    for number, line in enumerate((folder / "aqua_dev.jsonl").read_text().splitlines()):
        row = json.loads(line)
        options = tuple(re.sub(r"^\s*[A-E]\s*\)\s*", "", option) for option in row["options"])
        solution = re.sub(r"(?i)[^\n.]*\b(?:answer|option|choice|ans)\b[^\n]*", "", row["rationale"]).strip()
        items.append(Item(f"aqua_dev:{number}", "choice", solution, row["correct"], options))
    return items


def right_texts(item: Item) -> Iterator[tuple[str, str]]:
    """Form name and text, each of which states the gold answer."""
    if item.kind == "number":
        for name, form in NUMBER_FORMS.items():
            yield name, form.format(solution=item.solution, answer=item.gold)
        return
    content = item.options["ABCDE".index(item.gold)]
    doubled = sum(option.strip() == content.strip() for option in item.options) > 1
    for name, form in CHOICE_FORMS.items():
        if not (name == "content only" and doubled):
            yield name, form.format(solution=item.solution, letter=item.gold, content=content)


def corrupted_numbers(gold: str, key: str) -> Iterator[tuple[str, str]]:
    """Corruption name and an answer with another value than `gold`."""
    draw = rng.generator(0, "corruption", key)
    places = [place for place, character in enumerate(gold) if character.isdigit()]
    place = places[int(draw.integers(len(places)))]
    digit = str((int(gold[place]) + 1 + int(draw.integers(9))) % 10)
    yield "digit", gold[:place] + digit + gold[place + 1 :]
    if float(gold.replace(",", "")) != 0:
        yield "sign", gold[1:] if gold.startswith("-") else f"-{gold}"
        yield "size", f"{gold}0" if "." not in gold else gold.replace(".", "")
    yield "decimals", f"{gold}.4" if "." not in gold else f"{gold}4"
    yield "off by one", str(int(float(gold.replace(",", ""))) + 1)


UNIT_CHANGES = {
    "$": "cents",
    "%": "kg",
    "km": "m",
    "kmph": "km",
    "cm": "mm",
    "m": "km",
    "kg": "g",
    "litres": "ml",
    "Rs": "dollars",
}


def wrong_texts(item: Item) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Corruption name, text, the gold to judge it by, options."""
    draw = rng.generator(0, "form", item.id)
    if item.kind == "number":
        forms = list(NUMBER_FORMS.values())
        for name, answer in corrupted_numbers(item.gold, item.id):
            form = forms[int(draw.integers(len(forms)))]
            yield name, form.format(solution=item.solution, answer=answer), item.gold, ()
        for unit, other in (("dollars", "cents"), ("minutes", "hours"), ("kg", "miles")):
            if item.gold.strip("-0.,"):
                form = forms[int(draw.integers(len(forms)))]
                yield (
                    "unit",
                    form.format(solution=item.solution, answer=f"{item.gold} {other}"),
                    f"{item.gold} {unit}",
                    (),
                )
        return
    forms = list(CHOICE_FORMS.values())
    right = item.options["ABCDE".index(item.gold)]
    for letter, content in zip("ABCDE", item.options, strict=True):
        if letter != item.gold:
            form = forms[int(draw.integers(len(forms)))]
            if content.strip() != right.strip() or "{letter}" in form:
                text = form.format(solution=item.solution, letter=letter, content=content)
                yield "option", text, item.gold, item.options
    for unit, other in UNIT_CHANGES.items():
        if re.search(rf"(?<![A-Za-z]){re.escape(unit)}(?![A-Za-z])", right) and re.search(r"\d", right):
            number = re.search(r"\d[\d,.]*", right)
            answer = f"{number.group().rstrip('.')} {other}" if number else ""
            yield "unit", f"{item.solution}\nThe answer is {answer}", item.gold, item.options


def check(items: list[Item], equivalent: Equivalent | None) -> dict[str, object]:
    """Judge everything; print every miss; return the shares."""
    shares: dict[str, list[int]] = {}
    misses = []
    for item in items:
        judged = [("right", name, text, item.gold, item.options) for name, text in right_texts(item)]
        judged += [("wrong", *rest) for rest in wrong_texts(item)]
        for expected, name, text, gold, options in judged:
            found = extract(text, item.kind)
            verdict = grade(found.answer, gold, item.kind, options=options, equivalent=equivalent)
            good = verdict.correct == (expected == "right")
            for key in (expected, f"{expected}: {item.kind}: {name}"):
                shares.setdefault(key, []).append(good)
            if not good:
                misses.append(
                    f"{item.id} | {expected} | {name} | gold {gold!r} {list(options) or ''} | {found} | {verdict} | …{text[-90:]!r}"
                )
    for miss in misses:
        print("MISS", miss)
    for key in sorted(shares):
        print(f"{key:45} {sum(shares[key]):6} of {len(shares[key]):6}  {sum(shares[key]) / len(shares[key]):.4%}")
    return {key: {"good": sum(values), "of": len(values)} for key, values in shares.items()}


def timings(items: list[Item], equivalent: Equivalent, repeats: int) -> dict[str, float]:
    """Medians: seconds for 10,000 gradings, extractions a second (one process each), programs a second (two workers)."""
    texts = [(text, item.kind) for item in items for _, text in right_texts(item)]
    texts = texts[:: max(1, len(texts) // 10_000)]
    answers = [(item, extract(text, item.kind).answer) for item in items for _, text in right_texts(item)]
    chosen = answers[:: max(1, len(answers) // 9_500)][:9_500]
    grading, extracting, extracting_cpu, running = [], [], [], []
    with Sandbox(2) as sandbox:
        for repeat in range(repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            for text, kind in texts:
                extract(text, kind)
            extracting.append(len(texts) / (time.perf_counter() - start))
            extracting_cpu.append(len(texts) / (time.process_time() - start_cpu))
            start = time.perf_counter()
            for item, answer in chosen:
                grade(answer, item.gold, item.kind, options=item.options, equivalent=equivalent)
            for number in range(500):
                size = 10_000 * repeat + number + 2
                grade(f"({size}+x)^2", f"x^2+{2 * size}x+{size * size}", "formula", equivalent=equivalent)
            grading.append((time.perf_counter() - start) * 10_000 / (len(chosen) + 500))
            start = time.perf_counter()
            sandbox.run_many([f"x = {number}\nprint(x * x)" for number in range(200)])
            running.append(200 / (time.perf_counter() - start))
    return {
        "grade_10000_seconds": statistics.median(grading),
        "extractions_per_second": statistics.median(extracting),
        "extractions_per_cpu_second": statistics.median(extracting_cpu),
        "programs_per_second": statistics.median(running),
    }


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/maths"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    items = read_items(arguments.data)
    with Comparer() as comparer:
        comparer.equivalent("x", "x+0")
        result: dict[str, object] = {"shares": check(items, comparer.equivalent)}
        result["timings"] = timings(items, comparer.equivalent, arguments.repeats)
    print(json.dumps(result["timings"]))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
