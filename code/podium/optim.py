"""Parameter groups, optimizers and the learning-rate schedule, once for every trainer."""

import math
from typing import Any

import torch
from torch import nn

from podium.errors import PrerequisiteError


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    lr_lora_a: float | None = None,
    lr_lora_b: float | None = None,
    lr_embeddings: float | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters as named groups: lora_a, lora_b, embeddings, no_decay (1-D), rest.

    Args:
        model: only parameters with requires_grad are taken; each lands in exactly one group.
        lr: for no_decay and rest, and the default of the others.
        weight_decay: of every group but no_decay.
        lr_lora_a: LoRA A matrices.
        lr_lora_b: LoRA B matrices (higher than A: Hayou et al. 2024, LoRA+).
        lr_embeddings: input embeddings.

    Returns:
        non-empty groups, each with `name`, `params`, `names`, `lr`, `peak_lr`, `weight_decay`.
    """
    rates = {
        "lora_a": lr if lr_lora_a is None else lr_lora_a,
        "lora_b": lr if lr_lora_b is None else lr_lora_b,
        "embeddings": lr if lr_embeddings is None else lr_embeddings,
        "no_decay": lr,
        "rest": lr,
    }
    members: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "lora_A" in name or "lora_embedding_A" in name:
            group = "lora_a"
        elif "lora_B" in name or "lora_embedding_B" in name:
            group = "lora_b"
        elif "embed_tokens" in name or "word_embeddings" in name:
            group = "embeddings"
        elif parameter.ndim < 2:
            group = "no_decay"
        else:
            group = "rest"
        members[group].append((name, parameter))
    return [
        {
            "name": group,
            "params": [parameter for _, parameter in pairs],
            "names": [name for name, _ in pairs],
            "lr": rates[group],
            "peak_lr": rates[group],
            "weight_decay": 0.0 if group == "no_decay" else weight_decay,
        }
        for group, pairs in members.items()
        if pairs
    ]


def make_optimizer(
    model: nn.Module, *, name: str, betas: list[float], eps: float, **rates: Any
) -> torch.optim.Optimizer:
    """AdamW (decoupled decay, Loshchilov & Hutter 2019), or bitsandbytes' 8-bit AdamW, over `parameter_groups`.

    Args:
        model: its trainable parameters are optimised.
        name: adamw | adamw_8bit.
        betas: of AdamW.
        eps: of AdamW.
        rates: learning rates and decay as in `parameter_groups`.

    Raises:
        PrerequisiteError: adamw_8bit without bitsandbytes.
        ValueError: unknown name.
    """
    groups = parameter_groups(model, **rates)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=tuple(betas), eps=eps)
    if name == "adamw_8bit":
        try:
            import bitsandbytes
        except ImportError:
            raise PrerequisiteError(
                "optimizer adamw_8bit needs bitsandbytes: pip install bitsandbytes==0.50.2, or set optimizer=adamw"
            ) from None
        return bitsandbytes.optim.AdamW8bit(groups, betas=tuple(betas), eps=eps)
    raise ValueError(f"unknown optimizer {name!r}; valid: adamw, adamw_8bit")


def learning_rate_scale(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Factor on the peak rate at `step` (0-based): linear warm-up, then cosine down to `final_fraction`."""
    warmup = max(1, math.ceil(total_steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's rate to scale × its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale
