"""The process that compares formulas by math-verify. Run as a module by `podium.maths.equivalence` only.

math-verify hands model text to sympy's parser, which evaluates Python; so this process has no privileges to lose: an
empty environment, resource limits and, where the kernel has it, the sandbox's system-call allowlist.
"""

import logging
import os
import resource
import sys
import warnings
from typing import Any

from podium.maths import seccomp
from podium.maths.frames import read_frame, write_frame

MEMORY_BYTES = 4 * 2**30


def _contain() -> bool:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    instructions = seccomp.available()
    if instructions is None:
        return False
    try:
        seccomp.install(instructions)
    except OSError:
        return False
    return True


def _compare(gold: str, answer: str, verify: Any, parse: Any, configs: list[Any]) -> tuple[bool, str]:
    parsed_gold = parse(f"${gold}$", configs, parsing_timeout=None)
    if not parsed_gold:
        return False, "the gold answer cannot be read as a formula"
    parsed_answer = parse(f"${answer}$", configs, parsing_timeout=None)
    if not parsed_answer:
        return False, "the answer cannot be read as a formula"
    same = verify(parsed_gold, parsed_answer, timeout_seconds=None)
    return same, "equivalent formulas" if same else "different formulas"


def main() -> None:
    """Serve comparisons until the evaluator hangs up."""
    control, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    _compare("\\frac{1}{2}", "x^{2}+1", verify, parse, configs)  # builds the parser's tables before the limits
    sys.setrecursionlimit(3000)
    write_frame(replies, {"ready": True, "seccomp": _contain()})
    while (request := read_frame(control)) is not None:
        try:
            same, reason = _compare(request["gold"], request["answer"], verify, parse, configs)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # sympy raises all sorts of things on what models write; each means "not equal"
            same, reason = False, f"{type(error).__name__} while comparing"
        write_frame(replies, {"same": bool(same), "reason": reason})


if __name__ == "__main__":
    main()
