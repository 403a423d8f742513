"""Whether two formulas are equivalent, asked of math-verify in a process that is killed when it takes too long.

Source: Hynek Kydlíček, Math-Verify, https://github.com/huggingface/Math-Verify (0.9.0).
"""

import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from podium.errors import PrerequisiteError
from podium.maths.frames import read_frame, write_frame

CODE = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
MAX_TEXT = 1000
CACHE_ENTRIES = 100_000


def _to_latex(text: str) -> str:
    """Python's and plain text's spelling of powers, products and roots in LaTeX's."""
    text = text.replace("**", "^")
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s+(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\^(-?\d+)", r"^{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])(pi|infty|infinity|log|ln|sin|cos|tan|exp)(?![a-zA-Z])", r"\\\1 ", text)
    text = text.replace("\\infinity", "\\infty")
    return re.sub(r"\s*\*\s*", r" \\cdot ", text)


class Comparer:
    """A math-verify process, started on first use and replaced when it hangs; use as a context manager.

    Args:
        timeout_seconds: for one comparison; a longer one counts as not equivalent.
    """

    def __init__(self, timeout_seconds: float = 5.0) -> None:
        self.timeout_seconds = timeout_seconds
        self.killed = 0
        self.contained = False
        self._process: subprocess.Popen[bytes] | None = None
        self._cache: dict[tuple[str, str], tuple[bool, str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Comparer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", "podium.maths.equivalence_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(CODE), "PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        try:
            hello = read_frame(cast(IO[bytes], process.stdout).fileno(), START_SECONDS)
        except (TimeoutError, ValueError):
            hello = None
        if hello is None:
            _end(process)
            raise PrerequisiteError(
                "the formula comparison did not start; install it with pip install math-verify==0.9.0"
            )
        self.contained = hello["seccomp"]
        return process

    def equivalent(self, gold: str, answer: str) -> tuple[bool, str]:
        """Whether the answer equals the gold, and the reason.

        Raises:
            PrerequisiteError: math-verify is not installed.
        """
        if len(gold) > MAX_TEXT or len(answer) > MAX_TEXT:
            return False, f"longer than {MAX_TEXT} characters"
        with self._lock:
            if (gold, answer) not in self._cache:
                if len(self._cache) >= CACHE_ENTRIES:
                    self._cache.clear()
                self._cache[gold, answer] = self._ask(_to_latex(gold), _to_latex(answer))
            return self._cache[gold, answer]

    def _ask(self, gold: str, answer: str) -> tuple[bool, str]:
        if self._process is None:
            self._process = self._start()
        process = self._process
        try:
            write_frame(cast(IO[bytes], process.stdin).fileno(), {"gold": gold, "answer": answer})
            reply = read_frame(cast(IO[bytes], process.stdout).fileno(), self.timeout_seconds)
        except TimeoutError:
            reply, why = None, f"no verdict within {self.timeout_seconds:g} s"
        except (OSError, ValueError):
            reply, why = None, "the comparison ended its process"
        else:
            why = "the comparison ended its process"
        if reply is None:
            self.killed += 1
            self.close()
            return False, why
        return bool(reply["same"]), str(reply["reason"])

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
