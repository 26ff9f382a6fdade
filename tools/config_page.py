"""Write docs/config.md, every field of a recipe, from the tables that read it.

python tools/config_page.py            write the page
python tools/config_page.py --check    exit 1 if it is not what would be written
"""

import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.planning.config import RECIPE
from pipeline.planning.document import write_or_check
from stages.table import ByContent, Choice, NotInKey, Table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"

INTRODUCTION = """\
# Every field of a recipe

A recipe is TOML. This page lists its tables and fields, written by `python tools/config_page.py`
from the tables that read a recipe; `afterglow config` prints a recipe with every field filled in.

**Key** says what a field does to the name of the sets made with it. *yes*: the value is part of
the key, so another value makes another set. *content*: what the field names counts (the bytes of a
file, the weights of a model), not how it is called. Empty: the field changes how the work is done
and not what comes out. A field without effect, given the others, never counts.

"""


def page() -> str:
    """The page as it should be."""
    return INTRODUCTION + "\n".join(_sections("", RECIPE, in_key=False, shown={}))


def _sections(
    path: str, table: type[Table], *, in_key: bool, shown: dict[type, str]
) -> Iterator[str]:
    """One section for a table, then one for each table inside it that has none yet."""
    shown[table] = path
    inside: list[tuple[type[Table], str, bool]] = []
    rows: list[str] = []
    for name, field in table.model_fields.items():
        written = field.alias or name
        # Above the tables of stages only the seed counts; a `run` table never does.
        counts = name == "seed" if not path else in_key and name != "run"
        found = list(_tables(field.annotation, f"{path}.{written}" if path else written))
        inside += [(inner, below, counts or not path) for inner, below in found]
        elsewhere = [shown[inner] for inner, _ in found if inner in shown]
        plain = not found or " or " in _type(field.annotation)  # a number, or a table in its place
        rows.append(_row(written, field, counts and plain, elsewhere[:1]))
    yield f"## {_title(path, table)}\n"
    if path:
        yield f"{_paragraph(table.__doc__ or '')}\n"
    yield "| field | type | default | key | meaning |\n|---|---|---|---|---|\n" + "".join(rows)
    for inner, below, counts in inside:
        if inner not in shown:
            yield from _sections(below, inner, in_key=counts, shown=shown)


def _title(path: str, table: type[Table]) -> str:
    if not path:
        return "Top level"
    if not issubclass(table, Choice):
        return f"`[{path}]`"
    name = table.model_fields[table.chosen_by].default
    return (
        f'`[{path}]` with `{table.chosen_by} = "{name}"`'
        if isinstance(name, str)
        else f"`[{path}]`"
    )


def _row(name: str, field: FieldInfo, in_key: bool, elsewhere: list[str]) -> str:
    content = any(isinstance(mark, ByContent) for mark in field.metadata)
    outside = any(isinstance(mark, NotInKey) for mark in field.metadata)
    key = "content" if content else "yes" if in_key and not outside else ""
    meaning = _paragraph(field.description or "")
    meaning += f" As `[{elsewhere[0]}]`." if elsewhere else ""
    kind = _type(field.annotation)
    return f"| `{name}` | {kind} | {_default(field)} | {key} | {meaning.strip()} |\n"


def _tables(annotation: Any, name: str) -> Iterator[tuple[type[Table], str]]:
    """The tables a field may hold, with the name each stands under in a recipe."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield from ((member, name) for member in _members(annotation) or [annotation])
    elif origin in (Union, types.UnionType):
        for each in inner:
            yield from _tables(each, name)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from _tables(inner[1], f"{name}.<name>")
    elif origin in (Annotated, tuple, list):
        yield from _tables(inner[0], name)


def _members(family: type[Table]) -> list[type[Table]]:
    """The tables among which a recipe chooses by name, without those that a test has added."""
    if Choice not in family.__bases__:
        return []
    known: dict[str, type[Table]] = cast("type[Choice]", family).known
    return [known[name] for name in sorted(known) if known[name].__module__.startswith("stages.")]


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return ""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return "table"
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(_type, inner))))
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "tables by name"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, Table) or value in ({}, ()):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(cast(object, value))
    return f"`{text}`"


def _paragraph(text: str) -> str:
    """Text on one line, safe inside a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    return write_or_check(PAGE, page(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
