"""What every configuration table is built on."""

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)


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


def expanded(value: Any) -> Any:
    """A path, or several, with a leading `~` and `$VARIABLE` replaced; anything else as it is.

    Raises:
        ValueError: there is no such variable.
    """
    if isinstance(value, list | tuple):
        return tuple(expanded(one) for one in cast("list[Any]", value))
    if not isinstance(value, str):
        return value
    found = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 (a Path would spoil s3://)
    if left := re.search(r"\$(\w+|\{\w+\})", found):
        raise ValueError(f"`{value}`: the environment has no variable {left[1].strip('{}')}")
    return found


@dataclass(frozen=True)
class KeyDefault:
    """Marks a field that is chosen for the user where it is None: `value` stands for None in keys.

    It is the default that the field had before, so that keys do not change.
    """

    value: float | str


Named = Annotated[str, BY_CONTENT]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Bound = Annotated[
    float | None,
    Field(gt=0.0),
    # TOML cannot write "no value"; `"none"` stands for it where that is not the default.
    BeforeValidator(lambda value: None if value == "none" else value),
]
"""A positive limit, or None (in a recipe: `"none"`) for no limit."""


class Table(BaseModel):
    """Base of all tables: immutable, unknown keys refused, attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_names(cls, values: object) -> object:
        """`~` and variables of the environment in names of files, models and sets."""
        if not isinstance(values, Mapping):
            return values
        given = cast("Mapping[str, Any]", values)
        changed: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            written = field.alias if field.alias and field.alias in given else name
            by_content = any(isinstance(mark, ByContent) for mark in field.metadata)
            if by_content and (value := given.get(written)) != (found := expanded(value)):
                changed[written] = found
        if not changed:
            return given
        table = copy.copy(given)  # whatever kind of mapping it is
        cast("dict[str, Any]", table).update(changed)
        return table

    def unused(self) -> frozenset[str]:
        """Fields without effect, given the others; they never enter a key."""
        return frozenset()


def at_default(table: Table, *names: str) -> frozenset[str]:
    """Those of the fields `names` that have their default value.

    A field added to a table is `unused` there, so that the keys from before stay what they are.
    """
    fields = type(table).model_fields
    return frozenset(
        name
        for name in names
        if getattr(table, name) == fields[name].get_default(call_default_factory=True)
    )


class Layers(dict[str, object]):
    """A merged table that remembers what it said before its `kind` or `name` was changed."""

    inherited: frozenset[str] = frozenset()
    """Fields that nobody has set since: a `Choice` that does not know them ignores them."""


class Choice(Table):
    """Base of tables of which a recipe chooses one by name, each with options of its own.

    A direct subclass is a family, such as `Objective`. A class below it that gives the field
    `chosen_by` a default is a member, known by that name. Reading a table as the family gives the
    member that the table names.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A member; a family itself has no options and no meaning.

        Raises:
            TypeError: the class is a family.
        """
        if cls._own_name() is None:
            raise TypeError(
                f"{cls.__name__} is a family of tables: use {cls.__name__}.of(NAME)(...), or "
                f'{cls.__name__}.model_validate({{"{cls.chosen_by}": NAME, ...}})'
            )
        return super().__new__(cls)

    chosen_by: ClassVar[str] = "name"
    unnamed: ClassVar[str | None] = None
    """The member that a table without a name means; None: the name is required."""
    known: ClassVar[dict[str, Any]]
    """The members of the family, by name."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Make a member known by its name.

        Raises:
            TypeError: another member has that name.
        """
        if Choice in cls.__bases__:
            cls.known = {}
        name = cls._own_name()
        if name is not None and not issubclass(cls, cls.known.setdefault(name, cls)):
            raise TypeError(f"{cls.__qualname__}: {cls.known[name]} is called `{name}` already")

    @classmethod
    def _own_name(cls) -> str | None:
        """The name of a member; None for a class that is none."""
        field = cls.model_fields.get(cls.chosen_by)
        return field.default if field and isinstance(field.default, str) else None

    @classmethod
    def of(cls, name: str | None) -> type[Self]:
        """The member called `name`.

        Raises:
            ValueError: there is none.
        """
        if name is not None and name in cls.known:
            return cls.known[name]
        known = ", ".join(sorted(cls.known))
        field = f"{cls.__name__.lower()}.{cls.chosen_by}"
        raise ValueError(f"{field} is `{name}`; it must be one of {known}")

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Any:
        """A class that is no member stands for the one that the table names."""
        if isinstance(values, Mapping) and cls._own_name() is None:
            table = cast("Mapping[str, Any]", values)
            return cls.of(table.get(cls.chosen_by, cls.unnamed)).model_validate(table)
        return validate(values)

    @model_validator(mode="before")
    @classmethod
    def _own_options(cls, values: object) -> object:
        """An option of another choice is an error, unless it lay below the change of choice."""
        if not isinstance(values, Mapping):
            return values
        given = cast("Mapping[str, Any]", values)
        inherited = values.inherited if isinstance(values, Layers) else frozenset[str]()
        written = [field.alias or own for own, field in cls.model_fields.items()]
        readable = {*cls.model_fields, *written}
        for name in given:
            if name not in readable and name not in inherited:
                options = ", ".join(f"`{own}`" for own in written if own != cls.chosen_by)
                choice = f'{cls.chosen_by} = "{cls.model_fields[cls.chosen_by].default}"'
                raise ValueError(f"`{name}` is not an option of {choice}, which has {options}")
        return {name: value for name, value in given.items() if name in readable}
