"""What can be checked without a model: options, key, formulae, instructions to a judge, names given away."""

import ast
import contextlib
import functools
import io
import re
from fractions import Fraction

from podium.synthetic.similarity import tokenize

_FRACTION = re.compile(r"\\d?t?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ASKS = re.compile(
    r"^\s*(?:calculate|evaluate|work out|compute|what is|find)(?: the value of| the answer to)?\s*:?\s*(.+?)\s*[?.=]*\s*$",
    re.IGNORECASE | re.DOTALL,
)
_FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]|\$\$(.+?)\$\$|(?<![\\$])\$(?![\s\d]*\s)([^$]+?)\$", re.DOTALL)
_INSTRUCTIONS = re.compile(
    r"(ignore|disregard|forget)\b.{0,40}\b(instruction|above|previous|rubric|prompt)"
    r"|\b(give|assign|award|output|return)\b.{0,40}\b(score|rating|full marks|maximum mark|highest mark)"
    r"|\b(score|rating) of (10|ten)\b"
    r"|\bas an? (ai|language model)\b|<\s*/?\s*(system|assistant|instructions?)\s*>|\bsystem prompt\b",
    re.IGNORECASE | re.DOTALL,
)
_MOST_DIGITS = 12


def recomputed(question: str) -> Fraction | None:
    """The value a question asks for, where the whole question is one arithmetic expression."""
    match = _ASKS.match(question)
    return value_of(match[1]) if match else None


def value_of(text: str) -> Fraction | None:
    """The exact value of an arithmetic expression in LaTeX or plain signs; None if it is anything else."""
    plain = re.sub(r"\\[()\[\]]|\$|\\left|\\right|\\ |\\,|\s", "", text)
    before = None
    while plain != before:
        before, plain = plain, _FRACTION.sub(r"((\1)/(\2))", plain)
    plain = re.sub(r"\\times|\\cdot|×|·", "*", plain)
    plain = re.sub(r"\\div|÷", "/", plain).replace("−", "-").replace("{", "(").replace("}", ")").replace("^", "**")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?<=[\d)])(?=\()", "*", plain)
    if not re.fullmatch(r"[\d.+\-*/()]+", plain) or re.search(rf"\d{{{_MOST_DIGITS},}}|(?<!\d)0\d", plain):
        return None
    try:
        return _evaluate(ast.parse(plain, mode="eval").body, plain)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(ast.get_source_segment(source, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inside = _evaluate(node.operand, source)
        return -inside if isinstance(node.op, ast.USub) else inside
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, source), _evaluate(node.right, source)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
        if isinstance(node.op, ast.Pow) and right.denominator == 1 and abs(right) <= 12 and abs(left) <= 10_000:
            return left ** int(right)
    raise ValueError("not arithmetic")


def key_problem(question: str, options: dict[str, str], key: str) -> str | None:
    """Why the answer key is wrong, where that can be worked out; None if it is right or cannot be."""
    value = recomputed(question)
    if value is None:
        return None
    values = {letter: value_of(text) for letter, text in options.items()}
    if values[key] is not None and values[key] != value:
        return f"key {key} says {options[key]}, the expression is {value}"
    also = [letter for letter, other in values.items() if letter != key and other == value]
    return f"option {also[0]} is right as well" if also else None


def options_problem(options: dict[str, str]) -> str | None:
    """Why the four options are not four answers, or None."""
    empty = [letter for letter, text in options.items() if not text.strip()]
    if empty:
        return f"option {empty[0]} is empty"
    seen: dict[tuple[str, ...] | str | Fraction, str] = {}
    for letter, text in options.items():
        same = value_of(text)
        key = same if same is not None else tokenize(text) or text.strip()
        if key in seen:
            return f"options {seen[key]} and {letter} are the same"
        seen[key] = letter
    return None


def formula_problem(text: str) -> str | None:
    """Why a text's mathematics would not render, or None."""
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.count(opening) != text.count(closing):
            return f"{text.count(opening)} {opening} but {text.count(closing)} {closing}"
    for match in _FORMULA.finditer(text):
        body = next(group for group in match.groups() if group is not None)
        if problem := _body_problem(body.strip()):
            return problem
    return None


@functools.lru_cache(maxsize=20_000)
def _body_problem(body: str) -> str | None:
    depth = 0
    for letter in re.sub(r"\\[{}]", "", body):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            break
    if depth:
        return f"unbalanced braces in {body[:60]!r}"
    if "\\" not in body or r"\begin" in body or r"\text" in body:
        return None  # nothing that can fail, or more than matplotlib's TeX knows
    from matplotlib.mathtext import MathTextParser

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            MathTextParser("path").parse(f"${body}$")
    except ValueError as error:
        return f"{body[:60]!r} does not render: {str(error).strip().splitlines()[-1][:100]}"
    return None


def instruction_in(text: str) -> str | None:
    """The words with which a text addresses its judge instead of a pupil, or None."""
    match = _INSTRUCTIONS.search(text)
    return match[0][:80] if match else None


def names_it(text: str, name: str) -> str | None:
    """The run of words by which a text gives a misconception's name away, or None.

    Four words in a row of the name (all of a shorter name) are a giveaway; the words apart are just mathematics.
    """
    words, told = tokenize(name), tokenize(text)
    width = min(4, len(words))
    if not width:
        return None
    runs = {told[start : start + width] for start in range(len(told) - width + 1)}
    for start in range(len(words) - width + 1):
        if words[start : start + width] in runs:
            return " ".join(words[start : start + width])
    return None


def sentences(text: str) -> int:
    """Number of sentences; a point inside a number ends none."""
    return len(re.findall(r"[.!?](?=\s+[^a-z\s]|\s*$)", text.strip()))
