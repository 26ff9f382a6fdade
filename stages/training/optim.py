"""AdamW and the learning-rate schedules."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from stages.config.training import Training

Shape = Literal["constant", "linear", "cosine"]


def adamw(model: nn.Module, config: Training) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; norms and biases are not decayed.

    Decay pulls weights towards zero, which is meant for matrices: a norm's gain belongs near one.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in trainable if weight.ndim >= 2]
    vectors = [weight for weight in trainable if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use learning rate `rate` from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def schedule(
    step: int, steps: int, *, shape: Shape, warmup: float = 0.0, final_ratio: float = 0.0
) -> float:
    """Share of the peak learning rate used by optimiser step `step` (0-based) of `steps`.

    It rises linearly over the first `warmup` share of the steps (the first step already moves),
    then follows `shape` down to exactly `final_ratio` at the last step; `constant` stays at 1.
    """
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if shape == "constant":
        return 1.0
    # A single step after warm-up has nothing to decay over and runs at the peak.
    progress = (step - warm) / max(1, steps - 1 - warm)
    fall = progress if shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - (1.0 - final_ratio) * fall


def progress(step: int, steps: int) -> float:
    """Share of training before optimiser step `step` (0-based): 0 at the first, 1 at the last."""
    return step / max(1, steps - 1)


def rate_at(step: int, steps: int, config: Training) -> float:
    """Learning rate of optimiser step `step` (0-based) under `config`."""
    share = schedule(
        step,
        steps,
        shape=config.schedule,
        warmup=config.warmup,
        final_ratio=config.final_ratio,
    )
    return config.learning_rate * share


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients, whole or sharded, by `factor`."""
    for weight in parameters:
        if weight.grad is not None:
            weight.grad.mul_(factor)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; returns the norm before.

    Of weights cut over several processes, it is the norm of the whole gradient.
    """
    norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    gather = getattr(norm, "full_tensor", None)  # a DTensor: every process knows a part of it
    return norm if gather is None else gather()
