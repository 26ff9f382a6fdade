"""A recipe: the config tables of all stages, read from TOML files and command-line overrides."""

import importlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from pipeline.graph import STAGES, Stage
from pipeline.planning.methods import Tree, lay_methods
from stages.config.data import ModelRef
from stages.config.merge import merge
from stages.config.stage import StageTable
from stages.config.template import Template
from stages.table import Table, expanded
from storage.errors import ConfigError


class Recipe(Table):
    """Everything a run needs to know. `RECIPE` adds the tables of the stages, by their names."""

    name: str = "custom"
    """For people; never part of a key."""
    seed: int = 0
    """Seed of sampling, data order and record draws, in every stage that has any."""
    store: str = "store"
    """Directory of all sets; never part of a key. Here and in every field that names a file, a
    leading `~` and `$VARIABLE` are replaced; relative paths start at the working directory."""
    teacher: ModelRef | None = None
    """The frozen model whose distribution is kept. Not needed where students learn from a set of
    records made elsewhere (`train.data`)."""
    student: ModelRef | None = None
    """The base model that SFT starts from; without `[sft]`, pi_ref itself. Not needed where all
    students start from scratch."""
    template: Template = Template()
    """How messages become prompts, in every stage that renders any."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def tables(self, stage: Stage) -> Iterator[tuple[str, str, StageTable]]:
        """The sets that a stage is asked for: name, heading of the table in TOML, the table.

        Raises:
            ValueError: a comparison table has an unknown field or an impossible value.
        """
        found: StageTable | dict[str, StageTable] | None = getattr(self, stage.field)
        if isinstance(found, dict):
            for name, table in found.items():
                yield name, f"[{stage.name}.{name}]", table
        elif found is not None:
            compared: Mapping[str, object] = getattr(found, "compare", {})
            for name, table in found.variants().items():
                compare = f".compare.{name}" if name in compared else ""
                yield name, f"[{stage.name}{compare}]", table

    @model_validator(mode="before")
    @classmethod
    def _template_everywhere(cls, values: object) -> object:
        """`[template]` lies under `prompts.template` of every table that has prompts."""
        if not isinstance(values, Mapping):
            return values
        tree = cast("Mapping[str, object]", values)
        shared = tree.get("template", {})
        try:
            Template.model_validate(shared)
        except ValidationError:  # the field itself says so
            return tree
        below = cast("Tree", shared if isinstance(shared, dict) else {})
        return {
            name: table if name == "template" else _with_template(table, below)
            for name, table in tree.items()
        }

    @field_validator("store", mode="before")
    @classmethod
    def _expand_store(cls, value: object) -> object:
        return expanded(value)

    @model_validator(mode="after")
    def _read_all(self) -> "Recipe":
        for stage in STAGES:
            for name, heading, _ in self.tables(stage):
                if name and not name.replace("-", "").replace("_", "").isalnum():
                    raise ValueError(f"{heading}: name it with letters, digits, - and _ only")
        return self


def _with_template(table: object, template: Tree) -> object:
    """A table of a recipe whose `prompts`, here and in the tables inside, have `template` below."""
    if not template or not isinstance(table, dict):
        return table
    out = copy(cast("Tree", table))
    for name, value in out.items():
        if name != "prompts" or not isinstance(value, dict):
            out[name] = _with_template(value, template)
        else:
            out[name] = merge({"template": template}, cast("Tree", value))
    return out


def table_class(stage: Stage) -> type[StageTable]:
    """Class of the config table of a stage."""
    file, _, name = stage.table.rpartition(".")
    return getattr(importlib.import_module(f"stages.config.{file}"), name)


def _field(stage: Stage) -> tuple[Any, Any]:
    """Type and default of the field that holds a stage's table."""
    table = table_class(stage)
    if table.presence == "by name":
        none: dict[str, StageTable] = {}
        return dict[str, table], Field(default=none, alias=stage.name)
    if table.presence == "optional":
        return table | None, Field(default=None, alias=stage.name)
    default = ... if table.presence == "required" else table()
    return table, Field(default=default, alias=stage.name)


RECIPE: type[Recipe] = create_model(
    "Recipe", __base__=Recipe, **cast("Any", {stage.field: _field(stage) for stage in STAGES})
)
"""The recipe with one field for each stage of the graph."""


def load_recipe(
    recipe: str | None,
    files: list[Path] | None = None,
    overrides: list[str] | None = None,
    methods: Sequence[str] = (),
) -> Recipe:
    """Read a recipe: the named one, then each file, the methods, then each `key.path=value`.

    Args:
        recipe: Name of a recipe that comes with the package, or None. Ignored when the first of
            `files` has a top-level `extends = "name"`, which then names it.
        files: TOML files; later ones win.
        overrides: `table.field=value`, the value written as in TOML (bare words are strings).
        methods: Names of overlays, which together are one student more.

    Raises:
        ConfigError: no such recipe, file or method, not TOML, or a field that is unknown or
            impossible; the message names every field.
    """
    tree: Tree = {}
    layers = [_read(path) for path in files or []]
    base = str(layers[0].pop("extends", "")) or recipe if layers else recipe
    if base:
        tree = packaged(base)
    for layer in layers:
        tree = merge(tree, layer)
    tree = lay_methods(tree, methods)
    for override in overrides or []:
        tree = merge(tree, _parse_override(override))
    try:
        return RECIPE.model_validate(tree)
    except ValidationError as error:
        source = ", ".join(str(path) for path in files or []) or f"recipe {recipe}"
        raise ConfigError(f"{source}: {_explain(error, tree)}") from error


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def packaged(name: str) -> Tree:
    """A recipe that comes with the package, with what it extends laid underneath.

    Raises:
        ConfigError: there is no such recipe.
    """
    file = resources.files("pipeline") / "recipes" / f"{name}.toml"
    if not file.is_file():
        raise ConfigError(f"no recipe called `{name}`; there are: {', '.join(recipe_names())}")
    tree: Tree = tomllib.loads(file.read_text())
    below = tree.pop("extends", None)
    return merge(packaged(str(below)), tree) if below else tree


def _read(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _parse_override(text: str) -> Tree:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"`{text}`: an override is written table.field=value")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, field = name.strip().split(".")
    tree: Tree = {field: parsed}
    for table in reversed(tables):
        tree = {table: tree}
    return tree


def _explain(error: ValidationError, tree: Tree) -> str:
    lines: list[str] = []
    for issue in error.errors():
        path = [str(part) for part in issue["loc"]]
        if path and path[0] in tree:  # else relative to a table of comparisons
            path = _fields(path, tree, missing=issue["type"] == "missing")
        lines.append(f"{'.'.join(path) or 'recipe'}: {issue['msg']}")
    return "; ".join(lines) + ". `afterglow config` prints all fields."


def _fields(path: list[str], tree: object, *, missing: bool) -> list[str]:
    """`path` without the names of union members that pydantic puts between fields.

    A name that the recipe does not have at its place is such a member, unless a field is missing.
    """
    if not path or isinstance(tree, list):
        return path
    if not isinstance(tree, dict):
        return []
    first, *rest = path
    table = cast("Tree", tree)
    if first in table:
        return [first, *_fields(rest, table[first], missing=missing)]
    return path if missing and not rest else _fields(rest, table, missing=missing)
