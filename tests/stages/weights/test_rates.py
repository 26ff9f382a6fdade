"""Pass rates from two columns of a set, and what has none."""

from pathlib import Path

import numpy as np
import pytest

from stages.weights.rates import has_outcomes, read_rates
from storage.errors import DataError
from storage.files.place import Place
from storage.stream import read_split
from tests.stages.weights.cases import graded_world


def test_rates_are_the_shares_of_right_responses(tmp_path: Path) -> None:
    directory = graded_world(tmp_path).records.directory
    rates = read_rates(directory)
    right: dict[int, list[int]] = {}
    for batch in read_split(directory, "train"):
        for prompt, outcome in zip(batch.prompt_id.tolist(), batch.outcome.tolist(), strict=True):
            right.setdefault(prompt, []).append(outcome)
    assert len(right) == 16
    assert set(rates.rate_P) == {0.0, 0.25, 0.5, 0.75, 1.0}
    prompts = np.array(sorted(right))[::-1]
    expected = [np.mean(right[prompt]) for prompt in prompts]
    np.testing.assert_array_equal(rates.of(prompts), expected)


@pytest.fixture
def ungraded(tmp_path: Path) -> Place:
    return graded_world(tmp_path, outcomes=False).records.directory


def test_a_set_without_outcomes_has_no_rates(ungraded: Place) -> None:
    assert not has_outcomes(ungraded)
    with pytest.raises(DataError, match="16 of 16 prompts have no response with a known outcome"):
        read_rates(ungraded)


def test_one_response_a_prompt_is_no_rate(tmp_path: Path) -> None:
    directory = graded_world(tmp_path, samples=1).records.directory
    assert has_outcomes(directory)
    with pytest.raises(DataError, match=r"every prompt has one response.*rollouts\.n"):
        read_rates(directory)
