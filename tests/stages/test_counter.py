"""Counter-based randomness: a value has a name, and the name decides it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.counter import hash64, shuffled, uniform


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_shuffle_is_a_permutation(size: int, seed: int) -> None:
    places = shuffled(np.arange(size), size, seed)
    assert np.array_equal(np.sort(places), np.arange(size))


@given(st.integers(1, 10**9), st.data())
def test_a_place_does_not_depend_on_what_else_is_asked(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    together = shuffled(indices, size, 7)
    assert together.tolist() == [int(shuffled(index, size, 7)[0]) for index in indices]


def test_a_shuffle_leaves_no_order_behind() -> None:
    size = 50_000
    places = shuffled(np.arange(size), size, 0)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.02
    assert not np.array_equal(places, shuffled(np.arange(size), size, 1))


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        shuffled(index, 10, 0)


def test_uniform_numbers_are_uniform_in_every_counter() -> None:
    for numbers in (uniform(0, np.arange(40_000), 5), uniform(0, 5, np.arange(40_000))):
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert (np.square(counts - 800) / 800).sum() < 110  # 99.999 % point for 49 degrees
        assert numbers.min() >= 0
        assert numbers.max() < 1


def test_every_part_of_a_name_counts() -> None:
    names = {int(hash64(*name)[0]) for name in [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1), (0, 1, 0)]}
    assert len(names) == 5


def test_values_never_change() -> None:
    """Sets on disk were made with these numbers: a change here needs new stage versions."""
    assert hash64(1, 2).tolist() == [13608149317741381227]
    assert shuffled(np.arange(8), 8, 3).tolist() == [6, 4, 7, 3, 1, 5, 0, 2]
    assert uniform(0, 3, 4).tolist() == [pytest.approx(0.50032065, abs=1e-8)]
