"""The reading order: a permutation of every epoch, a function of its arguments and nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.order import Order, permutation

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def _flat(order: Order, first: int, count: int) -> list[tuple[int, int]]:
    return [(s.group, int(row)) for s in order.spans(first, count) for row in s.rows]


@given(SIZES, st.integers(-(2**70), 2**70), st.integers(0, 5))
def test_every_epoch_visits_every_sequence_once(sizes: list[int], seed: int, epoch: int) -> None:
    order = Order(np.array(sizes), seed)
    visited = _flat(order, epoch * order.total, order.total)
    assert sorted(visited) == [(g, row) for g, size in enumerate(sizes) for row in range(size)]


@given(SIZES, st.integers(0, 99), st.integers(0, 60), st.lists(st.integers(0, 30), max_size=8))
def test_any_cut_of_the_order_gives_the_same_order(
    sizes: list[int], seed: int, first: int, counts: list[int]
) -> None:
    whole = _flat(Order(np.array(sizes), seed), first, sum(counts))
    pieces: list[tuple[int, int]] = []
    for count in counts:
        pieces += _flat(Order(np.array(sizes), seed), first + len(pieces), count)
    assert pieces == whole


def test_groups_come_whole_and_epochs_and_seeds_differ() -> None:
    sizes = np.full(20, 8)
    order = Order(sizes, 0)
    first, second = _flat(order, 0, 160), _flat(order, 160, 160)
    assert len({group for group, _ in first[:8]}) == 1
    assert first != second
    assert [row for _, row in first[:8]] != [row for _, row in first[8:16]]
    assert _flat(Order(sizes, 1), 0, 160) != first


def test_permutations_never_change() -> None:
    """A saved state must mean the same order for ever, whatever the version of NumPy."""
    assert permutation(8, seed=0, epoch=0, stream=0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, seed=7, epoch=3, stream=5).tolist() == [4, 1, 7, 5, 2, 0, 6, 3]


def test_large_seeds_keep_all_their_bits() -> None:
    orders = [Order(np.full(9, 9), 2**63 + seed) for seed in range(3)]
    assert len({tuple(_flat(order, 0, 81)) for order in orders}) == 3


def test_first_places_are_uniform() -> None:
    first = np.array([permutation(5, 0, epoch, 0)[0] for epoch in range(2000)])
    counts = np.bincount(first, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 23.5  # chi-square, 4 degrees: p = 1e-4; seeded
