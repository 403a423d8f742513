"""`make test-long` interrupted goes on where it stopped: tests that passed on this very tree are not run again."""

import os
import signal
import subprocess
import sys

import running

TESTS = """
import os, signal
from pathlib import Path
import pytest

HERE = Path(__file__).parent

def ran(name):
    with open(HERE / "ran", "a") as handle:
        handle.write(name)

@pytest.mark.long
def test_a():
    ran("a")

@pytest.mark.long
def test_b():
    ran("b")
    if not (HERE / "second").exists():
        os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.long
def test_c():
    ran("c")
    assert (HERE / "third").exists()

def test_short():
    ran("s")
"""


def test_an_interrupted_long_suite_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    ledger = tmp_path / "ledger.txt"

    def suite():
        (tmp_path / "ran").unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-c", running.ROOT / "pyproject.toml", "--rootdir", tmp_path, "-p",
                   "conftest", "-p", "no:cacheprovider", "--ledger", ledger, tmp_path / "test_some.py"]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{running.CODE}:{running.ROOT / 'tests'}"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
        return done.returncode, (tmp_path / "ran").read_text(), done.stdout

    code, ran, said = suite()
    assert (code, ran) == (-signal.SIGKILL, "ab"), said
    assert [line.split("::")[-1] for line in ledger.read_text().splitlines()] == ["test_a"]
    (tmp_path / "second").touch()
    code, ran, said = suite()
    assert (code, ran) == (1, "bcs"), said
    (tmp_path / "third").touch()
    code, ran, said = suite()
    assert (code, ran) == (0, "cs") and "2 skipped" in said, "what failed is not in the ledger; short tests always run"
    ledger.write_text("".join(f"othertree {line.split()[1]}\n" for line in ledger.read_text().splitlines()))
    code, ran, said = suite()
    assert (code, ran) == (0, "abcs"), "what passed on another tree counts for nothing"


def test_the_ledger_s_file_is_not_taken_for_a_test():
    """`--ledger FILE` in two words makes pytest look for tests in FILE once it exists, and never find this option."""
    recipe = next(line for line in (running.ROOT / "Makefile").read_text().splitlines() if "--ledger" in line)
    assert " --ledger=outputs/" in recipe
