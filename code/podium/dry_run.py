"""`dry_run=true` on a training script: everything that can go wrong before GPU hours are spent, without the weights.

The script reads its real tables, tokenizer and config as always and, instead of training, calls `report`: one decoded
batch with its loss mask, token lengths, steps, predicted memory, and two steps of the real loop with a tiny random twin of
the model. Nothing is written to the run's folder.
"""

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from podium import memory, modeling, optim, rng, tokenization, training
from podium.errors import PrerequisiteError

STEPS_READ = 40
"""Steps of the first epoch, evenly spread, whose batches are collated for lengths and for the largest micro-batch."""
TWIN = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


# --- the batch -------------------------------------------------------------------------------------------------------


def row_lengths(batch: training.Batch, pad_id: int) -> list[int]:
    """Real tokens of every row of every `input_ids` in a micro-batch; of every group where many are packed into one row."""
    if "layout" in batch:
        position_T = batch["layout"]["position"]
        starts = [*(position_T == 0).nonzero()[:, 0].tolist(), len(position_T)]
        return [end - start for start, end in zip(starts, starts[1:], strict=False)]
    lengths: list[int] = []
    for value in batch.values():
        if isinstance(value, dict):
            lengths += row_lengths(value, pad_id)
    if "input_ids" in batch:
        ids_BT: Tensor = batch["input_ids"]
        columns_BT = torch.arange(1, ids_BT.shape[1] + 1).expand_as(ids_BT)
        real_BT = batch["attention_mask"].bool() if "attention_mask" in batch else ids_BT != pad_id
        last_B = (columns_BT * real_BT).amax(1)
        for name, ahead in _reads(batch).items():
            # a row may end with the padding token (end of text) and learn it
            rows, columns = batch[name].unbind(1)
            last_B = last_B.scatter_reduce(0, rows, (columns + 1 + ahead).clamp(max=ids_BT.shape[1]), "amax")
        lengths += last_B.tolist()
    return lengths


def _reads(batch: training.Batch) -> dict[str, int]:
    """Names of the (N, 2) positions that the loss reads, and 1 where the next token of the row is the target."""
    return {
        name: int(name.startswith("lm_"))
        for name, value in batch.items()
        if name.endswith("_read") and isinstance(value, Tensor) and len(value)
    }


def _shares_prefixes(batch: training.Batch) -> bool:
    """True for packed rows in which several suffixes follow one prefix: positions then restart at more than 0."""
    if "layout" not in batch:
        return False
    position_T = batch["layout"]["position"]
    return bool(((position_T[1:] != position_T[:-1] + 1) & (position_T[1:] != 0)).any())


def render_row(batch: training.Batch, row: int, tokenizer: PreTrainedTokenizerFast, length: int) -> str:
    """The text of one row, tokens that are learnt in ⟦…⟧, ⟦?⟧ where a label is read."""
    ids = batch["input_ids"][row][:length].tolist()
    learnt, labels = set(), set()
    for name, ahead in _reads(batch).items():
        columns = {column for at, column in batch[name].tolist() if at == row}
        if not ahead:
            labels |= columns
        elif not _shares_prefixes(batch):  # there the next column may be another candidate's
            learnt |= {column + 1 for column in columns}
    text, start = "", 0
    marks = [(at in learnt, at) for at in range(len(ids))]
    while start < len(ids):
        end = start + 1
        while end < len(ids) and marks[end][0] == marks[start][0] and end - 1 not in labels:
            end += 1
        piece = tokenizer.decode(ids[start:end])
        text += f"⟦{piece}⟧" if marks[start][0] else str(piece)
        text += "⟦?⟧" if end - 1 in labels else ""
        start = end
    return text


def show_batch(batch: training.Batch, tokenizer: PreTrainedTokenizerFast, say: Callable[[str], None]) -> None:
    """One row of everything that a micro-batch feeds to the model."""
    for name, value in batch.items():
        if isinstance(value, dict) and "input_ids" in value:
            length = row_lengths(value, tokenizer.pad_token_id)[0]  # type: ignore[arg-type]
            say(f"  {name}, first of {len(value['input_ids'])}: {render_row(value, 0, tokenizer, length)!r}")
    if "input_ids" in batch:
        length = row_lengths(batch, tokenizer.pad_token_id)[0]  # type: ignore[arg-type]
        kind = "group of a packed row" if "layout" in batch else f"of {len(batch['input_ids'])} rows"
        say(f"  first {kind}; ⟦learnt⟧, ⟦?⟧ a label is read:")
        say(f"  {render_row(batch, 0, tokenizer, length)!r}")
        if _shares_prefixes(batch) and "lm_target" in batch:
            say(f"  learnt as text beside the labels: {tokenizer.decode(batch['lm_target'])!r}")


