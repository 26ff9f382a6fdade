"""Records of single rows, against exact expectations.

Systematic sampling is a function of one uniform u that is constant between breakpoints, and
independent draws are a product of such functions. So an expectation over draws is a finite sum, and
`mean_weight` computes it: the record at the middle of every interval, weighted by its width. What
remains is the float32 rounding of the breakpoints, 1e-6 at most, and no statistical error.

Shape letters: R rows, V vocabulary, E entries.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config import Record
from stages.scoring import kernels, sampler, torch_sampler
from stages.scoring.philox import uniforms
from stages.scoring.sampler import BadRow, Records, uniforms_needed

EXACT = 5e-6
Draw = Callable[..., Records]


def draw_numba(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    return sampler.sample(z_RW, V, tok_R, cand_RC, u_RU, rec)


def draw_torch(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    tok, cand, u = (torch.tensor(array) for array in (tok_R, cand_RC, u_RU))
    return torch_sampler.sample(torch.tensor(z_RW), V, tok, cand, u, rec)


both = pytest.mark.parametrize("draw", [draw_numba, draw_torch])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def no_candidates(rows: int) -> np.ndarray:
    return np.zeros((rows, 0), np.int64)


def weights(records: Records, record: Record, V: int) -> np.ndarray:
    """[R, V] weight of every id, as a reader forms it."""
    assert records.nu_R is not None
    assert records.ids_E is not None
    row_E = np.repeat(np.arange(len(records.nu_R)), records.nu_R)
    out = np.zeros((len(records.nu_R), V))
    if record.kind == "counts":
        assert records.cnt_E is not None
        np.add.at(out, (row_E, records.ids_E), records.cnt_E / record.draws)
        return out
    assert records.nh_R is not None
    assert records.rest_R is not None
    assert records.hlp_H is not None
    nu_R, nh_R = records.nu_R.astype(int), records.nh_R.astype(int)
    weight_E = (records.rest_R / np.maximum(nu_R - nh_R, 1))[row_E].astype(np.float64)
    weight_E[in_head(records)] = np.exp(records.hlp_H.astype(np.float64))
    np.add.at(out, (row_E, records.ids_E), weight_E)
    return out


def in_head(records: Records) -> np.ndarray:
    """[E] whether an entry belongs to the head."""
    assert records.nu_R is not None
    assert records.nh_R is not None
    slots = [np.arange(nu) < nh for nu, nh in zip(records.nu_R, records.nh_R, strict=True)]
    return np.concatenate(slots)


def mean_weight(
    draw: Draw, z_V: np.ndarray, record: Record, candidates: tuple[int, ...] = ()
) -> np.ndarray:
    """[V] expected weight of every id over the uniforms of a position."""
    V = len(z_V)

    def at(u_RU: np.ndarray) -> np.ndarray:
        rows = len(u_RU)
        tok_R = np.full(rows, int(z_V.argmax()))
        cand_RC = np.tile(np.array(candidates, np.int64), (rows, 1))
        records = draw(np.tile(z_V, (rows, 1)), V, tok_R, cand_RC, u_RU, record)
        return weights(records, record, V)

    p_V = softmax(z_V / record.temperature)
    if record.kind == "counts" and record.sampler == "multinomial":
        middles, widths = intervals(np.cumsum(p_V))
        grid = list(itertools.product(range(len(middles)), repeat=record.draws))
        chance_R = widths[np.array(grid)].prod(axis=1)
        return chance_R @ at(middles[np.array(grid)])
    if record.kind == "counts":
        middles, widths = intervals(np.cumsum(p_V) * record.draws)
        return widths @ at(middles[:, None])
    cand_RC = np.array([candidates], np.int64)
    tok_R = np.array([int(z_V.argmax())])
    one = draw(z_V[None], V, tok_R, cand_RC, np.array([[0.5]]), record)
    assert one.ids_E is not None
    assert one.nu_R is not None
    assert one.nh_R is not None
    tail_V = p_V.copy()
    tail_V[one.ids_E[: one.nh_R[0]]] = 0
    draws = int(one.nu_R[0]) - int(one.nh_R[0])
    edges_V = np.cumsum(tail_V) * (draws / tail_V.sum() if draws else 0)
    middles, widths = intervals(edges_V)
    return widths @ at(middles[:, None])


def intervals(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles and widths of the intervals between the breakpoints modulo 1 of a function of u."""
    points = np.unique(np.concatenate([[0.0, 1.0], np.mod(edges, 1.0)]))
    return (points[1:] + points[:-1]) / 2, np.diff(points)


