"""Records of single rows: unbiased, the same from both samplers, refused where impossible."""

import numpy as np
import pytest
import torch

from stages.config.record_kinds import Counts, HeadTail, Record, stored_record
from stages.scoring import sampler
from stages.scoring.drawn import LOG_FLOOR, BadRow, Records
from stages.scoring.philox import uniforms
from tests.stages.scoring.sampler_cases import (
    ROWS,
    Draw,
    assert_unbiased,
    both,
    copy_of,
    draw_numba,
    draw_torch,
    entries,
    ids,
    in_head,
    mean_weight,
    no_candidates,
    softmax,
    split,
    weights,
)

# ---------------------------------------------------------------------------------------------
# Unbiasedness


RECORDS = [
    Counts(draws=12),
    Counts(draws=255),
    HeadTail(candidates=0),
    HeadTail(candidates=0, tau=0.2),
    HeadTail(candidates=0, tau=1 / 128),
]


@both
@pytest.mark.parametrize("record", RECORDS, ids=repr)
@pytest.mark.parametrize("name", ROWS)
def test_mean_weight_is_the_probability(draw: Draw, name: str, record: Record) -> None:
    assert_unbiased(mean_weight(draw, ROWS[name], record), softmax(ROWS[name]))


@both
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_mean_weight_of_independent_draws(draw: Draw, draws: int) -> None:
    z_V = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    record = Counts(sampler="multinomial", draws=draws)
    assert_unbiased(mean_weight(draw, z_V, record), softmax(z_V))


@both
@pytest.mark.parametrize("name", ["normal, sd 0.7", "ties", "impossible ids", "zipf"])
def test_forced_candidates_leave_the_mean_alone(draw: Draw, name: str) -> None:
    record = HeadTail(candidates=3)
    z_V = ROWS[name]
    rare = np.argsort(z_V)[[0, 5, -1]].tolist()
    assert_unbiased(mean_weight(draw, z_V, record, tuple(rare)), softmax(z_V))


