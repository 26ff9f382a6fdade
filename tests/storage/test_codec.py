"""Rounding, checksum and the decoding of records, each against a slow reference."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codec import checksum, round_mantissa, stored, to_batch
from storage.errors import DataError
from storage.manifest import SetMeta
from storage.parquet.reader import from_arrow, to_arrow
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
    batch = to_arrow(rows, {})
    for name, values in rows.columns.items():
        buffer = batch.column(name).buffers()[-1] if COLUMNS[name].level == "row" else None
        if buffer is not None and len(values):
            assert buffer.address == values.ctypes.data
    assert same_rows(from_arrow(_table(batch))[0], rows)


def _table(batch: object) -> object:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def test_arrays_read_from_arrow_are_views() -> None:
    batch = to_arrow(random_rows(meta_of("head_tail"), 4), {})
    rows, _ = from_arrow(_table(batch))
    assert all(not values.flags.owndata for values in rows.columns.values())
    assert rows["ids"].ctypes.data == batch.column("ids").values.buffers()[1].address


def test_checksum_sees_every_value_and_every_length() -> None:
    rows = stored(random_rows(meta_of("head_tail_copies"), 3))
    before = checksum(rows)
    for name, values in rows.columns.items():
        raw = values.view(np.uint8)
        for byte in range(len(raw)):
            raw[byte] ^= 1
            assert checksum(rows) != before, f"{name}, byte {byte}"
            raw[byte] ^= 1
    for level, offsets in rows.offsets.items():
        if level == "draw":
            continue  # a multiple of those of `position`: see the next test
        offsets[1] += 1
        assert checksum(rows) != before, level
        offsets[1] -= 1
    assert checksum(rows) == before


def test_draws_that_are_not_the_same_number_everywhere_are_refused() -> None:
    rows = stored(random_rows(meta_of("counts_copies"), 3))
    rows.offsets["draw"][1] += 1
    with pytest.raises(DataError, match="'nu': not the same number of values at every position"):
        from_arrow(_table(to_arrow(rows, {})))


Entry = tuple[int, float, float, bool]


def _reference(rows: Rows, meta: SetMeta, draw: int) -> list[list[Entry]]:
    """(id, weight, logp, exact) of every entry of every position, straight from FORMAT.md."""
    if "nu" not in rows:
        return [[] for _ in range(rows.tokens)]
    ids, hlp = iter(rows["ids"].tolist()), iter(rows["hlp"].tolist() if "hlp" in rows else [])
    cnt, tlp = (
        iter(rows[name].tolist()) if name in rows else itertools.repeat(math.nan)
        for name in ("cnt", "tlp")
    )
    out: list[list[Entry]] = []
    for position in range(rows.tokens):
        nh = int(rows["nh"][position]) if "nh" in rows else 0
        head = list(zip(itertools.islice(ids, nh), itertools.islice(hlp, nh), strict=True))
        for copy in range(meta.copies):
            tail = int(rows["nu"][position * meta.copies + copy]) - nh
            drawn = list(itertools.islice(zip(ids, cnt, tlp, strict=False), tail))
            if copy == draw:
                rest = float(rows["rest"][position]) if nh > 0 and tail else float(nh == 0)
                rest = max(rest, meta.record_params.get("tail_floor", 0.0)) if tail else rest
                mass = sum(math.exp(lp) for _, lp in head)
                out.append([(v, math.exp(lp) * (1 - rest) / mass, lp, True) for v, lp in head])
                share = rest / tail if tail else 0.0
                counted = meta.record_params["kind"] == "counts"
                out[-1] += [(v, c / DRAWS if counted else share, lp, False) for v, c, lp in drawn]
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_decoding_agrees_with_the_specification(kind: str, data: st.DataObject) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    rows = stored(rows)
    draw = data.draw(st.integers(0, meta.copies - 1))
    batch = to_batch(rows, meta, draw)
    expected = _reference(rows, meta, draw)
    flat = [entry for position in expected for entry in position]
    assert np.diff(batch.entry_off).tolist() == [len(position) for position in expected]
    assert batch.ids.tolist() == [entry[0] for entry in flat]
    np.testing.assert_allclose(batch.weight, [entry[1] for entry in flat], rtol=1e-6)
    np.testing.assert_array_equal(batch.logp, np.array([e[2] for e in flat], np.float32))
    assert batch.exact.tolist() == [entry[3] for entry in flat]
    if "nu" in rows and batch.tokens:
        sums = np.add.reduceat(batch.weight, batch.entry_off[:-1])
        np.testing.assert_allclose(sums, 1.0, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_that_is_not_there_is_refused(kind: str) -> None:
    meta = meta_of(kind)
    rows = stored(random_rows(meta, 2))
    for draw in (-1, meta.copies):
        with pytest.raises(DataError, match=f"no draw {draw}: the set keeps {meta.copies}"):
            to_batch(rows, meta, draw)


def test_the_head_is_in_every_draw_and_the_tails_differ() -> None:
    meta = meta_of("head_tail_copies")
    rows = stored(random_rows(meta, 20))
    first, second = (to_batch(rows, meta, draw) for draw in range(2))
    assert first.ids[first.exact].tolist() == second.ids[second.exact].tolist()
    assert first.ids[~first.exact].tolist() != second.ids[~second.exact].tolist()
    assert first.rest is second.rest


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
    assert (batch.lz is not None) == (kind == "head_tail_copies")
    if "nh" not in rows:
        assert not batch.exact.any()
        assert (batch.rest == 1.0).all()


def test_a_corpus_has_no_reference() -> None:
    rows = Rows.from_sequences(
        [{"seq_id": 0, "prompt_id": 0, "outcome": -1, "prompt": [], "tok": [1, 2]}]
    )
    assert to_batch(rows, meta_of("sequences", candidates=0)).ref_lp is None


@pytest.mark.parametrize("kind", ["counts_copies", "head_tail", "head_tail_copies", "top_k"])
def test_records_that_do_not_add_up_never_reach_the_kernel(kind: str) -> None:
    meta = meta_of(kind)
    rows = stored(random_rows(meta, 3))
    for name in ("nu", "nh", "rest", "ids", "cnt", "hlp", "tlp"):
        if name not in rows:
            continue
        cut = Rows(rows.columns | {name: rows[name][:-1]}, rows.offsets)
        with pytest.raises(DataError, match="records do not add up"):
            to_batch(cut, meta)
        if name in ("nu", "nh"):
            more = rows[name].copy()
            more[0] += 200
            with pytest.raises(DataError, match="records do not add up"):
                to_batch(Rows(rows.columns | {name: more}, rows.offsets), meta)


def test_entries_moved_from_one_draw_to_another_cannot_make_the_head_too_long() -> None:
    """The sum is right, but a draw would be shorter than the head it starts with."""
    meta = meta_of("head_tail_copies")
    rows = stored(random_rows(meta, 3))
    nu = rows["nu"].reshape(-1, 2)
    position = int(np.argmax(rows["nh"]))
    nu[position] = (rows["nh"][position] - 1, nu[position].sum() - rows["nh"][position] + 1)
    with pytest.raises(DataError, match="records do not add up"):
        to_batch(rows, meta)
