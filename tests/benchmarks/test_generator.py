"""The synthetic teachers are what they are said to be."""

import math

import numpy as np
import pytest

from benchmarks.floor import floor
from benchmarks.generator import SETS, VOCABULARY, Counts, Teacher, small_world, world

POSITIONS = 30_000

# Mean and median entropy in nats, and mean number of distinct ids among 50 draws.
PUBLISHED = {"r12": (1.93, 1.63, 12.26), "sharp": (0.98, 0.55, 6.15), "rl": (0.40, 0.15, 2.86)}


@pytest.mark.parametrize("name", SETS)
def test_statistics_are_those_it_was_fitted_to(name: str) -> None:
    teacher = Teacher(SETS[name], seed=3)
    block = teacher.block(POSITIONS)
    distinct = teacher.counts(block).nu_T.astype(float)
    mean, median, ids = PUBLISHED[name]
    error = 4 * block.ent_T.std() / math.sqrt(POSITIONS)
    assert abs(block.ent_T.mean() - mean) < error + 0.02 * mean
    assert abs(np.median(block.ent_T) - median) < error + 0.04 * median
    assert abs(distinct.mean() - ids) < 4 * distinct.std() / math.sqrt(POSITIONS) + 0.01 * ids


def test_dense_rows_entropy_and_squares_agree() -> None:
    of = small_world()
    block = Teacher(SETS["r12"], 5, of).block(200)
    log_p_TV = block.log_p(0, 200, of).astype(np.float64)
    p_TV = np.exp(log_p_TV)
    np.testing.assert_allclose(p_TV.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(-(p_TV * log_p_TV).sum(1), block.ent_T, atol=1e-4)
    np.testing.assert_allclose((p_TV**2).sum(1), block.square_T, atol=1e-5)
    np.testing.assert_allclose(log_p_TV[np.arange(200), block.tok_T], block.lp_T, atol=1e-4)


def test_draws_follow_the_distribution() -> None:
    of = small_world()
    teacher = Teacher(SETS["r12"], 6, of)
    block = teacher.block(1)
    p_V = np.exp(block.log_p(0, 1, of)[0].astype(np.float64))
    total_V = np.zeros(len(p_V))
    for _ in range(400):
        counts = teacher.counts(block, draws=200)
        assert counts.cnt_E.sum() == 200
        assert len(set(counts.ids_E.tolist())) == counts.nu_T[0]
        total_V[counts.ids_E] += counts.cnt_E
    draws = total_V.sum()
    likely = p_V * draws > 20
    z = (total_V - p_V * draws)[likely] / np.sqrt(p_V * (1 - p_V) * draws)[likely]
    assert np.abs(z).max() < 5
    assert abs(z.std() - 1) < 0.35


def test_entries_are_by_descending_count_and_then_id() -> None:
    teacher = Teacher(SETS["r12"], 7, small_world())
    counts = teacher.counts(teacher.block(50))
    start = 0
    for size in counts.nu_T.tolist():
        ids, cnt = counts.ids_E[start : start + size], counts.cnt_E[start : start + size]
        order = np.lexsort((ids, -cnt.astype(int)))
        assert order.tolist() == list(range(size))
        start += size


def test_the_same_seed_gives_the_same_positions() -> None:
    one, two = (Teacher(SETS["rl"], 8, small_world()).block(20) for _ in range(2))
    assert np.array_equal(one.cand_TC, two.cand_TC)
    assert np.array_equal(one.mass_TC, two.mass_TC)


def test_lengths_add_up() -> None:
    lengths = Teacher(SETS["rl"], 9, small_world()).lengths(100_000)
    assert lengths.sum() == 100_000
    assert lengths[:-1].min() >= 32
    assert lengths.max() <= 4096


def test_the_unigram_is_mostly_in_the_order_of_ids() -> None:
    u_V = world().unigram_V
    assert len(u_V) == VOCABULARY
    assert u_V.sum() == pytest.approx(1.0)
    assert u_V[:1000].sum() > 0.4
    assert u_V[-100_000:].sum() < 0.2


# ---------------------------------------------------------------------------------------------
# The floor


def _counts(positions: list[dict[int, int]]) -> Counts:
    rows = [sorted(position.items(), key=lambda e: (-e[1], e[0])) for position in positions]
    return Counts(
        np.array([len(row) for row in rows], np.uint8),
        np.array([i for row in rows for i, _ in row], np.uint32),
        np.array([c for row in rows for _, c in row], np.uint8),
    )


def test_floor_of_records_that_say_nothing_is_nothing() -> None:
    found = floor(*_counts([{3: 50}] * 5000), draws=50, vocabulary=8)
    assert found.total < 0.1
    assert found.order == 0.0


def test_floor_of_uniform_ids_is_their_logarithm() -> None:
    ids = np.random.default_rng(0).integers(0, 256, 40_000)
    found = floor(*_counts([{int(i): 50} for i in ids]), draws=50, vocabulary=256)
    assert found.ids == pytest.approx(8.0, abs=0.05)
    assert found.counts < 0.02


def test_frequencies_that_are_known_need_not_be_learnt() -> None:
    share_V = 1.0 / np.arange(1, 4097)
    share_V /= share_V.sum()
    ids = np.random.default_rng(0).choice(4096, 4000, p=share_V)
    counts = _counts([{int(i): 50} for i in ids])
    learnt = floor(*counts, draws=50, vocabulary=4096)
    known = floor(*counts, draws=50, vocabulary=4096, count_V=np.rint(1e6 * share_V).astype(int))
    entropy = float(-np.log2(share_V[ids]).mean())
    assert known.ids == pytest.approx(entropy, abs=0.05)
    assert known.ids < learnt.ids - 0.3
    # What is wrong of them is unlearnt: no worse than beginning from nothing.
    wrong = floor(*counts, draws=50, vocabulary=4096, count_V=np.arange(4096))
    assert wrong.ids <= learnt.ids


def test_order_inside_a_run_of_equal_counts_is_free() -> None:
    found = floor(*_counts([{1: 10, 2: 10, 3: 10, 4: 5, 5: 5, 6: 10}]), draws=50, vocabulary=8)
    assert found.order == pytest.approx(math.log2(math.factorial(4) * math.factorial(2)))


def test_floor_of_the_text_like_set_is_the_known_one() -> None:
    teacher = Teacher(SETS["r12"], seed=1)
    counts = teacher.counts(teacher.block(POSITIONS))
    found = floor(*counts, draws=50, vocabulary=VOCABULARY)
    # 148.0 bits over two million positions; a short set pays more for learning its ids.
    assert 148.0 < found.total < 155.0
    assert found.counts == pytest.approx(12.3, abs=0.4)
    assert found.order == pytest.approx(22.0, abs=0.5)