@both
@pytest.mark.parametrize("kind", ["counts", "head_tail"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_comes_first(draw: Draw, kind: str, temperature: float) -> None:
    record = stored_record({"kind": kind, "candidates": 0, "temperature": temperature})
    z_V = ROWS["normal, sd 2.0"]
    assert_unbiased(mean_weight(draw, z_V, record), softmax(z_V / temperature))


def renormalised_top_k(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    """Top 12 of each row with weights that sum to one: what these tests must refuse."""
    p_RV = softmax(z_RW)
    ids_RK = np.argsort(-p_RV, axis=1)[:, :12].astype(np.uint32)
    kept_RK = np.take_along_axis(p_RV, ids_RK.astype(np.int64), 1)
    hlp_RK = np.log(kept_RK / kept_RK.sum(axis=1, keepdims=True))
    full = np.full(len(z_RW), ids_RK.shape[1], np.uint8)
    zero = np.zeros(len(z_RW), np.float32)
    return Records(
        zero,
        zero,
        nu_RM=full[:, None],
        nh_R=full,
        rest_R=zero,
        ids_E=ids_RK.ravel(),
        hlp_H=hlp_RK.ravel().astype(np.float32),
    )


@pytest.mark.parametrize("name", ["normal, sd 0.7", "normal, sd 2.0", "zipf", "ties"])
def test_negative_control_renormalised_top_k_is_found_biased(name: str) -> None:
    mean_V = mean_weight(renormalised_top_k, ROWS[name], HeadTail(candidates=0))
    assert mean_V.sum() == pytest.approx(1)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_unbiased(mean_V, softmax(ROWS[name]))


# ---------------------------------------------------------------------------------------------
# The two samplers, batching, log p and entropy


@pytest.mark.parametrize(("V", "pad"), [(1, 0), (17, 0), (256, 3), (5000, 9), (151_669, 267)])
@pytest.mark.parametrize("kind", ["sampled", "counts", "multinomial", "head_tail", "top_k"])
def test_numba_and_torch_make_the_same_records(V: int, pad: int, kind: str) -> None:
    rng = np.random.default_rng(V)
    R = 12
    own = {"kind": "counts", "sampler": "multinomial"} if kind == "multinomial" else {"kind": kind}
    more = {"temperature": 1.3, "loss_temperature": 2.0, "logp": True, "copies": 2}
    record = stored_record(own | more)
    scale_R1 = rng.choice([0.0, 0.5, 4.0, 10.0], (R, 1))
    z_RW = (scale_R1 * rng.standard_normal((R, V + pad))).astype(np.float32)
    tok_R, cand_RC = rng.integers(0, V, R), rng.integers(0, V, (R, record.forced))
    u_RU = uniforms(1, np.arange(R), np.arange(R), record.uniforms)
    ours = draw_numba(z_RW, V, tok_R, cand_RC, u_RU, record)
    theirs = draw_torch(z_RW, V, tok_R, cand_RC, u_RU, record)
    assert ours.columns().keys() == theirs.columns().keys()
    for name, values in ours.columns().items():
        if name == "tlp" and V > 10_000:
            continue  # of neighbouring ids here and there
        if values.dtype.kind == "f":
            found = theirs.columns()[name]
            np.testing.assert_allclose(values, found, atol=1e-5, rtol=1e-5, err_msg=name)
        elif V < 10_000:
            np.testing.assert_array_equal(values, theirs.columns()[name], err_msg=name)
    for m in range(2 if kind not in ("sampled", "top_k") and V > 10_000 else 0):
        # ids of p = 1 / V are no wider than what rounding does to a running sum of V terms
        one, other = (weights(copy_of(records, m), record, V) for records in (ours, theirs))
        moved_R = np.abs(one - other).sum(axis=1)
        assert moved_R.max() <= 4 / 50
        assert np.median(moved_R) < 1e-5


@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail", "top_k"])
def test_records_do_not_depend_on_batching_order_or_threads(kind: str) -> None:
    rng = np.random.default_rng(2)
    R, V = 40, 900
    record = stored_record({"kind": kind, "copies": 3, "logp": True, "loss_temperature": 0.5})
    z_RV = (3 * rng.standard_normal((R, V))).astype(np.float32)
    tok_R, cand_RC = rng.integers(0, V, R), rng.integers(0, V, (R, 4))
    seq_R, position_R = rng.integers(0, 9, R), rng.integers(0, 500, R)

    def records(rows: np.ndarray, threads: int = 1) -> list[Records]:
        u_RU = uniforms(5, seq_R[rows], position_R[rows], record.uniforms)
        made = sampler.on_cpu(
            z_RV[rows], V, tok_R[rows], cand_RC[rows], u_RU, record, threads=threads
        )
        return split(made)

    whole = records(np.arange(R))
    order = rng.permutation(R)
    pieces = [one for rows in np.array_split(order, 7) for one in records(rows, threads=3)]
    for where, one in zip(order, pieces, strict=True):
        for name, values in whole[where].columns().items():
            np.testing.assert_array_equal(values, one.columns()[name])


@both
@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail"])
def test_log_p_and_entropy(draw: Draw, kind: str) -> None:
    rng = np.random.default_rng(8)
    R, V = 30, 3000
    record = stored_record({"kind": kind, "candidates": 2, "temperature": 0.8})
    z_RV = (rng.choice([0.0, 1.0, 8.0], (R, 1)) * rng.standard_normal((R, V))).astype(np.float32)
    z_RV[::4, ::5] = -np.inf
    tok_R = np.where(np.isinf(z_RV[:, 0]), 1, 0)
    cand_RC = np.tile([7, 10], (R, 1))
    u_RU = rng.random((R, record.uniforms))
    records = draw(z_RV, V, tok_R, cand_RC, u_RU, record)
    log_p_RV = torch.log_softmax(torch.tensor(z_RV).double() / 0.8, -1).numpy()
    p_RV = np.exp(log_p_RV)
    entropy_R = -(p_RV * np.maximum(log_p_RV, -1e4)).sum(axis=1)
    np.testing.assert_allclose(records.lp_R, log_p_RV[np.arange(R), tok_R], atol=2e-5)
    np.testing.assert_allclose(records.ent_R, entropy_R, atol=2e-5)
    if records.hlp_H is not None:
        row_E, head_E = np.repeat(np.arange(R), entries(records)), in_head(records)
        expected = log_p_RV[row_E[head_E], ids(records)[head_E]]
        assert np.isinf(expected).any()
        np.testing.assert_allclose(records.hlp_H, np.maximum(expected, LOG_FLOOR), atol=2e-5)


# ---------------------------------------------------------------------------------------------
# What is refused


@both
@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail", "top_k"])
@pytest.mark.parametrize("where", [0, 1, 63, 64, 299])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_their_row(
    draw: Draw, value: float, where: int, kind: str
) -> None:
    record = stored_record({"kind": kind})
    z_RV = np.zeros((3, 300), np.float32)
    z_RV[1, where] = value
    arguments = (np.full(3, 5), np.zeros((3, 4), int), np.full((3, record.uniforms), 0.5))
    with pytest.raises(BadRow, match="NaN") as caught:
        draw(z_RV, 300, *arguments, record)
    assert caught.value.row == 1
    if where > arguments[0][0]:
        draw(z_RV, where, *arguments, record)  # fine: the same value, but in the padding


@both
def test_a_row_without_any_possible_id_is_refused(draw: Draw) -> None:
    z_RV = np.full((1, 9), -np.inf, np.float32)
    with pytest.raises(BadRow, match="nothing but -inf"):
        draw(z_RV, 9, np.array([0]), no_candidates(1), np.array([[0.5]]), HeadTail(candidates=0))


@both
def test_an_impossible_realised_token_is_refused(draw: Draw) -> None:
    z_RV = np.zeros((4, 9), np.float32)
    z_RV[2, 6] = -np.inf
    tok_R = np.array([6, 6, 6, 0])
    with pytest.raises(BadRow, match="probability zero") as caught:
        draw(z_RV, 9, tok_R, no_candidates(4), np.full((4, 1), 0.5), HeadTail(candidates=0))
    assert caught.value.row == 2
