"""The entry point of every script: YAML and overrides in, one validated settings object out, exit codes.

A script declares its settings as a dataclass of `podium.settings` and decorates `main` with `app`. Hydra does
composition, `--cfg job` and `--multirun`; the checks before it and the error line after it are here, once for all.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from podium.errors import ArgumentError, DataError, MissingFileError, PodiumError

Settings = TypeVar("Settings")

CONF = Path(__file__).resolve().parents[2] / "conf"

# Hydra would change nothing but add a log file and an outputs/<date> folder to every run; our stages name their own.
QUIET_HYDRA = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    # the sweeper insists on writing multirun.yaml somewhere
    f"hydra.sweep.dir={Path(tempfile.gettempdir()) / 'podium-sweeps'}",
    "hydra.sweep.subdir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


def nearest(word: str, candidates: list[str]) -> str:
    """A remedy clause: the closest valid name, or the list of them."""
    match = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"did you mean `{match[0]}`?" if match else f"valid: {', '.join(sorted(candidates))}"


def _nested(annotation: Any) -> type | None:
    """The dataclass inside `X` or `X | None`, if there is one."""
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # type: ignore[return-value]


def field_types(settings: type) -> dict[str, Any]:
    """Field name -> annotation of a settings dataclass."""
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def all_keys(settings: type, prefix: str = "") -> list[str]:
    """Every dotted key a settings dataclass accepts, blocks included."""
    keys: list[str] = []
    for name, annotation in field_types(settings).items():
        keys.append(prefix + name)
        if block := _nested(annotation):
            keys += all_keys(block, f"{prefix}{name}.")
    return keys


def _check_key(settings: type, dotted: str, where: str) -> None:
    """Raise ArgumentError, naming the nearest valid key, unless `settings` has `dotted`.

    Keys below a field that is a plain mapping (`datasets.train=…`) are the user's own and pass.
    """
    block: type = settings
    parts = dotted.split(".")
    for position, part in enumerate(parts):
        fields = field_types(block)
        if part not in fields:
            close = nearest(dotted, all_keys(settings))
            raise ArgumentError(f"{where}: unknown key `{dotted}`; {close}")
        inner = _nested(fields[part])
        if inner is None:
            is_mapping = typing.get_origin(fields[part]) is dict
            if position + 1 < len(parts) and not is_mapping:
                raise ArgumentError(f"{where}: `{part}` in `{dotted}` is a value, not a block; remove what follows it")
            return
        block = inner


def check_overrides(settings: type, overrides: list[str]) -> None:
    """Refuse malformed or unknown `key=value` overrides before Hydra sees them.

    Raises:
        ArgumentError: naming the override and the nearest valid key.
    """
    for override in overrides:
        if "=" not in override:
            raise ArgumentError(f"override `{override}` has no `=`; write key=value (`~key` is not supported)")
        dotted = override.split("=", 1)[0].lstrip("+")
        if dotted.startswith(("hydra.", "hydra/")):
            continue
        _check_key(settings, dotted, "command line")


def build(settings: type[Settings], values: dict[str, Any], where: str) -> Settings:
    """Validate plain values into a settings object: unknown keys, types, ranges and cross-field rules.

    Raises:
        DataError: one line a problem, each naming the key, the value, what was expected and the nearest valid key.
    """
    try:
        # from JSON, strict validation still builds nested dataclasses, and "12" is not taken for 12
        return TypeAdapter(settings).validate_json(json.dumps(values))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            dotted = ".".join(str(part) for part in problem["loc"])
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                lines.append(f"unknown key `{dotted}`; {nearest(dotted, all_keys(settings))}")
            elif problem["type"] in ("missing", "missing_argument"):
                lines.append(f"key `{dotted}` is missing; give it a value")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                at = f"`{dotted}` is {problem['input']!r}: " if dotted else ""
                lines.append(f"{at}{message}")
        raise DataError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from None


def config_names(stage: str) -> list[str]:
    """The YAML names of a stage's config folder."""
    return sorted(path.stem for path in (CONF / stage).glob("*.yaml"))


def _forced(overrides: list[str]) -> list[str]:
    """Overrides in Hydra's add-or-replace form: keys are checked by us, and mappings may get entries of the user's."""
    return [one if one.startswith(("+", "hydra.", "hydra/")) else f"++{one}" for one in overrides]


