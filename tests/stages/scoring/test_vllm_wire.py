"""What travels to vLLM's workers and back, without vLLM."""

import json

import numpy as np

from stages.config.record_kinds import HeadTail
from stages.scoring.score import Positions
from stages.scoring.vllm_wire import Answer, Request


def test_a_request_comes_through_json_like_values() -> None:
    T = 5
    positions = Positions(
        tok_T=np.arange(T) + 2**31,
        cand_TC=np.arange(3 * T).reshape(T, 3),
        seq_T=np.full(T, -(2**62)),
        index_T=np.arange(T),
    )
    record = HeadTail(tau=0.05).model_dump_json()
    for seed in (0, -1, 2**64 + 3):
        sent = Request(17, positions, record, seed).to_kwargs()
        assert {type(value) for value in sent.values()} <= {int, str, bytes}
        assert 0 <= sent["seed"] < 2**64
        assert sent["seed"] == seed % 2**64  # what `philox.uniforms` makes of it as well
        found = Request.from_kwargs(sent)
        assert (found.prompt, found.record) == (17, record)
        for name, value in vars(positions).items():
            np.testing.assert_array_equal(getattr(found.positions, name), value, err_msg=name)


def test_a_request_without_candidates_keeps_its_shape() -> None:
    two = np.zeros(2, np.int64)
    sent = Request(1, Positions(two, np.zeros((2, 0), np.int64), two, two), "{}", 0).to_kwargs()
    assert Request.from_kwargs(sent).positions.cand_TC.shape == (2, 0)


def test_an_answer_keeps_values_and_types() -> None:
    columns = {
        "lp": np.array([-1.5, -np.inf], np.float32),
        "hlp": np.array([-0.25], np.float16),
        "nu": np.array([1, 255], np.uint8),
        "ids": np.array([], np.uint32),
    }
    sent = Answer(3, columns, "sequence \u20ac").to_bytes()
    assert sent.dtype == np.uint8
    assert sent.flags.writeable  # torch wants it so
    found = Answer.from_bytes(sent)
    assert (found.first, found.error) == (3, "sequence \u20ac")
    assert list(found.columns) == list(columns)
    for name, value in columns.items():
        assert found.columns[name].dtype == value.dtype
        np.testing.assert_array_equal(found.columns[name], value)


def test_the_size_is_that_of_the_columns() -> None:
    """No per-value overhead: a header, then the bytes."""
    columns = {"lp": np.zeros(10_000, np.float32), "ids": np.zeros(90_000, np.uint32)}
    header = len(json.dumps([0, "", [["lp", "<f4", 10_000], ["ids", "<u4", 90_000]]]))
    assert len(Answer(0, columns).to_bytes()) == 8 + header + 400_000