def assert_unbiased(mean_V: np.ndarray, p_V: np.ndarray) -> None:
    np.testing.assert_allclose(mean_V, p_V, atol=EXACT, rtol=0)


# ---------------------------------------------------------------------------------------------
# Unbiasedness


def some_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    rows = {
        f"normal, sd {sd}": (sd * rng.standard_normal(V)).astype(np.float32)
        for sd, V in ((0.1, 90), (0.7, 40), (2.0, 300), (5.0, 23))
    }
    rows["uniform"] = np.zeros(100, np.float32)
    rows["one hot"] = np.where(np.arange(30) == 7, 40, 0).astype(np.float32)
    rows["ties"] = rng.integers(0, 3, 60).astype(np.float32)
    rows["impossible ids"] = np.where(np.arange(50) % 3, rng.standard_normal(50), -np.inf).astype(
        np.float32
    )
    rows["zipf"] = -np.log(np.arange(1, 400)).astype(np.float32)
    rows["one id"] = np.zeros(1, np.float32)
    return rows


ROWS = some_rows()
RECORDS = [
    Record(kind="counts", draws=12),
    Record(kind="counts", draws=255),
    Record(kind="head_tail", candidates=0),
    Record(kind="head_tail", candidates=0, tau=0.2),
    Record(kind="head_tail", candidates=0, tau=1 / 128),
]


@both
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.kind}-{r.draws}-{r.tau:.3f}")
@pytest.mark.parametrize("name", ROWS)
def test_mean_weight_is_the_probability(draw: Draw, name: str, record: Record) -> None:
    assert_unbiased(mean_weight(draw, ROWS[name], record), softmax(ROWS[name]))


@both
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_mean_weight_of_independent_draws(draw: Draw, draws: int) -> None:
    z_V = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    record = Record(kind="counts", sampler="multinomial", draws=draws)
    assert_unbiased(mean_weight(draw, z_V, record), softmax(z_V))


@both
@pytest.mark.parametrize("name", ["normal, sd 0.7", "ties", "impossible ids", "zipf"])
def test_forced_candidates_leave_the_mean_alone(draw: Draw, name: str) -> None:
    record = Record(kind="head_tail", candidates=3)
    z_V = ROWS[name]
    rare = np.argsort(z_V)[[0, 5, -1]].tolist()
    assert_unbiased(mean_weight(draw, z_V, record, tuple(rare)), softmax(z_V))


