"""Tables of a choice: options of another one are errors, except where the choice was changed."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from stages.config.merge import merge
from stages.table import Choice


class Shape(Choice):
    """A choice of two."""

    chosen_by: ClassVar[str] = "kind"
    colour: str = "red"


class Square(Shape):
    """One of them."""

    kind: Literal["square"] = "square"
    side: int = 1


class Circle(Shape):
    """The other one."""

    kind: Literal["circle"] = "circle"
    radius: int = 1


SHAPE: TypeAdapter[Square | Circle] = TypeAdapter(
    Annotated[Square | Circle, Field(discriminator="kind")]
)


def test_an_option_of_another_choice_is_an_error_that_names_the_right_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        SHAPE.validate_python({"kind": "circle", "side": 3})
    wanted = '`side` is not an option of kind = "circle", which has `colour`, `radius`'
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"kind": "circle"}], Circle(colour="blue")),
        ([{"kind": "circle", "radius": 4}], Circle(colour="blue", radius=4)),
        ([{"kind": "circle"}, {"radius": 4}], Circle(colour="blue", radius=4)),
        ([{"kind": "circle"}, {"colour": "grey"}], Circle(colour="grey")),
        ([{"kind": "circle"}, {"kind": "square"}], Square(colour="blue", side=3)),
        ([{"kind": "square"}], Square(colour="blue", side=3)),
    ],
)
def test_a_changed_choice_keeps_the_options_it_has(
    layers: list[dict[str, Any]], expected: Shape
) -> None:
    table: dict[str, Any] = {"shape": {"kind": "square", "colour": "blue", "side": 3}}
    for layer in layers:
        table = merge(table, {"shape": layer})
    assert SHAPE.validate_python(table["shape"]) == expected


@pytest.mark.parametrize(
    "layers", [[{"kind": "circle", "side": 9}], [{"kind": "circle"}, {"side": 9}]]
)
def test_an_option_given_after_the_change_counts(layers: list[dict[str, Any]]) -> None:
    table: dict[str, Any] = {"kind": "square", "side": 3}
    for layer in layers:
        table = merge(table, layer)
    with pytest.raises(ValidationError, match="`side` is not an option"):
        SHAPE.validate_python(table)


def test_what_a_comparison_inherits_from_its_own_layers_does_not_count_either() -> None:
    below: dict[str, Any] = {"kind": "square", "colour": "blue"}
    compare = merge({"kind": "square", "side": 3}, {"kind": "circle"})
    assert SHAPE.validate_python(merge(below, compare)) == Circle(colour="blue")
