"""What travels to vLLM's workers and back, without vLLM."""

import pickle

import numpy as np
import pytest

from stages.config.record_kinds import HeadTail
from stages.scoring.score import ScoredPositions
from stages.scoring.vllm_scorer import ScoreAnswer, ScoreRequest


@pytest.mark.parametrize("candidates", [0, 3])
def test_a_request_keeps_values_and_shapes(candidates: int) -> None:
    T = 5
    positions = ScoredPositions(
        tok_T=np.arange(T) + 2**31,
        cand_TC=np.arange(candidates * T).reshape(T, candidates),
        seq_T=np.full(T, -(2**62)),
        index_T=np.arange(T),
    )
    record = HeadTail(tau=0.05, candidates=candidates)
    for seed in (0, -1, 2**64 + 3):
        found = pickle.loads(pickle.dumps(ScoreRequest(17, positions, record, seed)))
        assert (found.prompt, found.record, found.seed) == (17, record, seed)
        for name, value in vars(positions).items():
            np.testing.assert_array_equal(getattr(found.positions, name), value, err_msg=name)


def test_an_answer_keeps_values_and_types() -> None:
    columns = {
        "lp": np.array([-1.5, -np.inf], np.float32),
        "hlp": np.array([-0.25], np.float16),
        "nu": np.array([1, 255], np.uint8),
        "ids": np.array([], np.uint32),
    }
    found = pickle.loads(pickle.dumps(ScoreAnswer(3, columns, "sequence \u20ac")))
    assert (found.first, found.error) == (3, "sequence \u20ac")
    assert list(found.columns) == list(columns)
    for name, value in columns.items():
        assert found.columns[name].dtype == value.dtype
        np.testing.assert_array_equal(found.columns[name], value)


def test_the_size_is_that_of_the_columns() -> None:
    """No overhead per value: a view of a large array sends its own values alone."""
    large = np.zeros(1_000_000, np.float32)
    columns = {"lp": large[:10_000], "ids": np.zeros(90_000, np.uint32)}
    assert 0 <= len(pickle.dumps(ScoreAnswer(0, columns))) - 400_000 < 1000


def test_positions_of_several_requests_are_joined() -> None:
    parts = [
        ScoredPositions(np.arange(n), np.full((n, 2), n), np.full(n, 7 * n), np.arange(n))
        for n in (3, 1)
    ]
    whole = ScoredPositions.concat(parts)
    assert whole.tok_T.tolist() == [0, 1, 2, 0]
    assert whole.cand_TC.tolist() == [[3, 3]] * 3 + [[1, 1]]
    assert whole.seq_T.tolist() == [21, 21, 21, 7]
    assert len(whole[1:3]) == 2
