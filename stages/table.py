"""What every configuration table is built on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ByContent:
    """Marks a field that names something outside the recipe (a file, a model, a set).

    The name never enters a key; what it names does, as a digest or as the key of a set.
    """


BY_CONTENT = ByContent()
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
