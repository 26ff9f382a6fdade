"""Uniforms of a position: the published generator, and nothing but seed, sequence and position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.scoring.philox import philox4x32, uniforms

# Random123 1.14, tests/kat_vectors: "philox4x32 10", counter, key, result.
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1",
]
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_known_answers(line: str) -> None:
    words = [int(word, 16) for word in line.split()]
    counter, key, answer = words[:4], words[4:6], words[6:]
    assert [int(word) for word in philox4x32(tuple(counter), (key[0], key[1]))] == answer


@given(st.integers(-(2**80), 2**80), INT64, st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_uniforms_are_the_words_of_the_documented_counter(
    seed: int, seq_id: int, position: int, count: int
) -> None:
    got_RU = uniforms(seed, np.array([seq_id]), np.array([position]), count)
    low, high = seq_id & 0xFFFFFFFF, seq_id >> 32 & 0xFFFFFFFF
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    expected = list[float]()
    for block in range((count + 1) // 2):
        a, b, c, d = (int(w) for w in philox4x32((position, block, low, high), key))
        expected += [((a >> 5) * 2**26 + (b >> 6)) / 2**53, ((c >> 5) * 2**26 + (d >> 6)) / 2**53]
    assert got_RU.shape == (1, count)
    assert got_RU[0].tolist() == expected[:count]


def test_order_batching_and_number_of_uniforms_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    seq_R, position_R = rng.integers(0, 1000, 200), rng.integers(0, 4096, 200)
    whole = uniforms(7, seq_R, position_R, 5)
    shuffled = rng.permutation(200)
    np.testing.assert_array_equal(
        uniforms(7, seq_R[shuffled], position_R[shuffled], 5), whole[shuffled]
    )
    one_by_one = [uniforms(7, seq_R[i : i + 1], position_R[i : i + 1], 1)[0, 0] for i in range(200)]
    np.testing.assert_array_equal(one_by_one, whole[:, 0])


def test_neighbouring_names_give_unrelated_uniforms() -> None:
    seq_R, position_R = (grid.ravel() for grid in np.mgrid[0:100, 0:200])
    u = uniforms(1, seq_R, position_R, 2)
    assert u.min() >= 0
    assert u.max() < 1
    assert len(np.unique(u)) == u.size
    # 40,000 values: standard error of the mean 0.0014, of a correlation 0.007
    assert abs(u.mean() - 0.5) < 0.006
    assert abs(u.var() - 1 / 12) < 0.003
    for other in (np.roll(u[:, 0], 1), u[:, 1], uniforms(2, seq_R, position_R, 1)[:, 0]):
        assert abs(np.corrcoef(u[:, 0], other)[0, 1]) < 0.035
