"""Rules every record obeys, over generated rows and at the edges of the arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.record_kinds import Counts, Drawn, HeadTail, Record, stored_record
from stages.scoring import sampler_kernels
from stages.scoring.drawn import Records
from stages.scoring.philox import uniforms
from tests.stages.scoring.sampler_cases import (
    ROWS,
    Draw,
    assert_unbiased,
    both,
    copy_of,
    draw_numba,
    entries,
    head,
    ids,
    in_head,
    mean_weight,
    no_candidates,
    softmax,
    weights,
)


def check_rules(
    z_RW: np.ndarray, V: int, cand_RC: np.ndarray, record: Drawn, records: Records
) -> None:
    for m in range(record.copies):
        check_copy(z_RW, V, cand_RC, record, copy_of(records, m))


def check_copy(
    z_RW: np.ndarray, V: int, cand_RC: np.ndarray, record: Record, records: Records
) -> None:
    nu_R = entries(records)
    assert int(nu_R.min()) >= 1
    total_R = weights(records, record, V).sum(axis=1)
    np.testing.assert_allclose(total_R, 1, atol=2e-6 if record.kind == "head_tail" else 1e-12)
    p_RV = softmax(z_RW[:, :V] / record.temperature)
    if records.lz_R is not None:
        power_R = (p_RV ** (record.temperature / 2.0)).sum(axis=1)
        np.testing.assert_allclose(records.lz_R, np.log(power_R), atol=3e-5)
    if records.tlp_S is not None:
        row_S = np.repeat(np.arange(len(nu_R)), nu_R - head(records))
        drawn_S = ids(records)[~in_head(records)]
        np.testing.assert_allclose(records.tlp_S, np.log(p_RV[row_S, drawn_S]), atol=1e-4)
    stop_R = np.cumsum(nu_R)
    for r, (p_V, stop) in enumerate(zip(p_RV, stop_R, strict=True)):
        ids_K = ids(records)[stop - nu_R[r] : stop]
        assert len(set(ids_K)) == len(ids_K)
        assert ids_K.max() < V
        if isinstance(record, HeadTail):
            check_head_tail(p_V, set(cand_RC[r]), ids_K, int(head(records)[r]), record)


def check_head_tail(
    p_V: np.ndarray, forced: set, ids_K: np.ndarray, nh: int, record: HeadTail
) -> None:
    first, tail = ids_K[:nh], ids_K[nh:]
    tau = record.known_tau
    assert np.all(np.diff(p_V[first]) <= 1e-9)
    assert np.all(np.diff(tail) > 0)
    assert forced <= set(first)
    assert set(np.flatnonzero(p_V >= tau * (1 + 1e-5))) <= set(first)
    assert len(ids_K) <= 1 / tau + 1 + len(forced)
    rest = np.delete(p_V, first).sum()
    if rest < record.tail_floor * (1 + 1e-5):
        assert len(tail) <= 1
        assert np.all(p_V[tail] > 0)
    elif len(tail):
        t = rest / len(tail)
        assert t <= tau * (1 + 1e-5)
        assert np.all(np.delete(p_V, first) <= t * (1 + 1e-5))
        assert np.all(p_V[[i for i in first if i not in forced]] > t * (1 - 1e-5))
        assert np.all(p_V[tail] > 0)
    else:
        assert rest <= 2 * sampler_kernels.REST_FLOOR


@st.composite
def cases(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> tuple:
    V = draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    R, pad = 3, draw(st.sampled_from([0, 1, 64]))
    shape = draw(st.sampled_from(["normal", "uniform", "one hot", "ties", "holes"]))
    z_RW = (
        draw(st.sampled_from([0.0, 0.3, 2.0, 12.0])) * rng.standard_normal((R, V + pad))
    ).astype(np.float32)
    if shape == "uniform":
        z_RW[:] = rng.standard_normal()
    elif shape == "one hot":
        z_RW[np.arange(R), rng.integers(0, V, R)] = 60
    elif shape == "ties":
        z_RW = z_RW.round()
    elif shape == "holes":
        z_RW[rng.random(z_RW.shape) < 0.5] = -np.inf
        z_RW[:, 0] = 0
    z_RW[:, V:] = rng.choice(np.array([np.nan, np.inf, 100], np.float32), (R, pad))
    record = stored_record(
        {
            "kind": draw(st.sampled_from(["counts", "head_tail"])),
            "sampler": draw(st.sampled_from(["systematic", "multinomial"])),
            "draws": draw(st.sampled_from([1, 50, 255])),
            "tau": draw(st.sampled_from([1 / 128, 0.023, 0.3, 0.9])),
            "candidates": draw(st.sampled_from([0, 1, 4, 64])),
            "temperature": draw(st.sampled_from([1.0, 0.6, 3.0])),
            "loss_temperature": draw(st.sampled_from([None, 2.0])),
            "copies": draw(st.sampled_from([1, 1, 3, 16])),
            "logp": draw(st.booleans()),
        }
    )
    cand_RC = rng.integers(0, V, (R, record.forced))
    extreme = draw(st.sampled_from([None, 0.0, 1 - 2.0**-53]))
    u_RU = rng.random((R, record.uniforms))
    if extreme is not None:
        u_RU[:] = extreme
    return z_RW, V, z_RW[:, :V].argmax(axis=1), cand_RC, u_RU, record


@both
@settings(max_examples=120, deadline=None)
@given(case=cases(st.integers(1, 700)))
def test_rules_hold_for_small_vocabularies(draw: Draw, case: tuple) -> None:
    z_RW, V, _, cand_RC, _, record = case
    check_rules(z_RW, V, cand_RC, record, draw(*case))


@both
@settings(max_examples=6, deadline=None)
@given(case=cases(st.sampled_from([2**17 + 1, 151_669, 2**20])))
def test_rules_hold_for_large_vocabularies(draw: Draw, case: tuple) -> None:
    z_RW, V, _, cand_RC, _, record = case
    check_rules(z_RW, V, cand_RC, record, draw(*case))


@both
@pytest.mark.parametrize("u", [0.0, 1e-17, 0.25, 1 - 2.0**-53])
def test_probability_equal_to_the_tail_weight(draw: Draw, u: float) -> None:
    """44 equal ids at tau = 0.023: every one is drawn, whatever u; rounding may double none."""
    for shift in (0.0, 0.1, 17.3):
        z_V = np.full(44, shift, np.float32)
        records = draw(
            z_V[None], 44, np.array([3]), no_candidates(1), np.array([[u]]), HeadTail(candidates=0)
        )
        assert int(head(records)[0]) in (0, 44)  # ties move together
        assert sorted(ids(records).tolist()) == list(range(44))


@both
def test_the_largest_records_fit(draw: Draw) -> None:
    """64 forced ids that hold nothing, 64 ids just above tau, the other half in a flat tail."""
    z_V = np.full(900, -20, np.float32)
    z_V[100:164] = np.log(0.5 / 64)
    z_V[200:600] = np.log(0.5 / 400)
    record = HeadTail(tau=1 / 128, candidates=64)
    records = draw(z_V[None], 900, np.array([100]), np.arange(64)[None], np.array([[0.9]]), record)
    assert 190 <= int(entries(records)[0]) <= 193
    assert_unbiased(mean_weight(draw, z_V, record, tuple(range(64))), softmax(z_V))


@both
def test_counts_are_sorted_by_count_then_id(draw: Draw) -> None:
    z_V = ROWS["zipf"]
    record = Counts(draws=60)
    records = draw(z_V[None], len(z_V), np.array([0]), no_candidates(1), np.array([[0.4]]), record)
    assert records.cnt_E is not None
    pairs = list(zip((-records.cnt_E.astype(int)).tolist(), ids(records).tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert len({count for count, _ in pairs}) > 2


@both
def test_rest_is_accurate_however_small(draw: Draw) -> None:
    """One minus the head would be rounding noise; the sum over the tail is not."""
    rng = np.random.default_rng(5)
    for gap in (5.0, 15.0, 30.0, 60.0):
        z_V = rng.standard_normal(5000).astype(np.float32)
        z_V[[10, 20]] = gap
        records = draw(
            z_V[None], 5000, np.array([10]), no_candidates(1), np.array([[0.5]]), HeadTail()
        )
        assert records.rest_R is not None
        e_V = np.exp(z_V.astype(np.float64) - gap)
        expected = np.delete(e_V, ids(records)[: head(records)[0]]).sum() / e_V.sum()
        assert records.rest_R[0] == pytest.approx(expected, rel=1e-5)
        assert records.rest_R[0] > 0
        if expected < sampler_kernels.REST_FLOOR:
            assert entries(records)[0] == head(records)[0]


def test_systematic_counts_vary_less_than_independent_ones() -> None:
    z_V = ROWS["zipf"]
    p_V = softmax(z_V)
    rows = 2000
    variance = {}
    for kind in ("systematic", "multinomial"):
        record = stored_record({"kind": "counts", "sampler": kind, "draws": 50})
        u_RU = uniforms(0, np.arange(rows), np.zeros(rows, np.int64), record.uniforms)
        records = draw_numba(
            np.tile(z_V, (rows, 1)),
            len(z_V),
            np.zeros(rows, int),
            no_candidates(rows),
            u_RU,
            record,
        )
        variance[kind] = ((weights(records, record, len(z_V)) - p_V) ** 2).sum(axis=1).mean()
    # multinomial: (1 - sum p^2) / N exactly; the sample is 2,000 rows
    assert variance["multinomial"] == pytest.approx((1 - (p_V**2).sum()) / 50, rel=0.05)
    assert variance["systematic"] < 0.5 * variance["multinomial"]


# ---------------------------------------------------------------------------------------------
# Rounding at the edges, by hand


def test_locate_once_takes_the_next_id_instead_of_one_twice() -> None:
    e_V = np.array([0, 1, 0, 1, 1, 0], np.float32)
    assert sampler_kernels.locate_once(e_V, np.array([0.0, 0.5, 2.5])).tolist() == [1, 3, 4]


def test_locate_once_puts_thresholds_past_the_end_on_the_last_ids() -> None:
    e_V = np.array([1, 1, 1, 0], np.float32)
    assert sampler_kernels.locate_once(e_V, np.array([1.5, 3.0])).tolist() == [1, 2]
    assert sampler_kernels.locate_once(e_V, np.array([2.5, 3.0])).tolist() == [1, 2]
    assert sampler_kernels.locate_once(e_V, np.array([2.0, 2.5, 3.5])).tolist() == [0, 1, 2]
