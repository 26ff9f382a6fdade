"""The table of a weight, the key of a student that has some, and selections by themselves."""

from typing import Any, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.planning.fingerprint import identity
from stages.config.training import Student
from stages.weights.base import Weight, top_share
from stages.weights.entropy import Entropy
from stages.weights.random_share import Random


def student(**fields: Any) -> Student:
    return Student.model_validate({"steps": 1, **fields})


def test_a_table_becomes_the_weight_it_names() -> None:
    made = student(weights=[{"name": "random", "keep": 0.2}, {"name": "entropy"}])
    assert made.weights == (Random(keep=0.2), Entropy(keep=0.5))
    assert Student.model_validate(made.model_dump()) == made


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "tip"}, "name is `tip`; it must be one of "),
        ({"keep": 0.5}, "name is `None`; it must be one of "),
        (
            {"name": "entropy", "a": 1.0},
            '`a` is not an option of name = "entropy", which has `keep`',
        ),
        ({"name": "entropy", "keep": 0.0}, "greater than 0"),
        ({"name": "pass_rate", "b": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_wrong_table_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        student(weights=[table])


def test_a_weight_must_tell_the_contract_what_it_reads() -> None:
    with pytest.raises(TypeError, match="Silent does not say reads and reason"):

        class Silent(Weight):
            name: Literal["silent"] = "silent"

    Weight.known.pop("silent")


def test_only_weights_enter_the_key() -> None:
    plain = identity(student())
    assert identity(student(normalise="count")) == plain
    assert not {"weights", "normalise"} & plain.keys()
    weighted = [
        identity(student(weights=[{"name": "random", "keep": keep}], normalise=normalise))
        for keep in (0.2, 0.3)
        for normalise in ("weights", "count")
    ]
    assert len({str(one) for one in [plain, *weighted]}) == 5


def test_only_routing_enters_the_key() -> None:
    def mixture(**term: str) -> object:
        return identity(student(objective={"name": "mixture", "terms": [{"name": "jsd", **term}]}))

    assert mixture(on="all") == mixture()
    assert len({str(mixture(on=on)) for on in ("all", "right", "wrong")}) == 3


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 1.0])
def test_the_top_share_is_that_of_a_sort_with_ties_to_the_first(share: float) -> None:
    score_T = np.random.default_rng(0).integers(0, 9, 50).astype(float)
    order = sorted(range(50), key=lambda index: (-score_T[index], index))
    expected = sorted(order[: max(1, round(share * 50))])
    assert np.flatnonzero(top_share(score_T, share)).tolist() == expected
