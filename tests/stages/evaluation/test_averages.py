"""Means with clustered standard errors, and calibration bins."""

import numpy as np
import pytest

from stages.evaluation.averages import CalibrationBins, ClusterMean


def test_the_mean_is_over_tokens_however_they_arrive() -> None:
    rng = np.random.default_rng(0)
    values_T, cluster_T = rng.random(50), rng.integers(0, 7, 50)
    whole, pieces = ClusterMean(), ClusterMean()
    whole.add(values_T, cluster_T)
    for part in np.array_split(np.arange(50), 6):
        pieces.add(values_T[part], cluster_T[part])
    found = whole.estimate()
    assert found is not None
    assert found.mean == pytest.approx(values_T.mean())
    again = pieces.estimate()
    assert again is not None
    assert (again.mean, again.error) == pytest.approx((found.mean, found.error))


def test_the_standard_error_covers_correlated_tokens() -> None:
    """Tokens of a prompt share an offset; the error must be that of prompts, not of tokens."""
    rng = np.random.default_rng(1)
    means, errors, naive = [], [], []
    for _ in range(300):
        offsets = rng.standard_normal(40)
        lengths = rng.integers(5, 15, 40)
        cluster_T = np.repeat(np.arange(40), lengths)
        values_T = offsets[cluster_T] + 0.1 * rng.standard_normal(len(cluster_T))
        mean = ClusterMean()
        mean.add(values_T, cluster_T)
        found = mean.estimate()
        assert found is not None
        assert found.error is not None
        means.append(found.mean)
        errors.append(found.error)
        naive.append(values_T.std() / np.sqrt(len(values_T)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
    assert np.mean(naive) < 0.5 * np.std(means)


def test_one_cluster_has_no_error_and_none_no_mean() -> None:
    mean = ClusterMean()
    assert mean.estimate() is None
    mean.add(np.array([1.0, 3.0]), np.array([4, 4]))
    found = mean.estimate()
    assert found is not None
    assert (found.mean, found.error) == (2.0, None)


def test_calibration_against_the_formula() -> None:
    rng = np.random.default_rng(2)
    confidence_T, teacher_T = rng.random(500), rng.random(500)
    calibration = CalibrationBins()
    for part in np.array_split(np.arange(500), 3):
        calibration.add(confidence_T[part], teacher_T[part])
    expected = 0.0
    for b in range(15):
        inside = (confidence_T >= b / 15) & (confidence_T < (b + 1) / 15)
        gap = confidence_T[inside].mean() - teacher_T[inside].mean()
        expected += inside.mean() * abs(gap)
    assert calibration.error() == pytest.approx(expected)


def test_calibration_edges() -> None:
    calibration = CalibrationBins()
    assert calibration.error() is None
    calibration.add(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    assert calibration.error() == 0.0
    calibration.add(np.array([1.0, 1.0]), np.array([0.0, 0.5]))
    assert calibration.error() == pytest.approx(1.5 / 4)


def test_noisy_but_unbiased_probabilities_cancel_inside_a_bin() -> None:
    """A draw instead of the probability itself leaves a calibrated model calibrated."""
    rng = np.random.default_rng(3)
    confidence_T = rng.random(200_000)
    calibration = CalibrationBins()
    calibration.add(confidence_T, (rng.random(200_000) < confidence_T).astype(float))
    error = calibration.error()
    assert error is not None
    assert error < 0.005
