"""The plain-flag entry point of synthetic/*.py: --config-path FILE.yaml and key=value overrides."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from podium import config
from podium.errors import ArgumentError

Settings = TypeVar("Settings")


def arguments(given: list[str], usage: str) -> tuple[str, list[str]]:
    """The config path and the overrides among command-line arguments.

    Raises:
        ArgumentError: no --config-path, or a flag that does not exist.
    """
    path: str | None = None
    overrides: list[str] = []
    rest = iter(given)
    for argument in rest:
        if argument == "--config-path":
            path = next(rest, None)
        elif argument.startswith("--config-path="):
            path = argument.split("=", 1)[1]
        elif argument in ("-h", "--help"):
            print(usage.strip())
            sys.exit(0)
        elif argument.startswith("-"):
            raise ArgumentError(f"unknown flag {argument}; usage: --config-path FILE.yaml [key=value ...]")
        else:
            overrides.append(argument)
    if not path:
        raise ArgumentError("--config-path FILE.yaml is missing; the project's configs are in conf/synthetic/")
    return path, overrides


def main(settings: type[Settings], body: Callable[[Settings], Any], usage: str | None) -> None:
    """Read the arguments and the config, run `body`, and end with the house's exit codes."""
    with config.exit_codes():
        path, overrides = arguments(sys.argv[1:], usage or "")
        body(config.load_file(settings, path, overrides))
