"""What every script does around its work: claim the folder, notice finished or changed runs, export, sign off."""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from podium import checkpoint, config, contracts, sharing
from podium.errors import DataError, PodiumError, PrerequisiteError, sample

RUN = "run.json"
UNTRACKED = ("output_dir", "use_wandb", "device", "dry_run", "gpu", "push_to_hub")
"""Settings that do not change what a run computes: they may differ on resume."""


@dataclass
class Run:
    """A claimed output folder."""

    script: str
    settings: Any
    folder: Path
    inputs: dict[str, str | Path]
    finished: bool = False
    """A run with these settings and inputs has completed here; there is nothing to do."""
    wrote: list[str] = field(default_factory=list)

    def finish(
        self, rows: dict[str, int] | None = None, facts: dict[str, Any] | None = None, next_command: str | None = None
    ) -> None:
        """Write the manifest, last of all files, and say what was written and what to run next."""
        contracts.write_manifest(
            self.folder,
            stage=self.script,
            config_digest=config.digest(self.settings, UNTRACKED),
            inputs=self.inputs,
            rows=rows,
            facts=facts,
        )
        counts = ", ".join(f"{count} {name}" for name, count in (rows or {}).items())
        print(f"wrote {self.folder}{f' ({counts})' if counts else ''}", flush=True)
        if next_command:
            print(f"next: {next_command}", flush=True)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf that differs."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def record(script: str, settings: Any, inputs: dict[str, str | Path]) -> dict[str, Any]:
    """What run.json holds: script, settings, digests of the inputs."""
    record = {
        "script": script,
        "settings": {k: v for k, v in config.to_dict(settings).items() if k not in UNTRACKED},
        "inputs": {name: {"path": str(path), "digest": contracts.input_digest(path)} for name, path in inputs.items()},
    }
    return json.loads(json.dumps(record))


def can_continue(script: str, settings: Any, folder: Path) -> bool:
    """True if the folder is unused, or holds an unfinished run of the same settings on unchanged inputs."""
    if not (folder / RUN).is_file():
        return True
    old = contracts.read_json(folder / RUN, "run record")
    if (folder / contracts.MANIFEST).is_file() or old["settings"] != record(script, settings, {})["settings"]:
        return False
    return all(
        Path(entry["path"]).exists() and contracts.input_digest(entry["path"]) == entry["digest"]
        for entry in old["inputs"].values()
    )


@contextlib.contextmanager
def run(script: str, settings: Any, inputs: dict[str, str | Path | None]) -> Iterator[Run]:
    """Claim `settings.output_dir` for a run of `script`.

    The folder's run.json records settings and input digests at the first start. A later start with the same ones
    resumes (or finds the run finished); with others it is refused with the differences, so nothing gets mixed.
    With `dry_run=true` nothing is claimed or written. With `push_to_hub` (of settings that have it) the Hub is asked first
    whether it would take the checkpoint, and gets it once the body is done; the same command pushes a finished one again.

    Args:
        script: name of the script.
        settings: its settings object, with `output_dir`.
        inputs: name -> file or folder that is read; None entries are left out.

    Raises:
        MissingFileError: an input does not exist.
        DataError: the folder holds a run with other settings or inputs.
        PodiumError: somebody else is running in the folder.
        as `sharing.check_push` and `sharing.push`.
    """
    repository = settings.push_to_hub if hasattr(settings, "push_to_hub") and config.is_main_process() else None
    sharing.check_push(repository)
    given = {name: path for name, path in inputs.items() if path is not None}
    for name, path in given.items():
        if not Path(path).exists():
            contracts.require_file(path, f"input `{name}`")
    now = record(script, settings, given)
    folder = Path(settings.output_dir)
    if getattr(settings, "dry_run", False):
        yield Run(script, settings, folder, given)
        return
    # only one process of a distributed run claims the folder; the others follow it
    claim = contracts.output_folder(folder) if config.is_main_process() else contextlib.nullcontext()
    with claim:
        note = folder / RUN
        finished = False
        if note.is_file():
            differences = _differences(contracts.read_json(note, "run record"), now)
            if differences:
                raise DataError(
                    f"{folder} holds a run with other settings or inputs: {'; '.join(differences)}. "
                    f"Choose another output_dir, restore them, or delete the folder to start over"
                )
            finished = contracts.is_current(folder, config.digest(settings, UNTRACKED))
        elif config.is_main_process():
            contracts.write_json(note, now)
            contracts.write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(settings), sort_keys=False))
        if finished:
            print(f"{folder} is complete and up to date; nothing to do (delete the folder to start over)", flush=True)
        yield Run(script, settings, folder, given, finished)
        if (folder / contracts.META).is_file():
            sharing.push(folder, repository)