@both
@pytest.mark.parametrize("kind", ["counts", "head_tail"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_comes_first(draw: Draw, kind: str, temperature: float) -> None:
    record = Record.model_validate({"kind": kind, "candidates": 0, "temperature": temperature})
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
        zero, zero, full, full, zero, ids_RK.ravel(), hlp_H=hlp_RK.ravel().astype(np.float32)
    )


@pytest.mark.parametrize("name", ["normal, sd 0.7", "normal, sd 2.0", "zipf", "ties"])
def test_negative_control_renormalised_top_k_is_found_biased(name: str) -> None:
    mean_V = mean_weight(renormalised_top_k, ROWS[name], Record(candidates=0))
    assert mean_V.sum() == pytest.approx(1)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_unbiased(mean_V, softmax(ROWS[name]))


# ---------------------------------------------------------------------------------------------
# Rules every record obeys


def check_rules(
    z_RW: np.ndarray, V: int, cand_RC: np.ndarray, record: Record, records: Records
) -> None:
    assert records.nu_R is not None
    assert records.ids_E is not None
    assert int(records.nu_R.min()) >= 1
    total_R = weights(records, record, V).sum(axis=1)
    np.testing.assert_allclose(total_R, 1, atol=2e-6 if record.kind == "head_tail" else 1e-12)
    p_RV = softmax(z_RW[:, :V] / record.temperature)
    stop_R = np.cumsum(records.nu_R.astype(np.int64))
    for r, (p_V, stop) in enumerate(zip(p_RV, stop_R, strict=True)):
        ids = records.ids_E[stop - int(records.nu_R[r]) : stop].astype(np.int64)
        assert len(set(ids)) == len(ids)
        assert ids.max() < V
        if record.kind == "head_tail":
            check_head_tail(p_V, set(cand_RC[r]), ids, int(records.nh_R[r]), record)  # type: ignore[reportOptionalSubscript]


def check_head_tail(p_V: np.ndarray, forced: set, ids: np.ndarray, nh: int, record: Record) -> None:
    head, tail = ids[:nh], ids[nh:]
    assert np.all(np.diff(p_V[head]) <= 1e-9)
    assert np.all(np.diff(tail) > 0)
    assert forced <= set(head)
    assert set(np.flatnonzero(p_V >= record.tau * (1 + 1e-5))) <= set(head)
    assert len(ids) <= 1 / record.tau + 1 + len(forced)
    rest = np.delete(p_V, head).sum()
    if len(tail):
        t = rest / len(tail)
        assert t <= record.tau * (1 + 1e-5)
        assert np.all(np.delete(p_V, head) <= t * (1 + 1e-5))
        assert np.all(p_V[[i for i in head if i not in forced]] > t * (1 - 1e-5))
        assert np.all(p_V[tail] > 0)
    else:
        assert rest <= 2 * kernels.REST_FLOOR


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
    record = Record.model_validate(
        {
            "kind": draw(st.sampled_from(["counts", "head_tail"])),
            "sampler": draw(st.sampled_from(["systematic", "multinomial"])),
            "draws": draw(st.sampled_from([1, 50, 255])),
            "tau": draw(st.sampled_from([1 / 128, 0.023, 0.3, 0.9])),
            "candidates": draw(st.sampled_from([0, 1, 4, 64])),
            "temperature": draw(st.sampled_from([1.0, 0.6, 3.0])),
        }
    )
    cand_RC = rng.integers(0, V, (R, record.candidates))
    extreme = draw(st.sampled_from([None, 0.0, 1 - 2.0**-53]))
    u_RU = rng.random((R, uniforms_needed(record)))
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
            z_V[None], 44, np.array([3]), no_candidates(1), np.array([[u]]), Record(candidates=0)
        )
        assert records.nh_R is not None
        assert records.ids_E is not None
        assert int(records.nh_R[0]) in (0, 44)  # ties move together
        assert sorted(records.ids_E.tolist()) == list(range(44))


@both
def test_the_largest_records_fit(draw: Draw) -> None:
    """64 forced ids that hold nothing, 64 ids just above tau, the other half in a flat tail."""
    z_V = np.full(900, -20, np.float32)
    z_V[100:164] = np.log(0.5 / 64)
    z_V[200:600] = np.log(0.5 / 400)
    record = Record(tau=1 / 128, candidates=64)
    records = draw(z_V[None], 900, np.array([100]), np.arange(64)[None], np.array([[0.9]]), record)
    assert records.nu_R is not None
    assert 190 <= int(records.nu_R[0]) <= 193
    assert_unbiased(mean_weight(draw, z_V, record, tuple(range(64))), softmax(z_V))


@both
@pytest.mark.parametrize(("tau", "candidates"), [(1 / 129, 0), (0.5, 65)])
def test_parameters_without_room_are_refused(draw: Draw, tau: float, candidates: int) -> None:
    record = Record.model_construct(kind="head_tail", tau=tau, temperature=1.0)
    cand_RC = np.zeros((1, candidates), int)
    with pytest.raises(ValueError, match="candidates: at least"):
        draw(np.zeros((1, 9), np.float32), 9, np.array([0]), cand_RC, np.array([[0.5]]), record)


@both
def test_counts_are_sorted_by_count_then_id(draw: Draw) -> None:
    z_V = ROWS["zipf"]
    record = Record(kind="counts", draws=60)
    records = draw(z_V[None], len(z_V), np.array([0]), no_candidates(1), np.array([[0.4]]), record)
    assert records.cnt_E is not None
    assert records.ids_E is not None
    pairs = list(zip((-records.cnt_E.astype(int)).tolist(), records.ids_E.tolist(), strict=True))
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
            z_V[None], 5000, np.array([10]), no_candidates(1), np.array([[0.5]]), Record()
        )
        assert records.rest_R is not None
        assert records.nh_R is not None
        e_V = np.exp(z_V.astype(np.float64) - gap)
        head = records.ids_E[: records.nh_R[0]]  # type: ignore[reportOptionalSubscript]
        expected = np.delete(e_V, head).sum() / e_V.sum()
        assert records.rest_R[0] == pytest.approx(expected, rel=1e-5)
        assert records.rest_R[0] > 0
        if expected < kernels.REST_FLOOR:
            assert records.nu_R is not None
            assert records.nu_R[0] == records.nh_R[0]