# --- the twin --------------------------------------------------------------------------------------------------------


def make_twin(backbone: str, task: modeling.Task, folder: Path, seed: int) -> str:
    """Save a random model of the backbone's architecture and vocabulary, 2 layers × 64, and say what it is."""
    config = memory.with_layers(modeling.read_config(backbone), TWIN["num_hidden_layers"])
    for name, value in TWIN.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    torch.manual_seed(rng.torch_seed(seed, "twin"))
    loader = AutoModel if task == "embedding" else AutoModelForCausalLM
    loader.from_config(config).save_pretrained(folder)
    return f"{config.model_type}, {config.num_hidden_layers} layers × {config.hidden_size}"


def two_steps(
    plan: memory.Plan, accelerator: Accelerator, collate: training.Collate, count: int, loop: dict[str, Any]
) -> tuple[list[dict[str, float]], str]:
    """The real loop for two steps of at most four samples a process, on a twin; its log lines, and the twin."""
    is_main, kind = accelerator.is_main_process, ""
    # transformers writes on one process only, so the others of this machine read its folder
    made = [tempfile.mkdtemp(prefix="podium-dry-run-") if is_main else ""]
    scratch = Path(broadcast_object_list(made)[0])
    try:
        if is_main:
            kind = make_twin(plan.model["backbone"], plan.task, scratch / "twin", loop["seed"])
        accelerator.wait_for_everyone()
        options = {**plan.model, "backbone": str(scratch / "twin")}
        if options["attn_implementation"].startswith("flash") and not torch.cuda.is_available():
            options["attn_implementation"] = "sdpa"
        model = plan.wrap(modeling.prepare_for_training(**options, task=plan.task, seed=loop["seed"]))
        few = {
            "max_steps": 2, "epochs": None, "eval_every_steps": None, "save_every_steps": None, "num_workers": 0,
            "batch_size": min(loop["batch_size"], 4 * accelerator.num_processes),
        }  # fmt: skip
        folder = scratch / f"run-{accelerator.process_index}"
        folder.mkdir()
        training.train(
            accelerator=accelerator, model=model, optimizer=optim.make_optimizer(model, **plan.optimizer), count=count,
            collate=collate, micro_step=plan.micro_step, output_dir=folder, **{**loop, **few},
        )  # fmt: skip
        log = folder / "metrics.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else [], kind
    finally:
        if is_main:
            shutil.rmtree(scratch, ignore_errors=True)


# --- the report ------------------------------------------------------------------------------------------------------


def sampled_steps(
    collate: training.Collate, count: int, loop: dict[str, Any], world: int, at_most: int = STEPS_READ
) -> list[list[training.Batch]]:
    """Micro-batches of up to `at_most` steps, evenly spread over the first epoch, on the first of `world` processes."""
    steps = training.total_steps(count, loop["batch_size"], loop["epochs"], loop["max_steps"])
    batches = training.StepBatches(count, loop["batch_size"], collate, seed=loop["seed"], world=world, steps=steps)
    last = min(steps, batches.steps_per_epoch) - 1
    return [batches[int(at)] for at in np.unique(np.linspace(0, last, min(at_most, last + 1)).round())]


@dataclass(frozen=True)
class Peak:
    """What a step needs on one device with its largest micro-batch, and with its smallest."""

    largest: memory.Memory
    smallest: memory.Memory
    tokens: tuple[int, int]
    """Padded tokens of the smallest and of the largest micro-batch."""

    def tokens_that_fit(self, room: float) -> int:
        """Padded tokens of the largest micro-batch that fits `room` bytes."""
        return memory.largest_tokens((self.tokens[0], self.smallest), (self.tokens[1], self.largest), room)


