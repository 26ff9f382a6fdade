"""`top_k` records: the right ids in the right order, exact log p, and the mass that is left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.record_kinds import TopK
from stages.scoring.drawn import LOG_FLOOR
from tests.stages.scoring.sampler_cases import (
    ROWS,
    Draw,
    assert_unbiased,
    both,
    draw_numba,
    entries,
    head,
    ids,
    no_candidates,
    softmax,
    weights,
)


def check(draw: Draw, z_RW: np.ndarray, V: int, record: TopK) -> None:
    R, K = len(z_RW), min(record.k, V)
    z_RV = z_RW[:, :V]
    records = draw(z_RW, V, z_RV.argmax(axis=1), no_candidates(R), np.empty((R, 0)), record)
    assert entries(records).tolist() == head(records).tolist() == [K] * R
    expected_RV = np.argsort(-z_RV, axis=1, kind="stable")  # equal ones by ascending id
    found_RK = ids(records).reshape(R, K)
    np.testing.assert_array_equal(found_RK, expected_RV[:, :K])
    p_RV = softmax(z_RV / record.temperature)
    with np.errstate(divide="ignore"):
        log_p_RK = np.maximum(np.log(np.take_along_axis(p_RV, found_RK, 1)), LOG_FLOOR)
    assert records.hlp_H is not None
    near_RK = log_p_RK > -600  # below, the float64 reference itself is zero
    np.testing.assert_allclose(
        records.hlp_H.reshape(R, K)[near_RK], log_p_RK[near_RK], atol=3e-5, rtol=1e-6
    )
    outside_R = np.take_along_axis(p_RV, expected_RV[:, K:], 1).sum(axis=1)
    assert records.rest_R is not None
    np.testing.assert_allclose(records.rest_R, outside_R, rtol=2e-5, atol=1e-30)


@both
@pytest.mark.parametrize("k", [1, 2, 50, 200])
@pytest.mark.parametrize("name", ROWS)
def test_the_k_likeliest_ids_in_order(draw: Draw, name: str, k: int) -> None:
    check(draw, ROWS[name][None], len(ROWS[name]), TopK(k=k, temperature=1.3))


@st.composite
def cases(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> tuple[np.ndarray, int, TopK]:
    V = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    R, pad = 2, draw(st.sampled_from([0, 1, 64]))
    z_RW = rng.standard_normal((R, V + pad)).astype(np.float32)
    shape = draw(st.sampled_from(["normal", "ascending", "ties", "holes", "far apart"]))
    if shape == "ascending":
        z_RW.sort(axis=1)
    elif shape == "ties":
        z_RW = z_RW.round()
    elif shape == "holes":
        z_RW[rng.random(z_RW.shape) < 0.8] = -np.inf
        z_RW[:, 0] = 0
    elif shape == "far apart":  # most of e is flushed to zero, yet the order must hold
        z_RW *= 100
    z_RW[:, V:] = rng.choice(np.array([np.nan, np.inf, 100], np.float32), (R, pad))
    return z_RW, V, TopK(k=draw(st.sampled_from([1, 7, 50, 200])))


@both
@settings(max_examples=80, deadline=None)
@given(case=cases(st.integers(1, 900)))
def test_any_small_vocabulary(draw: Draw, case: tuple[np.ndarray, int, TopK]) -> None:
    check(draw, *case)


@both
@settings(max_examples=5, deadline=None)
@given(case=cases(st.sampled_from([2**17 + 1, 2**20])))
def test_any_large_vocabulary(draw: Draw, case: tuple[np.ndarray, int, TopK]) -> None:
    check(draw, *case)


@pytest.mark.parametrize("name", ["normal, sd 0.7", "zipf"])
def test_top_k_is_biased_where_anything_is_left_out(name: str) -> None:
    z_V, record = ROWS[name], TopK(k=12)
    made = draw_numba(
        z_V[None], len(z_V), np.zeros(1, int), no_candidates(1), np.empty((1, 0)), record
    )
    p_V = softmax(z_V)
    raw_V = weights(made, record, len(z_V))[0]
    for kept_V in (raw_V, raw_V / raw_V.sum()):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_unbiased(kept_V, p_V)
    assert raw_V.sum() + made.rest_R == pytest.approx(1, abs=1e-5)  # type: ignore[reportOperatorIssue]
