"""THE loop. It owns steps, accumulation, clipping, schedule, logging, evaluation cadence, saving and resuming.

What varies comes in as arguments: `batches` says which samples a step holds and how they are collated, `micro_step`
does forward and backward of one micro-batch, `evaluate` returns figures. A step gathers its micro-batches first and
divides by ONE global weight, so accumulation and the number of processes cannot change the result.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from podium import checkpoint, contracts, optim, rng
from podium.batching.orders import Order
from podium.errors import DataError, InterruptedRun
from podium.losses import Loss

Batch = dict[str, Any]
Collate = Callable[[int, np.ndarray], list[Batch]]
"""(epoch, sample indices) -> micro-batches, a pure function; each has a float "weight". The loop adds "step"."""
MicroStep = Callable[[nn.Module, Batch, float], tuple[float, dict[str, float]]]
"""(model, micro-batch, scale): backward of loss_sum × scale; returns loss_sum and summed metrics."""
Evaluate = Callable[[nn.Module], dict[str, float]]
FIRST_LOSS_SCALE = 2.0**16
LOSS_SCALE_DOUBLES_AFTER = 2000  # steps without overflow; both as in torch.amp.GradScaler


class StepBatches(Dataset):
    """Micro-batches of each optimizer step: a pure function of (seed, step), so any worker or resume gives the same.

    Every epoch is a permutation of all samples; each step takes the next `batch_size` of them (the last one of an
    epoch may be smaller) and every process collates its contiguous share.
    """

    def __init__(
        self, count: int, batch_size: int, collate: Collate, *, seed: int, rank: int = 0, world: int = 1, steps: int,
        order: Order | None = None,
    ) -> None:  # fmt: skip
        if count == 0:
            raise DataError("no training rows: check the folds, sources and labels of the question table")
        self.count, self.batch_size, self.collate, self.seed = count, batch_size, collate, seed
        self.rank, self.world, self.steps = rank, world, steps
        self.order = functools.lru_cache(2)(order or (lambda epoch: rng.permutation(count, seed, "order", epoch)))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that visit every sample once."""
        return math.ceil(self.count / self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def sample_ids(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch, and the sample indices of a step over all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch, self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, ids = self.sample_ids(step)
        share = np.array_split(ids, self.world)[self.rank]
        if len(share):
            return [{**batch, "step": step} for batch in self.collate(epoch, share)]
        # every process must take part in the step's collectives: repeat a sample with weight 0
        return [{**batch, "step": step, "weight": 0.0} for batch in self.collate(epoch, ids[:1])]


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    samples_sha256: str = ""
    """Running hash of the sample indices of every step, to prove that a resumed run saw the same."""
    train_seconds: float = 0.0
    loss_scale: float = 1.0
    """What losses are multiplied with before backward, so that gradients in fp16 do not vanish (Micikevicius et al. 2018)."""
    scaled_steps: int = 0
    """Steps since the loss scale last changed."""


def plain(loss: Callable[[nn.Module, Batch], Loss], accelerator: Accelerator) -> MicroStep:
    """The ordinary micro-step: one forward, one backward."""

    def micro_step(model: nn.Module, batch: Batch, scale: float) -> tuple[float, dict[str, float]]:
        loss_sum, _, metrics = loss(model, batch)
        accelerator.backward(loss_sum * scale)
        return loss_sum.item(), metrics

    return micro_step


def mean_loss(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Loss], collate: Collate, count: int, device: torch.device
) -> dict[str, float]:
    """Loss and its metrics over all `count` samples, per unit of weight (token, group or query)."""
    sums = {"loss": 0.0}
    total = 0.0
    for ids in np.array_split(np.arange(count), math.ceil(count / 64)):
        for batch in collate(0, ids):
            value, weight, metrics = loss(model, to_device(batch, device))
            total += weight
            for key, one in {"loss": value.item(), **metrics}.items():
                sums[key] = sums.get(key, 0.0) + one
    return {key: value / total for key, value in sums.items()}


def total_steps(count: int, batch_size: int, epochs: float | None, max_steps: int | None) -> int:
    """Optimizer steps of a run: `epochs` over `count` samples, cut at `max_steps`."""
    whole = math.ceil(math.ceil(count / batch_size) * epochs) if epochs is not None else None
    return min(value for value in (whole, max_steps) if value is not None)


def steps_for_tokens(lengths: np.ndarray, batch_size: int, seed: int, tokens: int) -> int:
    """Optimizer steps after which at least `tokens` tokens were trained on, in the order that `train` takes.

    Args:
        lengths: (samples,) tokens of each sample.
        batch_size: samples a step.
        seed: of the order.
        tokens: the budget.
    """
    order = StepBatches(len(lengths), batch_size, lambda epoch, ids: [], seed=seed, steps=0)
    step = seen = 0
    while seen < tokens:
        seen += int(lengths[order.sample_ids(step)[1]].sum())
        step += 1
    return step


def steps_done(output_dir: Path) -> int:
    """The step from which `train` would resume."""
    found = checkpoint.latest(output_dir / "state")
    return 0 if found is None else int(found.name.split("-")[1])


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[str]]:
    """Collect SIGTERM and SIGUSR1 (what schedulers send before they kill) instead of dying at once."""
    received: list[str] = []
    previous = {
        number: signal.signal(number, lambda caught, _: received.append(signal.Signals(caught).name))
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors, nested ones included, on a device."""
    return {key: _move(value, device) for key, value in batch.items()}


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return to_device(value, device)
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def _log_upto(path: Path, step: int) -> None:
    """Drop lines of metrics.jsonl written after `step`, which a resumed run will write again."""
    if path.is_file():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        contracts.write_text(path, "".join(line + "\n" for line in lines))


def train(
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    count: int,
    collate: Collate,
    micro_step: MicroStep,
    output_dir: Path,
    seed: int,
    epochs: float | None,
    max_steps: int | None,
    batch_size: int,
    warmup_fraction: float,
    final_lr_fraction: float,
    max_grad_norm: float,
    eval_every_steps: int | None,
    save_every_steps: int | None,
    keep: int,
    num_workers: int,
    order: Order | None = None,
    evaluate: Evaluate | None = None,
    best_metric: str | None = None,
    lower_is_better: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    resume_command: str = "",
) -> Progress:
    """Train for `epochs` or `max_steps`, whichever is shorter, resuming from `output_dir/state` if there is one.

    Args:
        accelerator: built with accumulation 1; the loop accumulates itself.
        model: trainable module, not yet prepared.
        optimizer: from `optim.make_optimizer`.
        count: training samples.
        collate: sample indices -> micro-batches.
        micro_step: forward and backward of one micro-batch.
        output_dir: metrics.jsonl and state/ go here.
        seed: of sample order and dropout.
        epochs: passes over the samples; may be fractional or None.
        max_steps: limit of optimizer steps, or None.
        batch_size: samples a step over all processes.
        warmup_fraction: share of the steps with linearly rising rate.
        final_lr_fraction: share of the peak rate at the last step (cosine).
        max_grad_norm: gradients are clipped to this norm.
        eval_every_steps: besides the end; None evaluates at the end only.
        save_every_steps: besides evaluations; None saves at evaluations and the end only.
        keep: newest states kept, besides the best.
        num_workers: processes that collate ahead.
        order: epoch -> permutation of the samples; None shuffles.
        evaluate: figures on validation data; called on every process with the unwrapped model.
        best_metric: key of `evaluate`'s figures; the best state's weights are in the model on return.
        lower_is_better: for losses.
        log: receives every logged line (trackers).
        resume_command: shown when the run is interrupted.

    Returns:
        Progress at the end.

    Raises:
        InterruptedRun: SIGTERM or SIGUSR1 arrived; state is saved.
        DataError: trained weights are held in fp16; a loss or gradient is not finite, and the optimizer has not moved.
    """
    batches = StepBatches(
        count, batch_size, collate, seed=seed, rank=accelerator.process_index, world=accelerator.num_processes,
        steps=total_steps(count, batch_size, epochs, max_steps), order=order,
    )  # fmt: skip
    state_dir, metrics_path = output_dir / "state", output_dir / "metrics.jsonl"
    # models computed in fp16, unless accelerate scales by itself (mixed_precision: fp16)
    scales_loss = accelerator.scaler is None and _is_half(model)
    progress = Progress(loss_scale=FIRST_LOSS_SCALE if scales_loss else 1.0)
    if not accelerator.is_fsdp2:  # FSDP2 shards on the way; a whole model may not fit the device
        model.to(accelerator.device)
    raw_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    # after `prepare`, which replaces the parameters of a sharded model
    if (found := checkpoint.latest(state_dir)) is not None:
        progress = Progress(**checkpoint.load(found, raw_model, optimizer))
        accelerator.print(f"resuming after step {progress.step} of {batches.steps} ({found})")
    if accelerator.is_main_process:
        _log_upto(metrics_path, progress.step)

    def write(line: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            with open(metrics_path, "a") as handle:
                handle.write(json.dumps(line) + "\n")
            if log is not None:
                log(line)

    saved = progress.step

    def save() -> None:
        nonlocal saved
        if saved == progress.step:
            return
        saved = progress.step
        if accelerator.is_main_process:
            contracts.sync_file(metrics_path)  # no state without the lines that led to it
        checkpoint.save(
            state_dir, progress.step, raw_model, optimizer, dataclasses.asdict(progress), keep, progress.best_step,
            is_main=accelerator.is_main_process,
        )  # fmt: skip
        accelerator.wait_for_everyone()

    def evaluate_now() -> None:
        if evaluate is None:
            return
        raw_model.eval()
        with torch.inference_mode():
            figures = evaluate(raw_model)
        raw_model.train()
        write({"step": progress.step, **{f"eval/{key}": value for key, value in figures.items()}})
        accelerator.print(
            f"step {progress.step}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True
        )
        if best_metric is not None:
            value, sign = figures[best_metric], -1 if lower_is_better else 1
            if progress.best_value is None or sign * value > sign * progress.best_value:
                progress.best_step, progress.best_value = progress.step, value

    loader = DataLoader(
        batches, batch_size=None, sampler=range(progress.step, batches.steps), num_workers=num_workers
    )  # fmt: skip
    smooth: float | None = None
    terminal = sys.stderr.isatty()
    bar = tqdm(
        loader, initial=progress.step, total=batches.steps, desc="train", unit="step",
        disable=not accelerator.is_main_process, mininterval=0.5 if terminal else 10, maxinterval=1 if terminal else 20,
    )  # fmt: skip
    with _stop_requests() as stop:
        for micro_batches in bar:
            started = time.perf_counter()
            step = progress.step
            scale = optim.learning_rate_scale(step, batches.steps, warmup_fraction, final_lr_fraction)
            optim.set_learning_rate(optimizer, scale)
            model.train()
            weight = _global_sum(accelerator, sum(batch["weight"] for batch in micro_batches))
            while True:
                torch.manual_seed(rng.torch_seed(batches.seed, "dropout", step, accelerator.process_index))
                sums: dict[str, float] = {"loss": 0.0}
                for position, batch in enumerate(micro_batches):
                    is_last = position + 1 == len(micro_batches)
                    with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                        # DDP averages gradients over processes; the sum is wanted
                        filler = 0.0 if batch["weight"] == 0 else 1.0
                        factor = progress.loss_scale * filler * accelerator.num_processes / weight
                        loss_sum, metrics = micro_step(model, to_device(batch, accelerator.device), factor)
                    for key, value in {"loss": loss_sum, **metrics}.items():
                        sums[key] = sums.get(key, 0.0) + filler * value
                _divide_gradients(model, progress.loss_scale)
                norm = float(checkpoint.whole(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)))
                if math.isfinite(norm) or progress.loss_scale == 1.0:
                    break
                # every process sees the same norm; the step is made again, so that none is lost and resumes stay exact
                progress.loss_scale, progress.scaled_steps = max(1.0, progress.loss_scale / 2), 0
                optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
                raise DataError(
                    f"step {step}: loss sum {sums['loss']}, gradient norm {norm}: not finite, nothing was updated; "
                    f"lower lr, check the data of samples {batches.sample_ids(step)[1][:8].tolist()}, or avoid fp16"
                )
            progress.scaled_steps += 1
            if scales_loss and progress.scaled_steps == LOSS_SCALE_DOUBLES_AFTER:
                progress.loss_scale, progress.scaled_steps = progress.loss_scale * 2, 0
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            ids = batches.sample_ids(step)[1]
            progress.samples_sha256 = hashlib.sha256(progress.samples_sha256.encode() + ids.tobytes()).hexdigest()
            progress.train_seconds += time.perf_counter() - started

            is_end = progress.step == batches.steps
            means = {key: _global_sum(accelerator, value) / weight for key, value in sums.items()}
            write({"step": progress.step, "epoch": step // batches.steps_per_epoch, **means, "grad_norm": norm,
                   "lr_scale": scale, "seconds": round(progress.train_seconds, 3)})  # fmt: skip
            smooth = means["loss"] if smooth is None else 0.95 * smooth + 0.05 * means["loss"]
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            evaluates = is_end or (eval_every_steps is not None and progress.step % eval_every_steps == 0)
            if evaluates:
                evaluate_now()
            if evaluates or (save_every_steps is not None and progress.step % save_every_steps == 0):
                save()
            if _global_sum(accelerator, float(len(stop))) and not is_end:
                save()
                raise InterruptedRun(
                    f"{'/'.join(stop) or 'signal'} received: state after step {progress.step} of {batches.steps} is saved in "
                    f"{state_dir}; run the same command again to resume{': ' + resume_command if resume_command else ''}"
                )
    if best_metric is not None and progress.best_step not in (None, progress.step):
        checkpoint.load_weights(state_dir / f"step-{progress.best_step:08d}", raw_model)
        accelerator.print(
            f"best {best_metric} {progress.best_value:.4f} at step {progress.best_step}: taking these weights"
        )
    return progress


def _is_half(model: nn.Module) -> bool:
    """Whether weights are held in fp16; those that are trained must not be."""
    half = [name for name, one in model.named_parameters() if one.dtype == torch.float16 and one.requires_grad]
    if half:
        raise DataError(
            f"{len(half)} trained tensors are held in fp16 (e.g. {half[0]}), where small updates are lost: "
            "train adapters (model.lora), or set model.dtype=float32"
        )
    return any(one.dtype == torch.float16 for one in model.parameters())


def _divide_gradients(model: nn.Module, divisor: float) -> None:
    if divisor != 1.0:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(divisor)


def _global_sum(accelerator: Accelerator, value: float) -> float:
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=accelerator.device), "sum"))