def test_systematic_counts_vary_less_than_independent_ones() -> None:
    z_V = ROWS["zipf"]
    p_V = softmax(z_V)
    rows = 2000
    variance = {}
    for kind in ("systematic", "multinomial"):
        record = Record.model_validate({"kind": "counts", "sampler": kind, "draws": 50})
        u_RU = uniforms(0, np.arange(rows), np.zeros(rows, np.int64), uniforms_needed(record))
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
# The two samplers, batching, log p and entropy


@pytest.mark.parametrize(("V", "pad"), [(1, 0), (17, 0), (256, 3), (5000, 9), (151_669, 267)])
@pytest.mark.parametrize("kind", ["sampled", "counts", "multinomial", "head_tail"])
def test_numba_and_torch_make_the_same_records(V: int, pad: int, kind: str) -> None:
    rng = np.random.default_rng(V)
    R = 12
    record = (
        Record(kind="counts", sampler="multinomial", temperature=1.3)
        if kind == "multinomial"
        else Record.model_validate({"kind": kind, "temperature": 1.3})
    )
    scale_R1 = rng.choice([0.0, 0.5, 4.0, 10.0], (R, 1))
    z_RW = (scale_R1 * rng.standard_normal((R, V + pad))).astype(np.float32)
    tok_R, cand_RC = rng.integers(0, V, R), rng.integers(0, V, (R, record.candidates))
    u_RU = uniforms(1, np.arange(R), np.arange(R), uniforms_needed(record))
    ours = draw_numba(z_RW, V, tok_R, cand_RC, u_RU, record)
    theirs = draw_torch(z_RW, V, tok_R, cand_RC, u_RU, record)
    assert ours.columns().keys() == theirs.columns().keys()
    for name, values in ours.columns().items():
        if values.dtype.kind == "f":
            found = theirs.columns()[name]
            np.testing.assert_allclose(values, found, atol=1e-5, rtol=1e-5, err_msg=name)
        elif V < 10_000:
            np.testing.assert_array_equal(values, theirs.columns()[name], err_msg=name)
    if kind != "sampled" and V > 10_000:
        # ids of p = 1 / V are no wider than what rounding does to a running sum of V terms
        moved_RV = np.abs(weights(ours, record, V) - weights(theirs, record, V))
        assert moved_RV.sum(axis=1).max() <= 4 / record.draws
        assert np.median(moved_RV.sum(axis=1)) < 1e-5


@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail"])
def test_records_do_not_depend_on_batching_order_or_threads(kind: str) -> None:
    rng = np.random.default_rng(2)
    R, V = 40, 900
    record = Record.model_validate({"kind": kind})
    z_RV = (3 * rng.standard_normal((R, V))).astype(np.float32)
    tok_R, cand_RC = rng.integers(0, V, R), rng.integers(0, V, (R, 4))
    seq_R, position_R = rng.integers(0, 9, R), rng.integers(0, 500, R)

    def records(rows: np.ndarray, threads: int = 1) -> list[Records]:
        u_RU = uniforms(5, seq_R[rows], position_R[rows], uniforms_needed(record))
        made = sampler.sample(
            z_RV[rows], V, tok_R[rows], cand_RC[rows], u_RU, record, threads=threads
        )
        return split(made)

    whole = records(np.arange(R))
    order = rng.permutation(R)
    pieces = [one for rows in np.array_split(order, 7) for one in records(rows, threads=3)]
    for where, one in zip(order, pieces, strict=True):
        for name, values in whole[where].columns().items():
            np.testing.assert_array_equal(values, one.columns()[name])


def split(records: Records) -> list[Records]:
    """One `Records` per row."""
    out: list[Records] = []
    e = h = 0
    for r in range(len(records.lp_R)):
        nu = 0 if records.nu_R is None else int(records.nu_R[r])
        nh = 0 if records.nh_R is None else int(records.nh_R[r])
        cut = {
            name: values[r : r + 1]
            for name, values in vars(records).items()
            if values is not None and name.endswith("_R")
        }
        for name in ("ids_E", "cnt_E"):
            if (values := getattr(records, name)) is not None:
                cut[name] = values[e : e + nu]
        if records.hlp_H is not None:
            cut["hlp_H"] = records.hlp_H[h : h + nh]
        out.append(Records(**cut))
        e, h = e + nu, h + nh
    return out


