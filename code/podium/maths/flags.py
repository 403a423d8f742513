"""The published command line beside Hydra's: `--eval_dataset gsm8k` means `eval_dataset=gsm8k`."""

from podium.config import field_types, nearest
from podium.errors import ArgumentError

HYDRA_WITH_VALUE = ("--config-name", "-cn", "--cfg", "-c", "--package", "-p", "--info", "-i")
HYDRA_ALONE = ("--multirun", "-m", "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r")


def _quoted(value: str) -> str:
    """A value that Hydra's grammar takes as this string, whatever it holds."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def to_overrides(arguments: list[str], settings: type) -> list[str]:
    """Replace `--key value` and `--key=value` by overrides; Hydra's own flags and overrides stay.

    Args:
        arguments: the command line without the program.
        settings: whose fields the flags are.

    Raises:
        ArgumentError: an unknown flag, naming the nearest; or a flag without its value.
    """
    keys = list(field_types(settings))
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, has_value, value = argument.partition("=")
        if not argument.startswith("--") or name in HYDRA_ALONE:
            result.append(argument)
        elif name in HYDRA_WITH_VALUE or name.startswith("--config-"):
            result.append(argument)
            if not has_value and rest:
                result.append(rest.pop(0))
        else:
            key = name[2:].replace("-", "_")
            if key not in keys:
                raise ArgumentError(f"unknown flag {name}; {nearest(key, keys)}")
            if not has_value:
                if not rest or rest[0].startswith("--"):
                    raise ArgumentError(f"{name} needs a value (an empty one is written {name} '')")
                value = rest.pop(0)
            result.append(f"{key}={_quoted(value) if _is_text(key, settings) else value}")
    return result


def _is_text(key: str, settings: type) -> bool:
    return "str" in str(field_types(settings)[key]) or "Literal" in str(field_types(settings)[key])
