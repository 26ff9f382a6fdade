"""Speculative decoding: the arithmetic of the page, and vLLM itself on tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.draft_page import FIGURES, PAGE, Outcome, expected_speed, tables
from benchmarks.speculative import Setting, expanded, measure, nats
from tests.world import write_model

PROMPTS = [[3, 4, 5, 6], [7, 8, 9]] * 4


def test_expected_speed_is_that_of_a_simulation() -> None:
    """Theorem 3.8 of arXiv 2211.17192, against proposals that are accepted by chance."""
    acceptance, ahead, cost = 0.6, 3, 0.2
    draws = torch.rand(100_000, ahead, generator=torch.manual_seed(0)) < acceptance
    passes = 1.0 + draws.long().cumprod(dim=1).sum(dim=1).double().mean().item()
    found = expected_speed(acceptance, ahead, cost)
    assert found == pytest.approx(passes / (1 + ahead * cost), rel=0.01)
    assert expected_speed(0.0, 1, 0.5) == pytest.approx(1 / 1.5)
    assert expected_speed(1.0, 2, 0.0) == 3.0


def test_values_of_prompts_are_repeated_for_their_tokens() -> None:
    found = expanded(torch.tensor([0.5, 0.0, 2.0]), torch.tensor([2, 3, 6]), 6, 0, 1)
    assert found.tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert found.dtype == torch.float32


def test_figures_of_an_outcome() -> None:
    one = Outcome("x", 2, 1.0, tokens=30, seconds=2.0, rounds=20, accepted=(10, 5), nats=1, same=0)
    assert one.speed == 15.0
    assert one.first == 0.5
    assert one.first_error == pytest.approx(0.5 / 20**0.5)
    assert one.length == 1.75


def test_nats_are_those_of_the_model(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", 1)
    setting = Setting(target, "float32", PROMPTS[:2], 4)
    one = [nats(setting, [[5], [6]]), nats(Setting(target, "float32", PROMPTS[:1], 4), [[5]])]
    other = nats(Setting(target, "float32", PROMPTS[1:2], 4), [[6]])
    assert one[0] == pytest.approx((one[1] + other) / 2, rel=1e-5)
    assert one[1] != pytest.approx(other)


def test_the_page_shows_the_figures_that_are_kept_beside_it() -> None:
    if not FIGURES.exists():
        pytest.skip("`make draft` has not been run")
    assert tables(json.loads(FIGURES.read_text())) in PAGE.read_text()


@pytest.mark.real
def test_a_model_that_drafts_for_itself_is_always_accepted(tmp_path: Path) -> None:
    """So it is not with vLLM 0.32 as it comes, above temperature 0."""
    shape: dict[str, Any] = {"head_dim": 32, "context": 128}  # heads that vLLM has a kernel for
    target, other = (write_model(tmp_path / f"{seed}", seed, **shape) for seed in (1, 2))
    setting = Setting(target, "float32", PROMPTS, 16)
    plain: dict[float, list[list[int]]] = {}
    measure(setting, target, None, plain)
    for found in measure(setting, target, ("itself", target, 2), plain):
        assert found.accepted[0] == found.rounds
        if found.temperature == 0:
            assert found.same == 1.0
    sampled, greedy = measure(setting, target, ("another", other, 2), plain)
    assert greedy.same == 1.0
    assert 0 < sampled.first < 0.9
