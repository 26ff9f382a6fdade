"""Several draws per position, log p of what is drawn, the normaliser of another temperature."""

from typing import Any

import numpy as np
import pytest
import torch

from stages.config.record_kinds import Counts, Sampled, stored_record
from stages.scoring.philox import uniforms
from tests.stages.scoring.sampler_cases import (
    EXACT,
    ROWS,
    Draw,
    both,
    copy_of,
    draw_numba,
    draw_torch,
    entries,
    head,
    ids,
    in_head,
    intervals,
    no_candidates,
    softmax,
    weights,
)

DRAWN: list[dict[str, Any]] = [
    {"kind": "counts", "draws": 12},
    {"kind": "counts", "draws": 5, "sampler": "multinomial"},
    {"kind": "head_tail", "tau": 0.05, "candidates": 2},
]
drawn = pytest.mark.parametrize("table", DRAWN, ids=["systematic", "multinomial", "head_tail"])


def some_logits(R: int, V: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows from flat to peaked, a few impossible ids; realised ids; candidates."""
    rng = np.random.default_rng(seed)
    z_RV = (rng.choice([0.0, 0.5, 3.0], (R, 1)) * rng.standard_normal((R, V))).astype(np.float32)
    z_RV[::3, 1::4] = -np.inf
    return z_RV, np.zeros(R, np.int64), np.tile([0, V - 1], (R, 1))


# ---------------------------------------------------------------------------------------------
# Copies


@both
@drawn
@pytest.mark.parametrize("V", [1, 7, 300])
def test_each_copy_is_the_single_draw_of_its_own_uniforms(
    draw: Draw, table: dict[str, Any], V: int
) -> None:
    """So what is proved of one draw (unbiasedness, total weight) holds for every copy."""
    one = stored_record(table | {"logp": True})
    record = stored_record(table | {"logp": True, "copies": 3})
    R, count = 9, one.uniforms
    z_RV, tok_R, cand_RC = some_logits(R, V)
    cand_RC = cand_RC[:, : one.forced]
    u_RU = np.random.default_rng(1).random((R, record.uniforms))
    assert u_RU.shape[1] == 3 * count
    records = draw(z_RV, V, tok_R, cand_RC, u_RU, record)
    for m in range(3):
        u_m_RU = u_RU[:, m * count : (m + 1) * count]
        expected = draw(z_RV, V, tok_R, cand_RC, u_m_RU, one)
        found = copy_of(records, m).columns()
        assert found.keys() == expected.columns().keys()
        for name, values in expected.columns().items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@drawn
def test_more_copies_leave_the_first_draws_alone(table: dict[str, Any]) -> None:
    z_RV, tok_R, cand_RC = some_logits(20, 400)
    made = {}
    for copies in (1, 2, 16):
        record = stored_record(table | {"copies": copies})
        u_RU = uniforms(3, np.arange(20), np.arange(20), record.uniforms)
        made[copies] = draw_numba(z_RV, 400, tok_R, cand_RC, u_RU, record)
    for copies in (2, 16):
        for name, values in made[1].columns().items():
            np.testing.assert_array_equal(copy_of(made[copies], 0).columns()[name], values)
    for name, values in copy_of(made[2], 1).columns().items():
        np.testing.assert_array_equal(copy_of(made[16], 1).columns()[name], values)


@both
def test_copies_are_independent_by_enumeration(draw: Draw) -> None:
    """The mean of w w' over both uniforms of a position is p p', for every pair of ids."""
    z_V = np.array([2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -3.0], np.float32)
    V, record = len(z_V), Counts(draws=4, copies=2)
    p_V = softmax(z_V)
    middles, widths = intervals(np.cumsum(p_V) * record.draws)
    u_RU = np.stack([a.ravel() for a in np.meshgrid(middles, middles)], axis=1)
    chance_R = np.multiply.outer(widths, widths).ravel()
    R = len(u_RU)
    records = draw(np.tile(z_V, (R, 1)), V, np.zeros(R, int), no_candidates(R), u_RU, record)
    first_RV, second_RV = (weights(copy_of(records, m), record, V) for m in (0, 1))
    joint_VV = np.einsum("r,ri,rj->ij", chance_R, first_RV, second_RV)
    np.testing.assert_allclose(joint_VV, np.outer(p_V, p_V), atol=2 * EXACT)
    # the same draw twice is not independent of itself
    own_VV = np.einsum("r,ri,rj->ij", chance_R, first_RV, first_RV)
    assert np.abs(own_VV - np.outer(p_V, p_V)).max() > 100 * EXACT


@drawn
def test_copies_of_real_positions_are_uncorrelated(table: dict[str, Any]) -> None:
    """Through the generator: the covariance of two copies' weights vanishes as 1 / sqrt(R)."""
    R, z_V = 4000, ROWS["zipf"][:40]
    record = stored_record(table | {"copies": 4, "candidates": 0})
    u_RU = uniforms(11, np.arange(R) // 50, np.arange(R) % 50, record.uniforms)
    records = draw_numba(np.tile(z_V, (R, 1)), 40, np.zeros(R, int), no_candidates(R), u_RU, record)
    p_V = softmax(z_V)
    noise = [weights(copy_of(records, m), record, 40) - p_V for m in range(4)]
    spread_V = np.sqrt((noise[0] ** 2).mean(axis=0))
    for a in range(4):
        # standard error of a mean over R positions; 40 ids times 10 pairs, so 4.5 of them
        assert np.all(np.abs(noise[a].mean(axis=0)) <= 4.5 * spread_V / R**0.5 + 1e-6)
        for b in range(a):
            product_V = (noise[a] * noise[b]).mean(axis=0)
            assert np.all(np.abs(product_V) <= 4.5 * spread_V**2 / R**0.5 + 1e-9)


# ---------------------------------------------------------------------------------------------
# Log p of what is drawn


@both
@drawn
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_log_p_of_drawn_ids_is_exact(draw: Draw, table: dict[str, Any], temperature: float) -> None:
    R, V = 24, 500
    record = stored_record(table | {"logp": True, "temperature": temperature})
    z_RV, tok_R, cand_RC = some_logits(R, V)
    u_RU = np.random.default_rng(1).random((R, record.uniforms))
    records = draw(z_RV, V, tok_R, cand_RC, u_RU, record)
    log_p_RV = torch.log_softmax(torch.tensor(z_RV).double() / temperature, -1).numpy()
    row_E, head_E = np.repeat(np.arange(R), entries(records)), in_head(records)
    expected_S = log_p_RV[row_E[~head_E], ids(records)[~head_E]]
    assert records.tlp_S is not None
    assert len(expected_S) == (entries(records) - head(records)).sum()
    np.testing.assert_allclose(records.tlp_S, expected_S, atol=2e-5)
    without = draw(z_RV, V, tok_R, cand_RC, u_RU, record.model_copy(update={"logp": False}))
    assert "tlp" not in without.columns()
    np.testing.assert_array_equal(without.columns()["ids"], records.columns()["ids"])


@both
@pytest.mark.parametrize("table", [DRAWN[0], DRAWN[2] | {"candidates": 0}], ids=["counts", "tail"])
def test_log_p_makes_nonlinear_sums_unbiased(draw: Draw, table: dict[str, Any]) -> None:
    """The mean of sum w / p min(p, q) over all draws is sum min(p, q), one minus the TVD."""
    rng = np.random.default_rng(2)
    z_V = (1.5 * rng.standard_normal(80)).astype(np.float32)
    q_V, p_V = softmax(z_V + rng.standard_normal(80)), softmax(z_V)
    record = stored_record(table | {"logp": True})
    # log p of what is drawn tells tails apart; none is left out
    assert getattr(record, "tail_floor", 0) == 0
    once = draw(z_V[None], 80, np.zeros(1, int), no_candidates(1), np.array([[0.5]]), record)
    if isinstance(record, Counts):
        edges_V = np.cumsum(p_V) * record.draws
    else:
        tail_V = p_V.copy()
        tail_V[ids(once)[: head(once)[0]]] = 0
        edges_V = np.cumsum(tail_V) / tail_V.sum() * (entries(once) - head(once))[0]
    middles, widths = intervals(edges_V)
    R = len(middles)
    u_RU = middles[:, None]
    made = draw(np.tile(z_V, (R, 1)), 80, np.zeros(R, int), no_candidates(R), u_RU, record)
    row_E, head_E = np.repeat(np.arange(R), entries(made)), in_head(made)
    log_p_E = np.empty(len(row_E))
    log_p_E[head_E] = made.hlp_H if made.hlp_H is not None else 0
    log_p_E[~head_E] = made.tlp_S
    weight_E = weights(made, record, 80)[row_E, ids(made)]
    q_E = q_V[ids(made)]
    terms_E = weight_E * np.minimum(np.exp(log_p_E), q_E) / np.exp(log_p_E)
    sums_R = np.bincount(row_E, terms_E, R)
    assert widths @ sums_R == pytest.approx(np.minimum(p_V, q_V).sum(), abs=2e-5)
    # reading the sampled weights as probabilities, for want of log p, is off
    naive_R = np.bincount(row_E, np.minimum(weight_E, q_E), R)
    assert abs(widths @ naive_R - np.minimum(p_V, q_V).sum()) > 1e-3


# ---------------------------------------------------------------------------------------------
# The normaliser of a second temperature


@both
@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail", "top_k"])
@pytest.mark.parametrize(("recorded", "loss"), [(1.0, 2.0), (1.0, 0.5), (0.6, 4.0), (1.0, 1.0)])
def test_the_second_normaliser_is_exact(
    draw: Draw, kind: str, recorded: float, loss: float
) -> None:
    R, V = 12, 3000
    record = stored_record(
        {"kind": kind, "temperature": recorded, "loss_temperature": loss, "candidates": 0}
    )
    z_RV, tok_R, _ = some_logits(R, V)
    u_RU = np.full((R, record.uniforms), 0.3)
    records = draw(z_RV, V, tok_R, no_candidates(R), u_RU, record)
    log_p_RV = torch.log_softmax(torch.tensor(z_RV).double() / recorded, -1)
    expected_R = torch.logsumexp(log_p_RV * (recorded / loss), -1).numpy()
    assert records.lz_R is not None
    np.testing.assert_allclose(records.lz_R, expected_R, atol=2e-5)
    # tempering log p with it gives the distribution at the loss temperature
    lp_R = records.lp_R * (recorded / loss) - records.lz_R
    tempered_R = torch.log_softmax(torch.tensor(z_RV).double() / loss, -1)[:, 0].numpy()
    np.testing.assert_allclose(lp_R, tempered_R, atol=4e-5)


def test_the_second_normaliser_of_extreme_rows() -> None:
    V = 2**17 + 3
    z_RV = np.zeros((4, V), np.float32)
    z_RV[1, 5] = 80.0  # nearly one-hot: its power sum still counts the others
    z_RV[2, 1:] = -np.inf
    z_RV[3] = np.linspace(-3e4, 3e4, V, dtype=np.float32)
    record = Sampled(loss_temperature=8.0)
    tok_R, u_RU = np.array([0, 5, 0, V - 1]), np.empty((4, 0))
    made = [
        draw(z_RV, V, tok_R, no_candidates(4), u_RU, record) for draw in (draw_numba, draw_torch)
    ]
    log_p_RV = torch.log_softmax(torch.tensor(z_RV).double(), -1)
    expected_R = torch.logsumexp(log_p_RV / 8.0, -1).numpy()
    for records in made:
        assert records.lz_R is not None
        np.testing.assert_allclose(records.lz_R, expected_R, atol=2e-5, rtol=1e-6)


@both
def test_without_a_loss_temperature_there_is_no_normaliser(draw: Draw) -> None:
    records = draw(
        np.zeros((2, 9), np.float32), 9, np.zeros(2, int), no_candidates(2), np.empty((2, 0)),
        Sampled(),
    )  # fmt: skip
    assert set(records.columns()) == {"lp", "ent"}
