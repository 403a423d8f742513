"""Prompts of the maths evaluator: pure functions, demos written for this project.

The Alpaca template is Stanford's (Taori et al. 2023), as the published evaluation uses it; the program suffix is
MAmmoTH's (Yue et al. 2023).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

VERSION = 1
MODES = ("cot", "pot")
PROGRAM_SUFFIX = " Let's write a program."
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
STOPS = ("### Instruction:", "### Response:", "Question:", "Instruction:", "Response:", "Below is an instruction")
"""Where a model begins another exchange. They count at the start of a line only: "Question" is also a common word."""

_STOP = re.compile("|".join(rf"^[ \t]*{re.escape(stop)}" for stop in STOPS), re.MULTILINE)


@dataclass(frozen=True)
class Demo:
    """A worked example: reasoning and program for the same problem."""

    question: str
    reasoning: str
    program: str
    options: tuple[str, ...] = ()


OPEN_DEMOS = (
    Demo(
        "A gardener plants 7 rows of 12 tulips. A storm destroys 19 of them. How many tulips are left?",
        "The gardener plants 7 * 12 = 84 tulips. After the storm 84 - 19 = 65 are left. The answer is 65.",
        "planted = 7 * 12\nleft = planted - 19\nprint(left)",
    ),
    Demo(
        "A bus ticket costs $2.40. How many dollars do 5 tickets cost with a discount of 10%?",
        "Five tickets cost 5 * 2.40 = 12 dollars. The discount is 0.10 * 12 = 1.20 dollars, so they cost "
        "12 - 1.20 = 10.80 dollars. The answer is 10.80.",
        "full_price = 5 * 2.40\nprice = full_price * (1 - 0.10)\nprint(round(price, 2))",
    ),
    Demo(
        "What is the value of x if 3x + 5 = 26?",
        "Subtracting 5 gives 3x = 21, and dividing by 3 gives x = 7. The answer is 7.",
        "from sympy import Eq, solve, symbols\nx = symbols('x')\nprint(solve(Eq(3 * x + 5, 26), x)[0])",
    ),
    Demo(
        "Two friends share 48 marbles so that one has three times as many as the other. How many has the one with fewer?",
        "Together they have 4 equal parts, so one part is 48 / 4 = 12. The friend with fewer has 12. The answer is 12.",
        "parts = 1 + 3\nfewer = 48 // parts\nprint(fewer)",
    ),
)
CHOICE_DEMOS = (
    Demo(
        "A train covers 150 km in 2.5 hours. What is its average speed?",
        "The average speed is 150 / 2.5 = 60 km/h, which is option C. The answer is C.",
        "speed = 150 / 2.5\nprint(speed)",
        ("50 km/h", "55 km/h", "60 km/h", "65 km/h"),
    ),
    Demo(
        "A jacket of $80 is sold for $68. What is the discount in percent?",
        "The discount is 80 - 68 = 12 dollars, and 12 / 80 = 0.15, so 15%, which is option B. The answer is B.",
        "discount = 80 - 68\nprint(100 * discount / 80)",
        ("12%", "15%", "18%", "20%"),
    ),
)


def render_question(question: str, options: Sequence[str], mode: str) -> str:
    """The question, its options with letters, and for programs the suffix that asks for one."""
    text = question.strip()
    if options:
        text += "\nAnswer Choices: " + " ".join(f"({'ABCDEFGHIJ'[i]}) {option}" for i, option in enumerate(options))
    return text + (PROGRAM_SUFFIX if mode == "pot" else "")


def instruction(question: str, options: Sequence[str], mode: str, shots: int) -> str:
    """What the model is asked: demos, if any, then the question.

    Args:
        question: the problem.
        options: contents of its options; demos with options go with problems with options.
        mode: "cot" or "pot".
        shots: how many demos; at most as many as there are.
    """
    asked = render_question(question, options, mode)
    demos = (CHOICE_DEMOS if options else OPEN_DEMOS)[:shots]
    if not demos:
        return asked
    worked = [
        f"Question: {render_question(demo.question, demo.options, mode)}\n"
        f"Response: {demo.program if mode == 'pot' else demo.reasoning}"
        for demo in demos
    ]
    return "\n\n".join([*worked, f"Question: {asked}"])


def alpaca(text: str) -> str:
    """An instruction in Alpaca's template."""
    return ALPACA.format(instruction=text)


def plain(text: str) -> str:
    """An instruction with the cue that demos end with, and nothing else."""
    return f"{text}\nResponse:"


def cut_at_stops(text: str) -> str:
    """A model's text up to where it begins another exchange at the start of a line."""
    match = _STOP.search(text)
    return (text[: match.start()] if match else text).strip()


_CODE_LINE = re.compile(
    r"^(?:import |from \w[\w.]* import|def |class |@|#|print\s*\(|(?:for|while|if|try|with)\b.*:|[A-Za-z_][\w.\[\]'\", ]*\s*(?:[-+*/%|&]|//|\*\*)?=(?!=))"
)


def program_in(text: str) -> str | None:
    """The program in a model's text, made to print its result; None if there is none.

    Fenced code counts alone. Without a fence, prose before the first line that looks like code is left out. A program
    that prints nothing gets a last line that prints `solution()` or the last variable, which is what such a text means.
    """
    fenced = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.DOTALL | re.IGNORECASE)
    if fenced:
        code = "\n".join(block.strip("\n") for block in fenced)
    else:
        lines = text.splitlines()
        start = next((index for index, line in enumerate(lines) if _CODE_LINE.match(line)), None)
        if start is None:
            return None
        code = "\n".join(lines[start:])
    if not code.strip():
        return None
    if not re.search(r"\bprint\s*\(", code):
        last = code.rstrip().splitlines()[-1]
        if re.search(r"^def solution\(\s*\)", code, re.MULTILINE):
            code += "\nprint(solution())"
        elif assigned := re.match(r"([A-Za-z_]\w*)\s*=(?!=)", last):
            code += f"\nprint({assigned.group(1)})"
        elif not fenced:
            return None
    return code
