"""AdamW groups and learning-rate schedules."""

from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn

from stages.config.training import Training
from stages.training.optim import adamw, clip_gradients, rate_at, schedule, set_rate


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_decay_starts_at_the_peak_and_ends_at_the_final_ratio(
    shape: Literal["linear", "cosine"],
) -> None:
    shares = [schedule(s, 50, shape=shape, warmup=0.2, final_ratio=0.1) for s in range(50)]
    assert shares[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert shares[10] == 1.0
    assert shares[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(shares[10:]))


def test_shapes_differ_where_they_should() -> None:
    linear, cosine, constant = (
        schedule(25, 101, shape=shape) for shape in ("linear", "cosine", "constant")
    )
    assert linear == pytest.approx(0.75)
    assert cosine == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert constant == 1.0


def test_a_single_step_runs_at_the_peak() -> None:
    assert schedule(0, 1, shape="cosine") == 1.0


def test_rate_is_the_share_of_the_configured_peak() -> None:
    config = Training(steps=11, learning_rate=0.5, schedule="linear", final_ratio=0.2)
    assert rate_at(0, 11, config) == 0.5
    assert rate_at(10, 11, config) == pytest.approx(0.1)


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = adamw(model, Training(steps=1, learning_rate=0.1, weight_decay=0.5))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    for name, weight in model.named_parameters():
        expected = before[name] * (0.95 if weight.ndim == 2 else 1.0)
        torch.testing.assert_close(weight.detach(), expected)


def test_frozen_weights_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    groups = adamw(model, Training(steps=1)).param_groups
    assert [len(group["params"]) for group in groups] == [0, 1]


def test_set_rate_reaches_every_group() -> None:
    optimiser = adamw(nn.Linear(2, 2), Training(steps=1))
    set_rate(optimiser, 0.25)
    assert [group["lr"] for group in optimiser.param_groups] == [0.25, 0.25]


def test_clipping_returns_the_norm_before_and_caps_it() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], 1.0).item() == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
