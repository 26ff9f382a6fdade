"""Rounding, checksum and the decoding of records, each against a slow reference."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.arrow import from_arrow, to_arrow
from storage.codec import checksum, round_mantissa, stored, to_batch
from storage.errors import DataError
from storage.manifest import SetMeta
from storage.rows import Rows
from storage.schema import COLUMNS
from tests.storage.make import DRAWS, KINDS, meta_of, random_rows, rows_strategy, same_rows

NORMAL = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False).filter(
    lambda x: abs(x) < 1e38
)


def _round_exactly(value: float, bits: int) -> float:
    """Nearest number with `bits` explicit mantissa bits, ties to even, in exact arithmetic."""
    if value == 0.0:
        return value
    exponent = math.frexp(value)[1] - 1
    step = Fraction(2) ** (exponent - bits)
    return float(round(Fraction(value) / step) * step)  # round() of a Fraction: half to even


@given(NORMAL)
def test_rounding_is_to_nearest_even(value: float) -> None:
    rounded = float(round_mantissa(np.array([value], np.float32))[0])
    assert rounded == _round_exactly(value, 15)


def test_rounding_of_ties_goes_both_ways() -> None:
    one = np.float32(1.0).view(np.uint32)
    ties = np.array([one + 0x080, one + 0x180], np.uint32).view(np.float32)
    assert round_mantissa(ties).view(np.uint32).tolist() == [one, one + 0x200]


@given(st.floats(-1000.0, 0.0, width=32))
def test_rounding_error_is_relative_and_small(value: float) -> None:
    rounded = round_mantissa(np.array([value], np.float32))
    assert abs(float(rounded[0]) - value) <= abs(value) * 2.0**-16 + 1e-37
    assert rounded.view(np.uint32)[0] & 0xFF == 0
    assert round_mantissa(rounded).tobytes() == rounded.tobytes()


def test_rounding_at_minus_twenty_nats_stays_within_the_promise() -> None:
    values = np.linspace(-20.0, 0.0, 100_001, dtype=np.float32)
    assert np.abs(round_mantissa(values) - values).max() < 4e-4


def test_rounding_keeps_what_is_not_finite() -> None:
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert np.array_equal(round_mantissa(odd), odd, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_rows_share_no_memory_with_their_source(kind: str) -> None:
    rows = random_rows(meta_of(kind), 4)
    copy = stored(rows)
    for name in rows.columns:
        assert not np.shares_memory(copy[name], rows[name])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_arrow_round_trip_is_exact_and_zero_copy(kind: str, data: st.DataObject) -> None:
    rows, _ = data.draw(rows_strategy(kind))
    batch = to_arrow(rows)
    for name, values in rows.columns.items():
        buffer = batch.column(name).buffers()[-1] if COLUMNS[name].level == "row" else None
        if buffer is not None and len(values):
            assert buffer.address == values.ctypes.data
    assert same_rows(from_arrow(_table(batch)), rows)


def _table(batch: object) -> object:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def test_arrays_read_from_arrow_are_views() -> None:
    batch = to_arrow(random_rows(meta_of("head_tail"), 4))
    rows = from_arrow(_table(batch))
    assert all(not values.flags.owndata for values in rows.columns.values())
    assert rows["ids"].ctypes.data == batch.column("ids").values.buffers()[1].address


def test_checksum_sees_every_value_and_every_length() -> None:
    rows = stored(random_rows(meta_of("head_tail"), 3))
    before = checksum(rows)
    for name, values in rows.columns.items():
        raw = values.view(np.uint8)
        for byte in range(len(raw)):
            raw[byte] ^= 1
            assert checksum(rows) != before, f"{name}, byte {byte}"
            raw[byte] ^= 1
    for level, offsets in rows.offsets.items():
        offsets[1] += 1
        assert checksum(rows) != before, level
        offsets[1] -= 1
    assert checksum(rows) == before


def _reference(rows: Rows, meta: SetMeta) -> list[list[tuple[int, float, float, bool]]]:
    """(id, weight, logp, exact) of every entry of every position, straight from FORMAT.md."""
    if "nu" not in rows:
        return [[] for _ in range(rows.tokens)]
    out: list[list[tuple[int, float, float, bool]]] = []
    entry = head = 0
    for position in range(rows.tokens):
        nu = int(rows["nu"][position])
        ids = [int(i) for i in rows["ids"][entry : entry + nu]]
        if meta.record_kind == "counts":
            weights = [int(c) / DRAWS for c in rows["cnt"][entry : entry + nu]]
            known: list[float] = []
        else:
            nh = int(rows["nh"][position])
            known = [float(x) for x in rows["hlp"][head : head + nh]]
            rest = float(rows["rest"][position]) if 0 < nh < nu else float(nh == 0)
            mass = sum(math.exp(x) for x in known)
            weights = [math.exp(x) * (1 - rest) / mass for x in known]
            weights += [rest / (nu - nh) for _ in range(nu - nh)]
            head += nh
        known += [math.nan] * (nu - len(known))
        out.append([(*e, not math.isnan(e[2])) for e in zip(ids, weights, known, strict=True)])
        entry += nu
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_decoding_agrees_with_the_specification(kind: str, data: st.DataObject) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    rows = stored(rows)
    batch = to_batch(rows, meta)
    expected = _reference(rows, meta)
    flat = [entry for position in expected for entry in position]
    assert np.diff(batch.entry_off).tolist() == [len(position) for position in expected]
    assert batch.ids.tolist() == [entry[0] for entry in flat]
    np.testing.assert_allclose(batch.weight, [entry[1] for entry in flat], rtol=1e-6)
    np.testing.assert_array_equal(batch.logp, np.array([e[2] for e in flat], np.float32))
    assert batch.exact.tolist() == [entry[3] for entry in flat]
    if kind in ("counts", "head_tail") and batch.tokens:
        sums = np.add.reduceat(batch.weight, batch.entry_off[:-1])
        np.testing.assert_allclose(sums, 1.0, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_types_a_trainer_relies_on(kind: str) -> None:
    rows = stored(random_rows(meta_of(kind), 5))
    batch = to_batch(rows, meta_of(kind))
    for name in (
        "seq_id",
        "prompt_id",
        "prompt",
        "prompt_off",
        "tok",
        "tok_off",
        "entry_off",
        "ids",
    ):
        assert getattr(batch, name).dtype == np.int64, name
    for name in ("ref_lp", "weight", "logp", "rest", *(("lp", "ent") if kind != KINDS[0] else ())):
        assert getattr(batch, name).dtype == np.float32, name
    assert (batch.lp is None) == (batch.ent is None) == (kind == "sequences")
    assert batch.tok.tolist() == rows["tok"].tolist()
    if kind != "head_tail":
        assert not batch.exact.any()
        assert (batch.rest == 1.0).all()


def test_a_corpus_has_no_reference() -> None:
    rows = Rows.from_sequences(
        [{"seq_id": 0, "prompt_id": 0, "outcome": -1, "prompt": [], "tok": [1, 2]}]
    )
    assert to_batch(rows, meta_of("sequences", candidates=0)).ref_lp is None


@pytest.mark.parametrize("column", ["nu", "nh"])
def test_records_that_do_not_add_up_never_reach_the_kernel(column: str) -> None:
    meta = meta_of("head_tail")
    rows = stored(random_rows(meta, 3))
    rows[column][0] += 200
    with pytest.raises(DataError, match="records do not add up"):
        to_batch(rows, meta)
