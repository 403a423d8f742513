"""Run stages one after another, one process each, skipping those whose manifest is current.

A stage's process is forked from one parent that has imported torch and transformers, so a chain of short stages does
not pay the imports (several seconds) every time. The parent itself computes nothing, so forking is safe, and each
stage's memory goes back to the system when it ends.
"""

import gc
import importlib.util
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from podium import config, contracts, stage
from podium.errors import ArgumentError, PodiumError

CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One stage of a chain: which script, which config, which overrides."""

    name: str
    script: str
    config_name: str = "base"
    overrides: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """The overrides as command-line arguments."""
        return [f"{key}={quoted(value)}" for key, value in self.overrides.items()]

    def command(self) -> str:
        """What a person would type."""
        return " ".join(["python", f"code/{self.script}.py", "--config-name", self.config_name, *self.arguments()])


def steps_of(settings: list[Any]) -> list[Step]:
    """Steps from their settings blocks (name, script, config, overrides)."""
    return [Step(one.name, one.script, one.config, one.overrides) for one in settings]


def quoted(value: Any, always: bool = False) -> str:
    """A value in Hydra's override grammar; `always` quotes texts that would be read as numbers or null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(quoted(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str) and (always or not all(char.isalnum() or char in "/._-+" for char in value)):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def load_script(name: str) -> ModuleType:
    """Import a script of code/ as a module, without running it.

    Raises:
        ArgumentError: no such script.
    """
    path = CODE / f"{name}.py"
    if not path.is_file():
        raise ArgumentError(f"no script code/{name}.py; {config.nearest(name, [p.stem for p in CODE.glob('*.py')])}")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def import_heavy_modules() -> None:
    """Import in the parent what every stage needs, so that forked children find it ready."""
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401  (the first optimizer step imports it)
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, Qwen2ForCausalLM, Qwen2Tokenizer  # noqa: F401

    transformers.utils.logging.disable_progress_bar()


def check(steps: list[Step]) -> list[Any]:
    """Validate every step's settings before the first one starts, so that a typo in the last costs nothing.

    Returns:
        one settings object a step.

    Raises:
        ArgumentError, DataError: naming the step's config and key.
    """
    settings = []
    for step in steps:
        main = load_script(step.script).main
        settings.append(config.load(main.settings, main.stage, step.config_name, step.arguments()))
    folders = [one.output_dir for one in settings]
    if doubled := {folder for folder in folders if folders.count(folder) > 1}:
        raise ArgumentError(f"several steps write to {sorted(doubled)}; give each its own output_dir")
    return settings


def _in_child(step: Step, settings: Any) -> tuple[int, float]:
    """Run one step in a forked child; returns exit code and peak memory in MB."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = [f"code/{step.script}.py", "--config-name", step.config_name, *step.arguments()]
            with config.exit_codes():
                load_script(step.script).main.body(settings)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024


def run(steps: list[Step], fresh: bool = False) -> dict[str, float]:
    """Run the steps in order. A current step is skipped, an interrupted one resumed, a changed one done anew.

    Args:
        steps: each in its own output folder.
        fresh: delete every step's folder first.

    Returns:
        step name -> seconds it took when it last ran.

    Raises:
        PodiumError: a step failed; its own message was printed before.
    """
    all_settings = check(steps)
    if fresh:
        for settings in all_settings:
            shutil.rmtree(settings.output_dir, ignore_errors=True)
    seconds: dict[str, float] = {}
    imported = False
    started = time.perf_counter()
    for position, (step, settings) in enumerate(zip(steps, all_settings, strict=True), 1):
        folder = Path(settings.output_dir)
        title = f"[{position}/{len(steps)}] {step.name}"
        if contracts.is_current(folder, config.digest(settings, stage.UNTRACKED)):
            # a chain that was killed while its last stage went on to the end has the stage, but not its time
            timing = folder / "seconds.json"
            seconds[step.name] = contracts.read_json(timing, "timing").get("seconds", 0.0) if timing.is_file() else 0.0
            print(f"{title}: up to date ({folder})", flush=True)
            continue
        if not stage.can_continue(step.script, settings, folder):
            print(f"{title}: settings or inputs changed, starting over", flush=True)
            shutil.rmtree(folder)
        print(f"{title}: {step.command()}", flush=True)
        if not imported:
            import_heavy_modules()
            gc.collect()
            imported = True
        begun = time.perf_counter()
        code, peak = _in_child(step, settings)
        if code != 0:
            error = PodiumError(f"step {step.name} ended with exit code {code}; fix it and run the same command again")
            error.exit_code = code if code > 0 else 6  # type: ignore[misc]
            raise error
        seconds[step.name] = round(time.perf_counter() - begun, 1)
        contracts.write_json(folder / "seconds.json", {"seconds": seconds[step.name], "peak_mb": round(peak)})
        elapsed = time.perf_counter() - started
        print(f"{title}: {seconds[step.name]:.0f} s, peak {peak:.0f} MB, {elapsed:.0f} s in all\n", flush=True)
    return seconds
