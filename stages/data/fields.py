"""Fields of a row by name, and the reference answer among them.

A name with dots leads into the table, list or JSON string that a column holds:
`reward_model.ground_truth`, `answers.text.0`. A column that has such a name itself comes first.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from stages.config.data import PromptSource
from stages.data.prompt_files import Row
from storage.errors import DataError

DEFAULT_ANSWER = PromptSource.model_fields["answer_field"].default
_NOTHING: Final = object()


def has(row: Row, name: str) -> bool:
    """Whether the row has the field; its value may be null."""
    return _find(row, name) is not _NOTHING


def get(row: Row, name: str) -> Any:
    """The value of a field; None where there is none."""
    found = _find(row, name)
    return None if found is _NOTHING else found


def missing(row: Row, name: str) -> str:
    """Says that a row lacks a field, and which it has at the place where the name stops to lead."""
    if get(row, name) is None and has(row, name):
        return f"`{name}` is null"
    within: object = row
    path, parts = "", name.split(".")
    while len(parts) > 1 and has(row, f"{path}{parts[0]}"):
        path += parts.pop(0)
        within = get(row, path)
        path += "."
    named = f"`{'.'.join(parts)}`" + (f" in `{path[:-1]}`" if path else "")
    return f"no field {named}; it has: {_content(_opened(within))}"


class Answers:
    """The reference answers of a source's rows.

    Args:
        source: Names the field and the pattern.
    """

    def __init__(self, source: PromptSource) -> None:
        self._name = source.answer_field
        self._where = source.where
        self._pattern = re.compile(source.answer_pattern) if source.answer_pattern else None

    @property
    def named(self) -> bool:
        """Whether the recipe names the answer, so that at least one row must have it."""
        return self._name != DEFAULT_ANSWER or self._pattern is not None

    def read(self, number: int, row: Row) -> str | None:
        """The answer of a row; None where it is null, NaN or not what the pattern describes.

        Raises:
            DataError: the field holds something else than a string or a number.
        """
        value = get(row, self._name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if not isinstance(value, str | bool | int | float):
            raise DataError(
                f"{self._where}, row {number}: `{self._name}` is a {type(value).__name__}, but a "
                "reference answer is a string or a number. Set `prompts.answer_field` to another "
                f"column, or to a field inside of it: it has {_content(value)}."
            )
        if self._pattern is None:
            return str(value)
        matches = list(self._pattern.finditer(str(value)))
        found = matches[-1][1 if self._pattern.groups else 0] if matches else None
        return None if found is None else found.strip()


def _find(row: object, name: str) -> object:
    """The value at the end of a dotted name, or `_NOTHING`."""
    place = _opened(row)
    if isinstance(place, Mapping):
        table = cast("Mapping[str, object]", place)
        if name in table:
            return table[name]
        first, dot, rest = name.partition(".")
        return _find(table[first], rest) if dot and first in table else _NOTHING
    if isinstance(place, Sequence) and not isinstance(place, str | bytes):
        first, dot, rest = name.partition(".")
        items = cast("Sequence[object]", place)
        if first.isdecimal() and int(first) < len(items):
            return _find(items[int(first)], rest) if dot else items[int(first)]
    return _NOTHING


def _opened(value: object) -> object:
    """What a string of JSON holds, if it holds fields; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _content(value: object) -> str:
    """What can be named inside of a value."""
    if isinstance(value, Mapping):
        return ", ".join(sorted(map(str, cast("Mapping[str, object]", value)))) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        count = len(cast("Sequence[object]", value))
        return f"0 to {count - 1}" if count else "none"
    return f"a {type(value).__name__}"
