"""The two tests under their hypothesis, and against a model that is right on average only."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from stages.attribution.evidence import Evidence, chi_square_tail, unskewed
from stages.attribution.observe import classes, observe
from stages.config.data import Sampling
from stages.counter import uniform

V = 24
CONTEXTS = 6


def draw(p_CV: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and tokens of a first-order chain: the token decides the next context."""
    cdf_CV, u_T = p_CV.cumsum(1), uniform(seed, np.arange(count))
    context_T, tok_T = np.zeros(count, int), np.zeros(count, int)
    context = 0
    for t in range(count):
        context_T[t] = context
        tok_T[t] = min(int(np.searchsorted(cdf_CV[context], u_T[t] * cdf_CV[context, -1])), V - 1)
        context = tok_T[t] % CONTEXTS
    return context_T, tok_T


def evidence(z_CV: torch.Tensor, context_T: Any, tok_T: Any) -> Evidence:
    out, class_V, tok = Evidence(), classes(V), torch.from_numpy(tok_T)
    for start in range(0, len(tok), 500):
        chunk = slice(start, start + 500)
        seen = observe(z_CV[context_T[chunk]], tok[chunk], class_V, Sampling(), 1e-3)
        out.add(seen, class_V[tok[chunk]], torch.from_numpy(context_T[chunk]))
    return out


def random_logits(seed: int, spread: float) -> torch.Tensor:
    z_CV = np.random.default_rng(seed).normal(0, spread, (CONTEXTS, V))
    return torch.from_numpy(z_CV).float()


def probabilities(z_CV: torch.Tensor) -> np.ndarray:
    return z_CV.double().softmax(1).numpy()


def distance_from_uniform(values: list[float]) -> float:
    """Kolmogorov-Smirnov statistic times sqrt(n); above 1.95 once in a thousand times."""
    n, ordered = len(values), np.sort(values)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))


@pytest.fixture(scope="module")
def under_the_hypothesis() -> list[Evidence]:
    z_CV = random_logits(0, 2.0)
    p_CV = probabilities(z_CV)
    return [evidence(z_CV, *draw(p_CV, 1500, seed)) for seed in range(120)]


def test_z_is_standard_normal(under_the_hypothesis: list[Evidence]) -> None:
    z = np.array([one.z for one in under_the_hypothesis])
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert 0.75 < z.std() < 1.25
    assert np.abs(z).max() < 4


def test_p_values_are_uniform(under_the_hypothesis: list[Evidence]) -> None:
    assert distance_from_uniform([one.p_mean or 0.0 for one in under_the_hypothesis]) < 1.95
    assert distance_from_uniform([one.p_classes or 0.0 for one in under_the_hypothesis]) < 1.95


def test_degrees_of_freedom_are_those_of_the_contexts(under_the_hypothesis: list[Evidence]) -> None:
    """At most 15 in each context; with an expected count of 5 needed, fewer."""
    for one in under_the_hypothesis:
        assert 10 < one.chi_square()[1] <= 15 * CONTEXTS


def test_rare_surprises_are_allowed_for() -> None:
    """One token in two hundred is a surprise of five nats: z is skewed, its p-value is not."""
    positions, surprise, trials = 4000, 1 / 200, 2000
    z_CV = torch.full((2, V), -torch.inf)
    z_CV[:, 0], z_CV[:, 1] = math.log(1 - surprise), math.log(surprise)
    seen = observe(z_CV, torch.tensor([0, 1]), classes(V), Sampling(), 1e-3)
    usual, unusual = (seen.lp_R + seen.ent_R).tolist()
    variance, third = positions * float(seen.var_R[0]), positions * float(seen.third_R[0])
    plain = allowed = 0
    for hits in np.random.default_rng(0).binomial(positions, surprise, trials):
        excess = hits * unusual + (positions - hits) * usual
        one = Evidence(excess=excess, variance=variance, third=third)
        assert one.z is not None
        assert -0.3 < one.skewness < -0.15
        plain += one.z < -2.8
        allowed += unskewed(one.z, one.skewness) < -2.8
    expected = trials * 0.5 * math.erfc(2.8 / math.sqrt(2))  # 5.1
    assert allowed < expected + 3 * math.sqrt(expected)
    assert plain > allowed


def test_a_model_right_on_average_is_told_apart_by_the_classes() -> None:
    """Perturbed and flattened until log p + H has mean zero: the mean is blind, the classes see."""
    truth = random_logits(3, 2.0)
    context_T, tok_T = draw(probabilities(truth), 6000, seed=9)
    wrong = truth + torch.from_numpy(np.random.default_rng(4).normal(0, 0.35, truth.shape)).float()
    low, high = 0.5, 2.0
    for _ in range(40):
        temperature = (low + high) / 2
        found = evidence(wrong / temperature, context_T, tok_T)
        low, high = (temperature, high) if found.excess < 0 else (low, temperature)
    assert abs(found.z or 9.0) < 0.01
    assert (found.p_classes or 0.0) < 1e-6
    honest = evidence(truth, context_T, tok_T)
    assert (honest.p_mean or 0.0) > 1e-3
    assert (honest.p_classes or 0.0) > 1e-3


def test_chunks_do_not_matter() -> None:
    z_CV = random_logits(0, 2.0)
    context_T, tok_T = draw(probabilities(z_CV), 1200, 0)
    together, class_V = Evidence(), classes(V)
    tok = torch.from_numpy(tok_T)
    seen = observe(z_CV[context_T], tok, class_V, Sampling(), 1e-3)
    together.add(seen, class_V[tok], torch.from_numpy(context_T))
    apart = evidence(z_CV, context_T, tok_T)
    assert apart.z == pytest.approx(together.z, rel=1e-6)
    assert apart.chi_square() == pytest.approx(together.chi_square(), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "freedom", "tail"), [(3.841459, 1, 0.05), (18.30704, 10, 0.05), (149.4493, 100, 1e-3)]
)
def test_the_tail_of_chi_square(value: float, freedom: int, tail: float) -> None:
    assert chi_square_tail(value, freedom) == pytest.approx(tail, rel=1e-4)


def test_unskewed_is_the_identity_without_skew() -> None:
    assert unskewed(2.5, 0.0) == 2.5
    assert unskewed(2.5, 1e-5) == pytest.approx(2.5, abs=1e-4)
    assert unskewed(-3.0, -0.5) > -3.0 > unskewed(-3.0, 0.5)


def test_nothing_drawn_means_no_test() -> None:
    empty = Evidence()
    assert (empty.z, empty.p_mean, empty.p_classes, empty.chi_square()) == (
        None,
        None,
        None,
        (0, 0),
    )