def peak(
    plan: memory.Plan, dtype: torch.dtype, sampled: list[list[training.Batch]], *, shards: int = 1, replicas: int = 1
) -> Peak:
    """Predicted memory of the largest of the sampled steps' micro-batches.

    Args:
        plan: how the run holds its model.
        dtype: of the weights where the config says nothing.
        sampled: micro-batches of some steps.
        shards: devices that FSDP2 shards over.
        replicas: devices that DDP copies to.
    """
    flat = sorted((batch for step in sampled for batch in step), key=memory.padded_tokens)
    several = 2 if any(len(step) > 1 for step in sampled) else 1

    def need(batch: training.Batch) -> memory.Memory:
        return memory.predict(plan, dtype, flat[:1], [batch] * several, shards=shards, replicas=replicas)

    tokens = memory.padded_tokens(flat[0]), memory.padded_tokens(flat[-1])
    largest = need(flat[-1])
    return Peak(largest, need(flat[0]) if tokens[0] < tokens[1] else largest, tokens)


def _free_memory() -> float:
    """Bytes of memory that this machine can still give."""
    line = next(one for one in Path("/proc/meminfo").read_text().splitlines() if one.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024.0


def _device(
    wanted: tuple[memory.Gpu, int] | None, gpu: str | None, accelerator: Accelerator
) -> tuple[torch.dtype, float, str]:
    """Dtype of weights, bytes that tensors may fill, and name of the asked-for device or of this machine's."""
    if wanted:
        dtype = torch.bfloat16 if wanted[0].bf16 else torch.float16
        return dtype, memory.capacity(wanted[0].mebibytes), str(gpu)
    dtype = modeling.default_dtype()
    if torch.cuda.is_available() and accelerator.device.type == "cuda":
        room = memory.capacity(torch.cuda.get_device_properties(0).total_memory // 2**20)
        return dtype, room, torch.cuda.get_device_name(0)
    return dtype, _free_memory() / accelerator.num_processes, "the free memory of this machine"


def _shards(wanted: tuple[memory.Gpu, int] | None, accelerator: Accelerator) -> int:
    """Devices that FSDP2 shards over."""
    return wanted[1] if wanted else accelerator.num_processes if accelerator.is_fsdp2 else 1


def checkpointing(
    plan: memory.Plan, *, accelerator: Accelerator, collate: training.Collate, count: int, loop: dict[str, Any],
    gpu: str | None = None,
) -> bool:  # fmt: skip
    """The plan's `gradient_checkpointing`; where that is `auto`, the main process decides it and prints why.

    Recomputing activations costs a third to a half more operations, so it is done only where a step would not fit without.

    Args:
        plan: of the run.
        accelerator: of the run.
        collate: of the run.
        count: training samples.
        loop: the settings' `loop` block.
        gpu: as in `report`.
    """
    if plan.model["gradient_checkpointing"] != "auto":
        return plan.model["gradient_checkpointing"]
    without = {**plan.model, "gradient_checkpointing": False}
    decided = None
    if accelerator.is_main_process:
        wanted = memory.parse_gpu(gpu) if gpu else None
        shards, replicas = _shards(wanted, accelerator), accelerator.num_processes
        dtype, room, device = _device(wanted, gpu, accelerator)
        sampled = sampled_steps(collate, count, loop, max(shards, replicas))
        needed = peak(
            dataclasses.replace(plan, model=without), dtype, sampled, shards=shards, replicas=replicas
        ).largest
        decided = needed.total > room
        accelerator.print(
            f"gradient checkpointing {'on' if decided else 'off'}: without it a step needs"
            f" {needed.total / memory.GIB:.2f} GiB, {device} has {room / memory.GIB:.2f}"
        )
    return broadcast_object_list([decided])[0]


def report(
    plan: memory.Plan,
    *,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerFast,
    collate: training.Collate,
    count: int,
    loop: dict[str, Any],
    gpu: str | None,
    output_dir: str,
) -> None:
    """Print what a run would do and need.

    Args:
        plan: of the run.
        accelerator: of the run.
        tokenizer: to show a batch.
        collate: of the run.
        count: training samples.
        loop: the settings' `loop` block.
        gpu: name in `memory.GPUS`, with `/N` for FSDP2 over N of them; None is this machine.
        output_dir: where the run would write; its disk is looked at.

    With several processes the main one reports, for DDP over them (for FSDP2 where that was launched), and all end alike.

    Raises:
        ArgumentError: unknown gpu.
        PrerequisiteError: the run does not fit the device or the disk.
    """
    wanted = memory.parse_gpu(gpu) if gpu else None
    decided = checkpointing(plan, accelerator=accelerator, collate=collate, count=count, loop=loop, gpu=gpu)
    plan = dataclasses.replace(plan, model={**plan.model, "gradient_checkpointing": decided})
    problem = None
    if accelerator.is_main_process:
        problem = _describe(plan, wanted, gpu, accelerator, tokenizer, collate, count, loop, output_dir)
    lines, kind = two_steps(plan, accelerator, collate, count, loop)
    losses = ", ".join(f"{line['loss']:.4f}" for line in lines)
    accelerator.print(f"two steps with a tiny random twin ({kind}): losses {losses}")
    if problem := broadcast_object_list([problem])[0]:
        raise PrerequisiteError(problem)


def _describe(
    plan: memory.Plan, wanted: tuple[memory.Gpu, int] | None, gpu: str | None, accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerFast, collate: training.Collate, count: int, loop: dict[str, Any], output_dir: str,
) -> str | None:  # fmt: skip
    """Print everything that needs no step; returns why the run cannot be, or None."""
    say = accelerator.print
    processes = accelerator.num_processes
    shards = _shards(wanted, accelerator)
    world = max(shards, processes)
    steps = training.total_steps(count, loop["batch_size"], loop["epochs"], loop["max_steps"])
    an_epoch = math.ceil(count / loop["batch_size"])
    say("dry run: nothing is trained or written")
    say(f"steps: {steps} of {loop['batch_size']} of {count} samples, {an_epoch} an epoch, so {steps / an_epoch:.2f} epochs;"
        f" warm-up {max(1, math.ceil(steps * loop['warmup_fraction']))} steps")  # fmt: skip

    before = tokenization.prompts_fitted, tokenization.prompts_cut
    sampled = sampled_steps(collate, count, loop, world)
    fitted, cut = tokenization.prompts_fitted - before[0], tokenization.prompts_cut - before[1]
    flat = [batch for step in sampled for batch in step]
    lengths = [length for batch in flat for length in row_lengths(batch, tokenizer.pad_token_id)]  # type: ignore[arg-type]
    shares = ", ".join(f"{share} % {round(np.percentile(lengths, share))}" for share in (50, 90, 99))
    say(f"tokens a row: {shares}, longest {max(lengths)} (of {len(lengths)} rows in {len(sampled)} steps);"
        f" text cut in {cut} of {fitted} prompts ({cut / max(1, fitted):.1%})")  # fmt: skip
    say("one micro-batch:")
    show_batch(min(flat, key=memory.padded_tokens), tokenizer, say)

    dtype, room, device = _device(wanted, gpu, accelerator)
    found = peak(plan, dtype, sampled, shards=shards, replicas=processes)
    needed = found.largest
    shared = f" ({'FSDP2' if shards > 1 else 'DDP'} over {world})" if world > 1 else ""
    say(f"predicted memory at the peak of a step, GiB a device{shared}: "
        + ", ".join(f"{name} {getattr(needed, name) / memory.GIB:.2f}" for name in
                    ("weights", "trained", "gradients", "optimizer", "logits", "activations"))
        + f"; together {needed.total / memory.GIB:.2f}")  # fmt: skip
    largest, fits = found.tokens_that_fit(room), needed.total <= room
    say(f"{'fits' if fits else 'DOES NOT FIT'} {device}: {needed.total / memory.GIB:.2f} of {room / memory.GIB:.2f} GiB; the largest"
        f" micro-batch that fits has about {largest:,} padded tokens, this run's has {found.tokens[1]:,}")  # fmt: skip

    state = (needed.trained + needed.optimizer) * shards
    disk = state * (loop["keep"] + 2) + needed.trained * shards
    existing = next(one for one in [Path(output_dir).absolute(), *Path(output_dir).absolute().parents] if one.exists())
    free = shutil.disk_usage(existing).free
    say(
        f"disk: {disk / memory.GIB:.2f} GiB for states of {state / memory.GIB:.2f} and the export, {free / memory.GIB:.2f} free"
    )
    if not fits:
        return (
            f"needs {needed.total / memory.GIB:.2f} GiB, {device} has {room / memory.GIB:.2f}: lower max_tokens_per_micro_batch to"
            f" about {largest:,}, set model.gradient_checkpointing=true, train adapters (model.lora), or model.quantization=nf4"
        )
    if disk > free:
        return f"{existing}: {disk / memory.GIB:.2f} GiB of disk are needed; lower loop.keep or free some"
    return None