def _compose(stage: str, config_name: str, overrides: list[str]) -> dict[str, Any]:
    """Hydra's composition of one YAML and overrides as plain values, errors turned into ours."""
    if config_name not in config_names(stage):
        raise ArgumentError(f"conf/{stage} has no config `{config_name}`; {nearest(config_name, config_names(stage))}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF / stage), version_base="1.3"):
            composed = compose(config_name, _forced(overrides))
        return typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        text = re.sub(r"\s+", " ", str(error)).strip()
        raise ArgumentError(f"conf/{stage}/{config_name}.yaml with {overrides or 'no overrides'}: {text}") from None


def _refuse_missing(values: dict[str, Any], where: str) -> None:
    """Raise ArgumentError naming every required key, at any depth, that has no value yet."""

    def missing(block: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in block.items():
            if value == "???":
                yield prefix + key
            elif isinstance(value, dict):
                yield from missing(value, f"{prefix}{key}.")

    if keys := list(missing(values, "")):
        raise ArgumentError(f"{where} needs {' and '.join(f'{key}=…' for key in keys)}")


def load(
    settings: type[Settings], stage: str, config_name: str = "base", overrides: list[str] | None = None
) -> Settings:
    """Compose conf/<stage>/<config_name>.yaml with overrides and validate it. Loads no model, reads no data.

    Raises:
        ArgumentError: an unknown config name or override.
        DataError: the composed values do not fit `settings`.
    """
    check_overrides(settings, overrides or [])
    values = _compose(stage, config_name, overrides or [])
    _refuse_missing(values, f"conf/{stage}/{config_name}.yaml")
    return build(settings, values, f"conf/{stage}/{config_name}.yaml")


def load_file(settings: type[Settings], path: str | Path, overrides: list[str] | None = None) -> Settings:
    """Read one YAML file by path, apply `key=value` overrides and validate: for scripts with plain flags.

    Raises:
        MissingFileError: no such file.
        ArgumentError: an unknown or malformed override.
        DataError: the file is not YAML, or its values do not fit `settings`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such config file")
    check_overrides(settings, overrides or [])
    try:
        tree = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        values = OmegaConf.to_container(tree, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        text = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path}: {text}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds a {type(values).__name__}; a config is `key: value` lines")
    _refuse_missing(typing.cast(dict[str, Any], values), str(path))
    return build(settings, typing.cast(dict[str, Any], values), str(path))


def to_dict(settings: Any) -> dict[str, Any]:
    """The resolved settings as plain values."""
    return dataclasses.asdict(settings)


def digest(settings: Any, ignore: tuple[str, ...] = ()) -> str:
    """sha256 of the resolved settings, less the top-level keys in `ignore`."""
    values = {key: value for key, value in to_dict(settings).items() if key not in ignore}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_main_process() -> bool:
    """True in a plain run and on rank 0 of a distributed one, before any process group exists."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn a PodiumError, or what the system refused, into one line on stderr and an exit code; let bugs show a traceback."""
    try:
        yield
    except PodiumError as error:
        if is_main_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except OSError as error:
        # disk full, no permission, a vanished mount: the system's own words are clear, a traceback is not
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror}; free space, mend permissions, then run the same command again",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        sys.exit(PodiumError.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config-name (if any) and the `key=value` overrides among command-line arguments."""
    config_name: str | None = None
    overrides: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in ("--config-name", "-cn"):
            position += 1
            config_name = arguments[position] if position < len(arguments) else ""
        elif argument.startswith(("--config-name=", "-cn=")):
            config_name = argument.split("=", 1)[1]
        elif argument in ("--cfg", "-c", "--package", "-p", "--info", "-i"):
            position += 1
        elif argument.startswith(("--config-path", "--config-dir", "-cp", "-cd")):
            raise ArgumentError(f"{argument}: configs of this script live in conf/; choose one with --config-name NAME")
        elif not argument.startswith("-"):
            overrides.append(argument)
        position += 1
    return config_name.removesuffix(".yaml") if config_name is not None else None, overrides


def app(
    settings: type[Settings], stage: str, default: str = "base"
) -> Callable[[Callable[[Settings], None]], Callable[[], None]]:
    """Decorate `main(settings)` into a Hydra application that reads conf/<stage>/.

    Args:
        settings: dataclass the composed YAML is validated into.
        stage: folder below conf/.
        default: config used when --config-name is absent.
    """

    def decorate(function: Callable[[Settings], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"
            with exit_codes():
                config_name, overrides = _split_arguments(sys.argv[1:])
                config_name = default if config_name is None else config_name
                is_sweep = any(argument in ("-m", "--multirun") for argument in sys.argv[1:])
                shows_only = any(
                    argument.split("=", 1)[0] in ("--cfg", "-c", "--help", "-h", "--info", "-i")
                    for argument in sys.argv[1:]
                )
                if is_sweep or shows_only:
                    check_overrides(settings, overrides)
                    _compose(stage, config_name, [])
                else:
                    load(settings, stage, config_name, overrides)
                GlobalHydra.instance().clear()
                # all overrides at the end, since Hydra's parser takes them from one place only: `a=1 --cfg job` is common
                flags = [one for one in sys.argv[1:] if one not in overrides]
                sys.argv = [sys.argv[0], *flags, *(_forced([one])[0] for one in overrides), *QUIET_HYDRA]

                def task(tree: Any) -> None:
                    with exit_codes():
                        values = typing.cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))
                        _refuse_missing(values, f"conf/{stage}/{config_name}.yaml")
                        function(build(settings, values, f"conf/{stage}/{config_name}.yaml"))

                hydra_main(version_base="1.3", config_path=str(CONF / stage), config_name=config_name)(task)()

        run.settings, run.stage, run.body = settings, stage, function  # type: ignore[attr-defined]
        return run

    return decorate
