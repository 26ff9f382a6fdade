"""What compares the responses to a prompt, from a few columns of a set."""

from pathlib import Path

import numpy as np
import pytest

from stages.weights.base import GroupSums, Positions, Responses
from stages.weights.rates import has_outcomes, read_groups, read_rates
from stages.weights.scope import Scope
from storage.errors import DataError
from storage.files.place import Place
from storage.schema import OUTCOME
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


def test_responses_of_one_outcome_to_a_prompt_weigh_one_together(tmp_path: Path) -> None:
    directory = graded_world(tmp_path).records.directory
    scope = Scope()
    groups = read_groups(directory, [scope])
    together: dict[tuple[int, int], float] = {}
    for batch in read_split(directory, "train"):
        at = Positions(batch, seed=0, step=0, groups=groups)
        weight_N = scope.score(at)[batch.tok_off[:-1]]
        keys = zip(batch.prompt_id.tolist(), batch.outcome.tolist(), strict=True)
        for key, weight in zip(keys, weight_N.tolist(), strict=True):
            together[key] = together.get(key, 0.0) + weight
    assert len(together) > 16
    np.testing.assert_allclose(list(together.values()), 1.0)
    assert read_groups(directory, []) == {}


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(1.0, [0.427, 0.331, 0.244]), (0.5, [0.519, 0.312, 0.169]), (2.0, [0.379, 0.334, 0.287])],
)
def test_the_teacher_decides_of_wrong_responses_and_the_student_of_right_ones(
    tau: float, expected: list[float]
) -> None:
    """Perplexities of 1.361, 1.755 and 2.383, worked out by hand."""
    log_ppl_N = np.log([1.361, 1.755, 2.383])
    prompt_N, other_N = np.zeros(3, np.int64), np.zeros(3)
    wrong = Responses(prompt_N, np.full(3, OUTCOME["cut"], np.int8), -log_ppl_N, other_N)
    right = Responses(prompt_N, np.full(3, OUTCOME["right"], np.int8), other_N, -log_ppl_N)
    found_N = np.exp(Scope(tau=tau).group_score(wrong))
    np.testing.assert_allclose(found_N / found_N.sum(), expected, atol=2e-3)
    opposite_N = np.exp(Scope(tau=tau).group_score(right))
    np.testing.assert_allclose(found_N * opposite_N, 1.0)


def test_what_nobody_has_judged_has_no_group() -> None:
    unknown = Responses(np.zeros(1, np.int64), np.array([-1], np.int8), *np.zeros((2, 1)))
    assert Scope().group_score(unknown) == [-np.inf]
    sums = GroupSums(np.array([0]), np.array([1.0]), np.array([-np.inf]))
    assert sums.of(unknown).tolist() == [-np.inf]


def test_one_response_a_prompt_is_compared_with_none(tmp_path: Path) -> None:
    directory = graded_world(tmp_path, samples=1).records.directory
    with pytest.raises(DataError, match=r"`scope` has nothing to compare it with.*rollouts\.n"):
        read_groups(directory, [Scope()])
