"""Speculative decoding: the arithmetic of the page, and vLLM itself on tiny models."""

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.draft_page import FIGURES, PAGE, Outcome, expected_speed, findings, tables
from benchmarks.speculative import (
    Draft,
    Run,
    Setting,
    difference,
    expanded,
    measure,
    nats,
    outcomes,
)
from stages.reporting.table import Row
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
    one = Outcome(
        "x", 2, 1.0, tokens=30, seconds=2.0, rounds=20, accepted=(10, 5), first_error=0.1, same=0
    )
    assert one.speed == 15.0
    assert one.first == 0.5
    assert one.length == 1.75


def setting(target: Path, prompts: list[list[int]], greedy: int = 0) -> Setting:
    return Setting(target, "float32", prompts, 4, greedy)


def run(*answers: list[int], counts: list[list[int]] | None = None) -> Run:
    draft = Draft("x", Path("x"), 1) if counts else None
    return Run(draft, 1.0, answers, 1.0, counts or [[0]] * len(answers))


def test_nats_are_those_of_the_model(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", 1)
    ((first, second),) = nats(setting(target, PROMPTS[:2]), [run([5, 2], [6])])
    assert (first.shape, second.shape) == ((2,), (1,))
    ((alone,),) = nats(setting(target, [[*PROMPTS[0], 5]]), [run([2])])
    assert first[1] == pytest.approx(alone[0], rel=1e-5)
    every = [nats(setting(target, [PROMPTS[1]]), [run([i])])[0][0][0] for i in range(12)]
    assert sum(math.exp(-one) for one in every) == pytest.approx(1.0, rel=1e-4)
    assert every[6] == pytest.approx(second[0], rel=1e-5)


def test_a_difference_is_paired_over_prompts() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(2, 1, 50), draw.normal(1, 1, 50)
    found = difference([one[None] for one in ours], [one[None] for one in theirs])
    apart = (ours - theirs).tolist()
    assert found.mean == pytest.approx(fmean(apart))
    assert found.error == pytest.approx(stdev(apart) / 50**0.5)
    shifted = difference([np.array([one, one]) + 3 for one in ours], [one[None] for one in ours])
    assert shifted.mean == pytest.approx(3.0)
    assert shifted.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_a_difference_is_its_spread_over_repetitions() -> None:
    """Answers of random length to prompts that differ: errors over tokens would be too small."""
    draw = np.random.default_rng(1)

    def once() -> tuple[float, float]:
        easy = draw.normal(0, 1, 40)
        lengths = [draw.integers(1, 30, 40) for _ in range(2)]
        pair = [[draw.normal(e, 1, n) for e, n in zip(easy, one, strict=True)] for one in lengths]
        found = difference(*pair)
        assert found.error is not None
        return found.mean, found.error

    means, errors = np.array([once() for _ in range(400)]).T
    assert abs(means.mean()) < 4 * means.std() / 400**0.5
    assert errors.mean() == pytest.approx(means.std(), rel=0.15)


def test_the_error_of_an_acceptance_is_over_prompts(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", 1)
    answers = [[5, 6], [6], [7], [5]]
    one_kind = [[10, 10], [10, 0], [10, 10], [10, 0]]  # rounds, accepted: a prompt decides it
    mixed = [[10, 5]] * 4
    runs = [run(*answers), run(*answers, counts=one_kind), run(*answers, counts=mixed)]
    alone, first, second = outcomes(setting(target, (PROMPTS * 2)[:4]), runs)
    assert alone.first_error is None
    assert first.first == second.first == 0.5
    assert first.first_error == pytest.approx(1 / 12**0.5)
    assert second.first_error == 0.0
    assert first.nats == alone.nats
    assert first.nats_gap == first.nats_error == 0.0


def shown(name: str, accepted: int, nats_gap: float = 0.1, tokens: int = 100) -> Outcome:
    plain = name == ""
    return Outcome(
        name, 0 if plain else 2, 1.0, tokens=tokens, seconds=5.0, rounds=0 if plain else 100,
        accepted=() if plain else (accepted, 5), first_error=0.04, same=0.1, nats=1.5,
        nats_gap=nats_gap, nats_error=0.1,
    )  # fmt: skip


def test_what_follows_from_the_figures() -> None:
    accepted = {
        "teacher": 1.0,
        "sft": 0.2,
        "tvd": 0.35,
        "live": 0.42,
        "forward_kl": 0.4,
        "sft, synthetic": 0.1,
        "forward_kl, synthetic": 0.3,
    }
    rows: dict[str, Row] = {
        name: {"model": name, "acceptance": value, "acceptance_se": 0.03}
        for name, value in accepted.items()
    }
    ran = [shown("", 0), shown("forward_kl", 40, tokens=120), shown("live", 45, nats_gap=-0.25)]
    seconds = {"rollouts": 10.0, "teacher-logits": 20.0, "train.forward_kl": 30.0}
    facts = {"main": "forward_kl", "seconds": seconds | {"train.live": 90.0}}
    objectives, live, prompts, sampled, clock = findings(rows, ran, facts, cost=0.3)
    assert objectives.endswith(
        "live 42.0 ± 3.0, forward_kl 40.0 ± 3.0, tvd 35.0 ± 3.0 %; after SFT alone 20.0 ± 3.0 %."
    )
    assert "-2.0 ± 4.2 points on the target's answers and -5.0 ± 5.7 in vLLM" in live
    assert "60 s for rollouts, records and training" in live
    assert "50 % of the acceptance after SFT and 75 % after forward_kl" in prompts
    assert "+10.0 ± 4.2 points on the target's answers." in prompts
    assert "(live, 2 ahead) is 2.5 standard errors away" in sampled
    assert "forward_kl with 2 ahead, decodes 1.20 times as fast" in clock


def test_the_page_shows_the_figures_that_are_kept_beside_it() -> None:
    if not FIGURES.exists():
        pytest.skip("`make draft` has not been run")
    assert tables(json.loads(FIGURES.read_text())) in PAGE.read_text()


@pytest.mark.real
def test_a_model_that_drafts_for_itself_is_always_accepted(tmp_path: Path) -> None:
    """So it is not with vLLM 0.32 as it comes, above temperature 0."""
    shape: dict[str, Any] = {"head_dim": 32, "context": 128}  # heads that vLLM has a kernel for
    target, other = (write_model(tmp_path / f"{seed}", seed, **shape) for seed in (1, 2))
    prompts = PROMPTS * 6
    ours = Setting(target, "float32", prompts, 16, greedy=8)
    runs = measure(ours, target)
    for name, model in (("itself", target), ("another", other)):
        runs += measure(ours, target, Draft(name, model, 2))
    found = {(one.draft, one.temperature): one for one in outcomes(ours, runs)}
    for temperature in (1.0, 0.0):
        assert found["itself", temperature].accepted[0] == found["itself", temperature].rounds
    assert found["itself", 0.0].same == found["another", 0.0].same == 1.0
    other_one = found["another", 1.0]
    assert 0 < other_one.first < 0.9
    assert other_one.nats_gap is not None
    assert other_one.nats_error is not None
    assert abs(other_one.nats_gap) < 4 * other_one.nats_error
