"""The objective of a student: which options hold where one table is laid on top of another."""

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from stages.config.objectives import of_manifest
from stages.config.record_kinds import Record
from stages.config.training import Student, Train
from stages.objectives.f_divergence import JSD, SkewForwardKL, SkewReverseKL
from stages.objectives.lightning import Lightning
from stages.objectives.objective import Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.table import Choice
from stages.weights.base import Weight


def students(objective: dict[str, Any], compare: dict[str, Any]) -> dict[str, Student]:
    table = {"steps": 1, "objective": objective, "compare": {"x": {"objective": compare}}}
    return Train.model_validate(table).variants()


@pytest.mark.parametrize(
    ("main", "over", "expected"),
    [
        ({"form": "bucketed", "temperature": 2.0}, {"name": "lightning"}, Lightning(temperature=2)),
        ({"form": "bucketed"}, {"name": "reverse_kl"}, ReverseKL(form="bucketed")),
        ({"form": "bucketed"}, {"max_weight": 3.0}, ReverseKL(form="bucketed", max_weight=3.0)),
        (
            {"name": "skew_forward_kl", "alpha": 0.3},
            {"name": "skew_reverse_kl"},
            SkewReverseKL(alpha=0.3),
        ),
        ({"name": "mixture", "terms": [{"name": "tvd"}]}, {"name": "jsd"}, JSD()),
    ],
)
def test_a_comparison_keeps_the_options_that_its_objective_has(
    main: dict[str, Any], over: dict[str, Any], expected: Objective
) -> None:
    assert students(main, over)["x"].objective == expected


def test_an_option_that_the_comparison_gives_itself_must_be_its_objectives() -> None:
    with pytest.raises(ValidationError, match='`form` is not an option of name = "jsd"'):
        students({"form": "bucketed"}, {"name": "jsd", "form": "bucketed"})


def test_a_student_writes_down_the_options_of_its_objective_alone() -> None:
    student = Student(steps=1, objective=SkewForwardKL(alpha=0.2))
    written = student.model_dump()["objective"]
    assert written == {"name": "skew_forward_kl", "temperature": 1.0, "alpha": 0.2}
    assert Student.model_validate(student.model_dump()) == student


def test_what_an_earlier_version_wrote_is_read() -> None:
    """A manifest of version 0.1.0 holds the options of every objective."""
    others = {
        "form": "corrected", "max_weight": None, "truncation": 2.0, "clip": 10.0, "beta": 0.5,
        "alpha": 0.1, "start": 0.4,
    }  # fmt: skip
    old = {**others, "name": "jsd", "temperature": 2.0, "terms": (), "beta": 0.3}
    assert of_manifest(old) == JSD(temperature=2.0, beta=0.3)
    terms = [{**others, "name": "lightning", "clip": 3.0, "weight": [[0.0, 1.0]]}]
    mixture = {**others, "name": "mixture", "temperature": 1.0, "terms": terms}
    assert of_manifest(mixture).model_dump()["terms"] == (
        {"name": "lightning", "clip": 3.0, "weight": ((0.0, 1.0),), "on": "all"},
    )


@pytest.mark.parametrize(
    ("family", "name"), [(Objective, "reverse_kl"), (Weight, "entropy"), (Record, "counts")]
)
def test_a_family_cannot_be_made_itself(family: type[Choice], name: str) -> None:
    with pytest.raises(TypeError, match=rf"{family.__name__}\.of\(NAME\)"):
        family(**{family.chosen_by: name})
    made = family.model_validate({family.chosen_by: name})
    assert type(made) is family.of(name)
    assert made.model_copy() == pickle.loads(pickle.dumps(made)) == made
