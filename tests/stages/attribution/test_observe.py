"""The terms of the tests, by enumeration of everything that could have been drawn."""

import numpy as np
import pytest
import torch

from stages.attribution.observe import CLASSES, Observed, classes, observe
from stages.config.data import Sampling

V = 11
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_p=0.8),
    Sampling(top_k=3),
    Sampling(temperature=1.7, top_k=6, top_p=0.7),
]


def logits(rows: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (rows, V))).float()


def drawn_from(z_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[V] probabilities an engine draws with: temperature, then top-k, then top-p, in NumPy."""
    e_V = np.exp((z_V.double().numpy() - float(z_V.max())) / sampling.temperature)
    order = np.argsort(-e_V)[: sampling.top_k or V]
    p_K = e_V[order] / e_V[order].sum()
    kept = np.cumsum(p_K) - p_K < sampling.top_p
    p_V = np.zeros(V)
    p_V[order[kept]] = p_K[kept] / p_K[kept].sum()
    return torch.from_numpy(p_V)


def every_token(z_V: torch.Tensor, sampling: Sampling) -> Observed:
    """The same position once for every token that might stand there."""
    return observe(z_V.expand(V, V), torch.arange(V), classes(V), sampling, 1e-3)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_terms_are_the_moments_of_what_an_engine_draws_from(sampling: Sampling) -> None:
    for z_V in logits(20):
        p_V = drawn_from(z_V, sampling)
        seen = every_token(z_V, sampling)
        held_V = p_V > 0
        assert torch.equal(seen.drawn_R, held_V)
        assert torch.allclose(seen.lp_R.exp().double(), p_V, atol=1e-6)
        excess_V = torch.where(held_V, seen.lp_R + seen.ent_R, 0.0).double()
        assert float((p_V * excess_V).sum()) == pytest.approx(0, abs=1e-5)
        assert float((p_V * excess_V**2).sum()) == pytest.approx(float(seen.var_R[0]), abs=1e-4)
        assert float((p_V * excess_V**3).sum()) == pytest.approx(float(seen.third_R[0]), abs=1e-3)
        share_B = torch.zeros(CLASSES).double().index_add_(0, classes(V), p_V)
        assert torch.allclose(seen.share_RB[0].double(), share_B, atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_impossible_is_what_lies_clearly_outside(sampling: Sampling) -> None:
    for z_V in logits(20, seed=1):
        seen = every_token(z_V, sampling)
        # Random logits are nowhere within the slack of the edge: outside is clearly outside.
        assert torch.equal(seen.impossible_R, ~seen.drawn_R)


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.75)], ids=str)
def test_a_token_at_the_very_edge_is_neither_drawn_nor_impossible(sampling: Sampling) -> None:
    p_V = torch.tensor([0.5, 0.25002, 0.24998] + [0.0] * (V - 3))  # 0.75002 above the third
    seen = every_token(p_V.log(), sampling)
    assert seen.drawn_R[:3].tolist() == [True, True, False]
    assert seen.impossible_R[:4].tolist() == [False, False, False, True]


def test_greedy_leaves_nothing_to_chance() -> None:
    z_V = torch.zeros(V)
    z_V[4], z_V[6] = 5.0, 5.0 - 1e-4
    seen = every_token(z_V, Sampling(temperature=0))
    assert not seen.drawn_R.any()
    assert (~seen.impossible_R).nonzero().flatten().tolist() == [4, 6]
    assert torch.allclose(seen.lp_R, z_V.log_softmax(0))


def test_ids_the_model_rules_out_are_impossible_and_spoil_nothing() -> None:
    z_V = logits(1)[0]
    z_V[3] = -torch.inf
    seen = every_token(z_V, Sampling())
    assert seen.impossible_R.nonzero().flatten().tolist() == [3]
    assert not seen.drawn_R[3]
    assert torch.stack([seen.ent_R, seen.var_R, seen.third_R]).isfinite().all()


def test_classes_spread_the_vocabulary() -> None:
    counts = torch.bincount(classes(151_936), minlength=CLASSES)
    assert counts.min() > 0.9 * 151_936 / CLASSES
