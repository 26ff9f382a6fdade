"""`Rows`: construction refuses what does not fit, selection keeps sequences whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DataError
from storage.rows import Rows, gather, join_segments, offsets_of
from tests.storage.make import KINDS, meta_of, random_rows, same_rows

HEAD_TAIL = random_rows(meta_of("head_tail"), 9)


def _same_sequence(a: Rows, i: int, b: Rows, j: int) -> bool:
    one, other = a.sequence(i), b.sequence(j)
    return all(np.array_equal(one[name], other[name]) for name in a.columns)


@given(st.lists(st.integers(0, 8)))
def test_take_returns_the_asked_sequences_in_order(indices: list[int]) -> None:
    taken = HEAD_TAIL.take(indices)
    assert len(taken) == len(indices)
    assert all(_same_sequence(taken, j, HEAD_TAIL, i) for j, i in enumerate(indices))
    assert taken.tokens == sum(HEAD_TAIL.lengths("position")[i] for i in indices)


@given(st.integers(0, 9), st.integers(0, 9))
def test_slices_joined_are_the_table(a: int, b: int) -> None:
    low, high = min(a, b), max(a, b)
    pieces = [HEAD_TAIL.slice(0, low), HEAD_TAIL.slice(low, high), HEAD_TAIL.slice(high, 9)]
    assert same_rows(Rows.concat(pieces), HEAD_TAIL)
    assert same_rows(pieces[1], HEAD_TAIL.take(range(low, high)))


def test_slice_shares_memory_and_take_does_not() -> None:
    assert np.shares_memory(HEAD_TAIL.slice(2, 5)["ids"], HEAD_TAIL["ids"])
    assert not np.shares_memory(HEAD_TAIL.take(np.arange(9))["ids"], HEAD_TAIL["ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_the_inverse_of_from_sequences(kind: str) -> None:
    rows = random_rows(meta_of(kind), 5)
    assert same_rows(Rows.from_sequences(rows.sequence(i) for i in range(5)), rows)


def test_offsets_of_all_levels_follow_from_the_columns() -> None:
    for kind in KINDS:
        rows = random_rows(meta_of(kind), 6)
        given = {level: rows.offsets[level] for level in ("prompt", "position")}
        derived = Rows.from_columns(rows.columns, given)
        assert derived.offsets.keys() == rows.offsets.keys()
        assert same_rows(derived, rows)


@given(st.lists(st.integers(0, 5), min_size=1), st.data())
def test_gather_lists_the_segments(lengths: list[int], data: st.DataObject) -> None:
    offsets = offsets_of(lengths)
    wanted = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1))), np.int64)
    flat, gathered = gather(offsets, wanted)
    expected = [np.arange(offsets[i], offsets[i + 1]) for i in wanted]
    assert flat.tolist() == np.concatenate([np.zeros(0, np.int64), *expected]).tolist()
    assert np.diff(gathered).tolist() == [lengths[i] for i in wanted]


@pytest.mark.parametrize("longest", [5, 100])
@given(data=st.data())
def test_segments_are_joined_in_the_order_asked_for(longest: int, data: st.DataObject) -> None:
    values = np.arange(120)
    start = data.draw(st.lists(st.integers(0, 20), max_size=9))
    length = [data.draw(st.integers(0, longest)) for _ in start]
    expected = [np.arange(a, a + n) for a, n in zip(start, length, strict=True)]
    found = join_segments(values, np.array(start, np.int64), np.array(length, np.int64))
    assert found.tolist() == np.concatenate([np.zeros(0), *expected]).tolist()
    assert not np.shares_memory(found, values)


ONE = {"seq_id": 7, "prompt": [1, 2], "tok": [3, 4, 5], "lp": [-1.0, -2.0, -3.0]}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"tok": [3, -4, 5]}, "column 'tok': -4 does not fit into uint32"),
        ({"tok": [3, 1 << 32, 5]}, "column 'tok': 4294967296 does not fit into uint32"),
        ({"tok": [3.0, 4.0, 5.0]}, "column 'tok': expected integers, got float64"),
        ({"lp": [-1.0, -2.0]}, "sequence 1, column 'lp': 2 values, but 'tok' has 3"),
        ({"logp": [-1.0]}, "sequence 1 differs from sequence 0 in columns logp"),
    ],
)
def test_from_sequences_refuses(spoiled: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Rows.from_sequences([ONE, ONE | spoiled])


@pytest.mark.parametrize(
    ("columns", "offsets", "message"),
    [
        ({"logp": [0.0]}, {"prompt": [0, 0], "position": [0, 1]}, "unknown column 'logp'"),
        ({"tok": [1, 2]}, {"prompt": [0, 0], "position": [0, 1]}, "'tok': 2 values, but 1"),
        ({"tok": [1]}, {"position": [0, 1]}, "offsets of level 'prompt' are missing"),
        ({"tok": [1]}, {"prompt": [0], "position": [0, 1]}, "must have 2 entries"),
        ({"tok": [1]}, {"prompt": [0, 0, 0], "position": [0, 2, 1]}, "never fall"),
        ({"tok": [[1]]}, {"prompt": [0, 0], "position": [0, 1]}, "expected a flat array"),
        (
            {"tok": [1], "ids": [5]},
            {"prompt": [0, 0], "position": [0, 1]},
            "column 'nu' is missing: it says how many entry values",
        ),
        (
            {"tok": [1, 2], "nu": [1, 1, 1], "ids": [5]},
            {"prompt": [0, 0], "position": [0, 2]},
            "column 'nu': 3 values for 2 positions",
        ),
        (
            {"tok": [1], "nu": [1], "nh": [1, 1], "ids": [5], "hlp": [0.0]},
            {"prompt": [0, 0], "position": [0, 1]},
            "column 'nh': 2 values for 1 positions",
        ),
    ],
)
def test_from_columns_refuses(
    columns: dict[str, object], offsets: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Rows.from_columns(columns, offsets)


def test_concat_refuses_nothing_and_unequal_columns() -> None:
    with pytest.raises(DataError, match="empty list"):
        Rows.concat([])
    with pytest.raises(DataError, match="'cand' is not in every table"):
        Rows.concat([HEAD_TAIL.slice(0, 1), random_rows(meta_of("sequences"), 1)])


def test_an_empty_table_has_no_sequences() -> None:
    empty = Rows.from_sequences([])
    assert len(empty) == 0
    assert empty.tokens == 0
