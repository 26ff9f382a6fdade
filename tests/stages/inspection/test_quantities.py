"""Quantities: what each says of a position, and which sequence is worst by it."""

import numpy as np
import pytest

from stages.evaluation.positions import PositionValues
from stages.inspection.quantities import Quantity, badness, covered, mean, of_model, of_set, worst
from storage.batch import Batch
from storage.codec import to_batch
from storage.rows import Rows
from tests.storage.make import meta_of, sequence


def batch(kind: str, count: int = 3, positions: int = 4) -> Batch:
    meta = meta_of(kind, vocab_size=50)
    rng = np.random.default_rng(0)
    made = [sequence(rng, meta, number, positions=positions) for number in range(count)]
    return to_batch(Rows.from_sequences(made), meta)


def values(tokens: int) -> PositionValues:
    rng = np.random.default_rng(1)
    logq_T, entropy_T = -rng.exponential(1.0, (2, tokens))
    ids_TK = rng.integers(0, 50, (tokens, 5))
    return PositionValues(logq_T, -entropy_T, ids_TK, np.log(np.full((tokens, 5), 0.1)))


def test_a_set_says_what_it_holds() -> None:
    found = {one.key: values_T for one, values_T in of_set(batch("head_tail")).items()}
    assert list(found) == ["advantage", "entropy", "surprise", "rest", "drawn"]
    np.testing.assert_allclose(found["advantage"], found["drawn"] - found["surprise"], rtol=1e-5)
    assert [one.key for one in of_set(batch("sequences"))] == ["drawn"]
    assert [one.key for one in of_set(batch("sampled"))] == [
        "advantage",
        "entropy",
        "surprise",
        "drawn",
    ]


def test_a_model_is_compared_with_teacher_and_sampler() -> None:
    records = batch("head_tail")
    student = values(records.tokens)
    found = {one.key: value_T for one, value_T in of_model(records, "x", student).items()}
    assert records.lp is not None
    assert records.ref_lp is not None
    np.testing.assert_allclose(found["gap:x"], records.lp - student.logq_T)
    np.testing.assert_allclose(found["drift:x"], student.logq_T - records.ref_lp)
    inside_T = covered(records)
    assert (found["weight:x"][inside_T] == 0).all()
    expected_T = np.exp(np.minimum(found["drift:x"], 11.0))  # what float16 can hold
    np.testing.assert_allclose(found["weight:x"][~inside_T], expected_T[~inside_T])


def test_covered_tokens_are_those_of_the_head() -> None:
    records = batch("head_tail", count=20)
    expected = [
        records.tok[t]
        in [
            records.ids[e]
            for e in range(records.entry_off[t], records.entry_off[t + 1])
            if records.exact[e]
        ]
        for t in range(records.tokens)
    ]
    assert covered(records).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "expected"), [("low", [-3.0, 0.0]), ("high", [2.0, 0.0]), ("large", [-3.0, 0.0])]
)
def test_worst_and_mean_of_sequences(kind: str, expected: list[float]) -> None:
    quantity = Quantity("k", "t", "a", kind)  # pyright: ignore[reportArgumentType]
    values_T, off = np.array([1.0, -3.0, 2.0]), np.array([0, 3, 3])  # the second one is empty
    assert worst(quantity, values_T, off).tolist() == expected
    assert mean(values_T, off).tolist() == [0.0, 0.0]
    assert badness(quantity, np.array([-3.0]))[0] == (-3.0 if kind == "high" else 3.0)