def command_line() -> str:
    """The command that started this process, for the line that says how to resume."""
    return shlex.join(
        ["python", *sys.argv[:1], *[a.removeprefix("++") for a in sys.argv[1:] if a not in config.QUIET_HYDRA]]
    )


def launched_processes(command: Path) -> int:
    """How many processes an `accelerate launch` in this file of /proc was told to start; 1 for any other command."""
    try:
        words = command.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return 1  # no /proc, or the parent is gone
    if "launch" not in words or not any(Path(word).name.startswith("accelerate") for word in words[:3]):
        return 1
    options = dict(zip(words, words[1:], strict=False))
    options |= dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    given = options.get("--num_processes") or options.get("--num-processes")
    file = options.get("--config_file") or options.get("--config-file")
    if given is None and file is not None and Path(file).is_file():
        given = str(yaml.safe_load(Path(file).read_text()).get("num_processes", 1))
    return int(given) if given is not None and given.isdigit() else 1


def make_accelerator(device: str) -> Any:
    """An Accelerator with accumulation 1 (the loop accumulates); warns when a launch started fewer processes than asked.

    Raises:
        PrerequisiteError: FSDP on CPU, which accelerate would silently replace by DDP.
    """
    import torch
    from accelerate import Accelerator, DataLoaderConfiguration

    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise PrerequisiteError(
            "FSDP needs GPUs: accelerate would silently run plain DDP on CPU; use torchrun --nproc_per_node 2 without FSDP"
        )
    accelerator = Accelerator(cpu=cpu, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    wanted = max(int(os.environ.get("WORLD_SIZE", "1")), launched_processes(Path(f"/proc/{os.getppid()}/cmdline")))
    if accelerator.num_processes < wanted:
        accelerator.print(
            f"warning: {wanted} processes were asked for and {accelerator.num_processes} runs: on CPU `accelerate launch` starts"
            f" one; use: torchrun --nproc_per_node {wanted} {command_line().removeprefix('python ')}"
        )
    return accelerator


def make_tracker(use_wandb: bool, script: str, settings: Any, folder: Path) -> Any:
    """A function that logs a metrics line to Weights & Biases (offline works too), or None.

    Raises:
        PrerequisiteError: use_wandb without wandb installed.
    """
    if not use_wandb or not config.is_main_process():
        return None
    try:
        import wandb
    except ImportError:
        raise PrerequisiteError("use_wandb=true needs wandb: pip install wandb==0.31.0") from None
    run_ = wandb.init(
        project="podium", group=script, name=folder.name, config=config.to_dict(settings), dir=str(folder)
    )
    return lambda line: run_.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])


def export(
    run_: Run, accelerator: Any, backbone: Any, tokenizer: Any, meta: contracts.CheckpointMeta, validation_fold: int,
    next_command: str, rows: dict[str, int],
) -> None:  # fmt: skip
    """Write the finished checkpoint (weights, tokenizer, meta, manifest) into the run's folder.

    Folds that the starting checkpoint was trained on count as trained on here too; whether the validation figures are
    in-sample is recorded, and said.
    """
    folds = {*meta.folds_trained, *contracts.folds_behind(meta.base_model, meta.data_digest)}
    in_sample = validation_fold in folds
    if in_sample:
        accelerator.print("the validation fold was trained on (here or by the backbone): these figures are in-sample")
    state = whole_state(backbone)
    if accelerator.is_main_process:
        try:
            backbone.save_pretrained(run_.folder, state_dict=state)
        except SafetensorError as error:
            raise PodiumError(f"{run_.folder}: the weights could not be written ({error}); free some space or mend the"
                              " folder's permissions, then run the same command again: training is done") from None  # fmt: skip
        tokenizer.save_pretrained(run_.folder)
        extra = {**meta.extra, "validation_in_sample": in_sample}
        meta = dataclasses.replace(meta, folds_trained=sorted(folds), extra=extra)
        sharing.describe(run_.folder, meta, backbone.config.hidden_size, f"code/{run_.script}")
        run_.finish(rows=rows, facts={"folds_trained": sorted(folds)}, next_command=next_command)
    accelerator.wait_for_everyone()


def whole_state(backbone: Any) -> dict[str, Any] | None:
    """A sharded model's tensors, gathered to the CPU (every process calls this); None where nothing is sharded.

    Of a model with adapters only what is trained: the frozen rest is not saved, and may not fit.
    """
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in backbone.parameters()):
        return None
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    is_adapter = hasattr(backbone, "peft_config")
    return {
        name: checkpoint.whole(tensor).cpu()
        for name, tensor in backbone.state_dict().items()
        if not is_adapter or name in trained
    }


def require_labels_known(labels: set[int], names: dict[int, str], where: str) -> None:
    """Refuse labels that the catalogue lacks.

    Raises:
        DataError: naming them.
    """
    if unknown := sorted(labels - set(names)):
        raise DataError(f"{where}: misconception id {sample(unknown)} is not in the catalogue")
