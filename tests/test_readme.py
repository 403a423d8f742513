"""The README is true: its commands exist and their arguments are accepted, its files are there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import running

from podium import config, pipeline

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
INDENTED = [line.strip() for line in README.splitlines() if line.startswith("    ")]
COMMANDS = [line for line in INDENTED if re.match(r"(make|\.venv/bin/python|python) ", line)]
INLINE = re.findall(r"`((?:make|python) [^`]+)`", README)
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("command", [one for one in COMMANDS + INLINE if one.startswith("make ")])
def test_make_targets_exist_and_take_these_variables(command):
    words = shlex.split(command, comments=True)[1:]
    for word in words:
        if "=" in word:
            assert re.search(rf"^{word.split('=')[0]} \?=", MAKEFILE, re.MULTILINE), word
        else:
            assert re.search(rf"^{word}:", MAKEFILE, re.MULTILINE), word


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS + INLINE if "python " in one and not one.startswith("make")]
)
def test_script_commands_are_accepted(command):
    _, path, *arguments = shlex.split(command)
    assert (ROOT / path).is_file(), path
    name = Path(path).stem
    if not path.startswith("code/") or not hasattr(getattr(running.script(name), "main", None), "settings"):
        usage = subprocess.run(
            [ROOT / ".venv/bin/python" if (ROOT / ".venv/bin/python").exists() else "python", ROOT / path, "--help"],
            capture_output=True, text=True, timeout=120,
        ).stdout  # fmt: skip
        for flag in (one for one in arguments if one.startswith("--")):
            assert flag in usage, (command, flag)
        return
    if name == "ask":
        arguments = running.script("ask").as_overrides(arguments)
    config_name, overrides = config._split_arguments(arguments)
    main = running.script(name).main
    config.load(main.settings, main.stage, config_name or "base", overrides)


def test_listed_files_and_stages_exist():
    for path in re.findall(r"^    (?:  )?(podium/[a-z_/]+(?:\.py)?)", README, re.MULTILINE):
        assert (ROOT / "code" / path).exists(), path
    stages = re.findall(r"^\| [a-z ]+ \| `(code/\w+\.py)` \| `(conf/\w+)` \|", README, re.MULTILINE)
    assert len(stages) >= 13
    for script, folder in stages:
        assert (ROOT / script).is_file() and (ROOT / folder / "base.yaml").is_file()
        assert pipeline.load_script(Path(script).stem).main.stage == Path(folder).name
    for picture in re.findall(r"\]\((assets/[^)]+)\)", README):
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_no_placeholder_is_left():
    assert not re.search(r"@\w+@", README)
