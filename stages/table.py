"""What every configuration table is built on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ByContent:
    """Marks a field that names something outside the recipe (a file, a model, a set).

    The name never enters a key; what it names does, as a digest or as the key of a set.
    """


class NotInKey:
    """Marks a field that decides whether a set is made, or how many, but never what is in one."""


BY_CONTENT = ByContent()
NOT_IN_KEY = NotInKey()


@dataclass(frozen=True)
class KeyName:
    """Marks a renamed field: `name` is what it is called in keys, which must not change."""

    name: str


Named = Annotated[str, BY_CONTENT]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Table(BaseModel):
    """Base of all tables: immutable, unknown keys refused, attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True
    )

    def unused(self) -> frozenset[str]:
        """Fields without effect, given the others; they never enter a key."""
        return frozenset()


class Layers(dict[str, object]):
    """A merged table that remembers what it said before its `kind` or `name` was changed."""

    inherited: frozenset[str] = frozenset()
    """Fields that nobody has set since: a `Choice` that does not know them ignores them."""


class Choice(Table):
    """Base of tables of which a recipe chooses one by name, each with options of its own.

    The members of such a union tell themselves apart by the field `chosen_by`.
    """

    chosen_by: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _own_options(cls, values: object) -> object:
        """An option of another choice is an error, unless it lay below the change of choice."""
        if not isinstance(values, Mapping):
            return values
        given = cast("Mapping[str, Any]", values)
        inherited = values.inherited if isinstance(values, Layers) else frozenset[str]()
        for name in given:
            if name not in cls.model_fields and name not in inherited:
                options = ", ".join(f"`{own}`" for own in cls.model_fields if own != cls.chosen_by)
                choice = f'{cls.chosen_by} = "{cls.model_fields[cls.chosen_by].default}"'
                raise ValueError(f"`{name}` is not an option of {choice}, which has {options}")
        return {name: value for name, value in given.items() if name in cls.model_fields}