@both
@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail"])
def test_log_p_and_entropy(draw: Draw, kind: str) -> None:
    rng = np.random.default_rng(8)
    R, V = 30, 3000
    record = Record.model_validate({"kind": kind, "candidates": 2, "temperature": 0.8})
    z_RV = (rng.choice([0.0, 1.0, 8.0], (R, 1)) * rng.standard_normal((R, V))).astype(np.float32)
    z_RV[::4, ::5] = -np.inf
    tok_R = np.where(np.isinf(z_RV[:, 0]), 1, 0)
    cand_RC = np.tile([7, 10], (R, 1))
    u_RU = rng.random((R, uniforms_needed(record)))
    records = draw(z_RV, V, tok_R, cand_RC, u_RU, record)
    log_p_RV = torch.log_softmax(torch.tensor(z_RV).double() / 0.8, -1).numpy()
    p_RV = np.exp(log_p_RV)
    entropy_R = -(p_RV * np.maximum(log_p_RV, -1e4)).sum(axis=1)
    np.testing.assert_allclose(records.lp_R, log_p_RV[np.arange(R), tok_R], atol=2e-5)
    np.testing.assert_allclose(records.ent_R, entropy_R, atol=2e-5)
    if records.hlp_H is not None:
        assert records.nu_R is not None
        assert records.ids_E is not None
        row_E = np.repeat(np.arange(R), records.nu_R)
        head = in_head(records)
        expected = log_p_RV[row_E[head], records.ids_E[head].astype(int)]
        assert np.isinf(expected).any()
        np.testing.assert_allclose(
            records.hlp_H, np.maximum(expected, kernels.LOG_FLOOR), atol=2e-5
        )


# ---------------------------------------------------------------------------------------------
# What is refused


@both
@pytest.mark.parametrize("kind", ["sampled", "counts", "head_tail"])
@pytest.mark.parametrize("where", [0, 1, 63, 64, 299])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_their_row(
    draw: Draw, value: float, where: int, kind: str
) -> None:
    record = Record.model_validate({"kind": kind})
    z_RV = np.zeros((3, 300), np.float32)
    z_RV[1, where] = value
    arguments = (np.full(3, 5), np.zeros((3, 4), int), np.full((3, uniforms_needed(record)), 0.5))
    with pytest.raises(BadRow, match="NaN") as caught:
        draw(z_RV, 300, *arguments, record)
    assert caught.value.row == 1
    draw(z_RV, where, *arguments, record) if where > 5 else None  # the same value in the padding


@both
def test_a_row_without_any_possible_id_is_refused(draw: Draw) -> None:
    z_RV = np.full((1, 9), -np.inf, np.float32)
    with pytest.raises(BadRow, match="nothing but -inf"):
        draw(z_RV, 9, np.array([0]), no_candidates(1), np.array([[0.5]]), Record(candidates=0))


@both
def test_an_impossible_realised_token_is_refused(draw: Draw) -> None:
    z_RV = np.zeros((4, 9), np.float32)
    z_RV[2, 6] = -np.inf
    tok_R = np.array([6, 6, 6, 0])
    with pytest.raises(BadRow, match="probability zero") as caught:
        draw(z_RV, 9, tok_R, no_candidates(4), np.full((4, 1), 0.5), Record(candidates=0))
    assert caught.value.row == 2


# ---------------------------------------------------------------------------------------------
# Rounding at the edges, by hand


def test_locate_once_takes_the_next_id_instead_of_one_twice() -> None:
    e_V = np.array([0, 1, 0, 1, 1, 0], np.float32)
    assert kernels.locate_once(e_V, np.array([0.0, 0.5, 2.5])).tolist() == [1, 3, 4]


def test_locate_once_puts_thresholds_past_the_end_on_the_last_ids() -> None:
    e_V = np.array([1, 1, 1, 0], np.float32)
    assert kernels.locate_once(e_V, np.array([1.5, 3.0])).tolist() == [1, 2]
    assert kernels.locate_once(e_V, np.array([2.5, 3.0])).tolist() == [1, 2]
    assert kernels.locate_once(e_V, np.array([2.0, 2.5, 3.5])).tolist() == [0, 1, 2]
