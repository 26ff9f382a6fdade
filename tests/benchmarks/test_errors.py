"""The exact errors are those of what the sampler draws."""

import numpy as np
import pytest

from benchmarks.errors import Profile, probabilities, profile, standard_error
from benchmarks.generator import small_world
from benchmarks.gradient_error import equal_entries, measure
from benchmarks.records import draw
from benchmarks.sources import Synthetic
from stages.config.record_kinds import Counts, HeadTail, TopK

POSITIONS = 400
SOURCE = Synthetic("r12", small_world())


@pytest.fixture(scope="module")
def found() -> Profile:
    return profile(SOURCE, POSITIONS, (8, 50, 200))


@pytest.mark.parametrize("tau", [0.01, 0.023, 0.1, 0.4, 0.9])
def test_head_and_tail_are_those_of_the_sampler(found: Profile, tau: float) -> None:
    record, rng = HeadTail(tau=tau, candidates=0), np.random.default_rng(0)
    columns = [draw(block, record, rng).columns() for block in SOURCE.blocks(POSITIONS)]
    nu_T, nh_T, rest_T = (np.concatenate([c[n] for c in columns]) for n in ("nu", "nh", "rest"))
    split = found.split(tau)
    # The sampler's arithmetic is float32: what is on a border may fall to the other side, above all
    # ceil(1 / tau) where nothing is in the head.
    same_T = split.head_T == nh_T
    assert same_T.mean() > 0.99
    sure_T = split.rest_T < record.tail_floor * (1 + 1e-5)  # a tail of one id at most, by chance
    assert np.mean((split.head_T + split.tail_T == nu_T)[~sure_T]) > 0.95
    assert np.abs(split.head_T + split.tail_T - nu_T)[same_T].max() <= 1
    kept = np.mean((nu_T - nh_T)[sure_T & same_T]) if sure_T.any() else 0.0
    expected = np.mean((split.rest_T / record.tail_floor)[sure_T & same_T]) if sure_T.any() else 0.0
    assert kept == pytest.approx(expected, abs=3.5 * 0.5 / max(1, sure_T.sum()) ** 0.5)
    np.testing.assert_allclose(split.rest_T[same_T], rest_T[same_T], atol=1e-5, rtol=2**-12)


def test_exact_errors_are_those_measured_over_seeds(found: Profile) -> None:
    exact = [
        (HeadTail(candidates=0), found.head_tail(0.023)),
        (Counts(sampler="multinomial"), found.independent[50]),
        (Counts(), found.systematic(50)),
        (TopK(k=12), found.top_k(12)),
    ]
    found_RS = measure(SOURCE, POSITIONS, [record for record, _ in exact], 12)
    for (record, error), measured in zip(exact, found_RS, strict=True):
        standard = np.std(measured, ddof=1) / np.sqrt(len(measured))
        assert abs(np.mean(measured) - error.mse) < 5 * standard + 0.002 * error.mse, record


def test_standard_errors_take_neighbours_for_alike(found: Profile) -> None:
    rng = np.random.default_rng(1)
    apart_T = rng.standard_normal(64_000)
    assert standard_error(apart_T) == pytest.approx(64_000**-0.5, rel=0.1)
    alike_T = np.repeat(rng.standard_normal(1000), 64)
    assert standard_error(alike_T) == pytest.approx(1000**-0.5, rel=0.1)
    assert standard_error(apart_T[:100]) == 0.0  # too few to tell
    error = found.head_tail(0.023)
    assert 0 < error.mse_error < error.mse
    assert found.top_k(12).entries_error == 0.0


def test_systematic_errors_are_those_of_whole_rows(found: Profile) -> None:
    p_TV = np.concatenate([probabilities(block.z_RV) for block in SOURCE.blocks(POSITIONS)])
    for draws in (8, 50, 150):
        expected_TV = draws * p_TV
        f_TV = expected_TV % 1.0
        error = found.systematic(draws)
        assert error.mse == pytest.approx((f_TV * (1 - f_TV)).sum(1).mean() / draws**2)
        assert error.entries == pytest.approx(np.minimum(1.0, expected_TV).sum(1).mean())


def test_no_record_is_below_the_bound(found: Profile) -> None:
    for error in (
        *found.independent.values(),
        *(found.systematic(draws) for draws in (8, 50, 150)),
        *(found.head_tail(tau) for tau in (0.01, 0.05, 0.3)),
    ):
        bound = found.bound(error.entries)
        assert bound.entries == pytest.approx(error.entries, rel=1e-3)
        assert bound.mse <= error.mse * (1 + 1e-9)


def test_tau_is_found_on_the_border(found: Profile) -> None:
    wanted = found.independent[50]
    tau = found.find_tau(lambda error: error.mse <= wanted.mse)
    assert tau is not None
    assert found.head_tail(tau).mse <= wanted.mse < found.head_tail(tau * 1.02).mse
    tau = found.find_tau(lambda error: error.entries <= wanted.entries)
    assert tau is not None
    assert found.head_tail(tau).entries <= wanted.entries < found.head_tail(tau / 1.02).entries
    assert found.find_tau(lambda error: error.entries < 1) is None


def test_draws_that_the_profile_does_not_reach_are_an_error(found: Profile) -> None:
    with pytest.raises(ValueError, match="lie outside"):
        equal_entries(found, 1000.0)


def test_draws_for_as_many_entries_are_interpolated(found: Profile) -> None:
    draws, error = equal_entries(found, found.independent[50].entries)
    assert draws == pytest.approx(50)
    assert error.mse == pytest.approx(found.independent[50].mse)
