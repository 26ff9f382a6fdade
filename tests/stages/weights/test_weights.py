"""The table of a weight, the key of a student that has some, and selections by themselves."""

from typing import Any, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.planning.fingerprint import identity
from stages.config.training import Student
from stages.weights.base import Positions, Weight, quantiles, top_share
from stages.weights.entropy import Entropy
from stages.weights.first import FirstShare, FirstTokens
from stages.weights.length import Length
from stages.weights.position_decay import PositionDecay
from stages.weights.random_share import Random
from stages.weights.tip import Tip
from storage.codec import to_batch
from tests.storage.make import meta_of, random_rows


def student(**fields: Any) -> Student:
    return Student.model_validate({"steps": 1, **fields})


def test_a_table_becomes_the_weight_it_names() -> None:
    made = student(weights=[{"name": "random", "keep": 0.2}, {"name": "entropy"}])
    assert made.weights == (Random(keep=0.2), Entropy(keep=0.5))
    assert Student.model_validate(made.model_dump()) == made


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "best"}, "name is `best`; it must be one of "),
        ({"name": "tip", "score": "best"}, "Input should be 'entropy', 'soft_or' or 'q3'"),
        ({"name": "tip", "by": "q3"}, 'option of name = "tip", which has `score`, `keep`'),
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


def test_quantiles_are_shares_of_smaller_values_and_half_of_equal_ones() -> None:
    assert quantiles(np.array([3.0, 1.0, 3.0, 9.0])).tolist() == [0.5, 0.125, 0.5, 0.875]
    assert quantiles(np.zeros(3)).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("score", "kept"), [("entropy", [3, 4]), ("soft_or", [2, 3]), ("q3", [0, 2])]
)
def test_tip_keeps_what_its_score_says(score: str, kept: list[int]) -> None:
    """Places among five: entropy 0 2 1 4 3, divergence 2 0 4 1 3."""
    made = Weight.model_validate({"name": "tip", "score": score, "keep": 0.4})
    entropy_T, divergence_T = [0.1, 0.5, 0.2, 2.0, 1.5], [1.0, 0.1, 3.0, 0.2, 2.0]
    weight_T = made.weigh(np.stack([entropy_T, divergence_T], axis=1))
    assert np.flatnonzero(weight_T).tolist() == kept


def test_the_score_of_tip_is_called_so_in_recipe_and_key() -> None:
    made = student(weights=[{"name": "tip", "score": "q3"}])
    assert made.weights == (Tip(score_by="q3"),)
    assert Student.model_validate(made.model_dump()) == made
    assert Student.model_validate(made.model_dump(by_alias=True)) == made
    assert identity(made)["weights"] == [{"name": "tip", "score": "q3", "keep": 0.5}]


def test_weights_of_place_and_length() -> None:
    meta = meta_of("head_tail")
    at = Positions(to_batch(random_rows(meta, 5), meta), seed=0, step=0)
    lengths = at.length_N.tolist()
    assert len(set(lengths)) > 1
    places = [(place, length) for length in lengths for place in range(length)]
    expected: list[tuple[Weight, list[float]]] = [
        (FirstShare(share=0.3), [place < -(-3 * length // 10) for place, length in places]),
        (FirstTokens(tokens=2), [place < 2 for place, _ in places]),
        (PositionDecay(half_life=3.0), [2 ** (-place / 3) for place, _ in places]),
        (Length(), [1 / length for _, length in places]),
        (Length(power=0.5), [length**0.5 for _, length in places]),
    ]
    for weight, weight_T in expected:
        np.testing.assert_allclose(weight.score(at), weight_T, err_msg=weight.name)
