"""A recipe: the config tables of all stages, read from TOML files and command-line overrides."""

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from stages.config import (
    Corpus,
    Evaluate,
    ModelRef,
    Pretrain,
    RecordSets,
    Report,
    Residualize,
    Rollouts,
    Sft,
    SftData,
    Table,
    TeacherLogits,
    Train,
    merge,
)
from storage.errors import ConfigError

Tree = dict[str, object]


class Recipe(Table):
    """Everything a run needs to know. Tables are named like the stages they configure."""

    name: str = "custom"
    """For people; never part of a key."""
    seed: int = 0
    """Seed of sampling, data order and record draws, in every stage that has any."""
    store: str = "store"
    """Directory of all sets; never part of a key."""
    teacher: ModelRef
    """The frozen model whose distribution is kept."""
    student: ModelRef | None = None
    """The base model that SFT starts from; without `[sft]`, pi_ref itself. Not needed where all
    students start from scratch."""
    corpus: Corpus | None = None
    pretrain: dict[str, Pretrain] = Field(default_factory=dict[str, Pretrain])
    sft_data: SftData | None = Field(default=None, alias="sft-data")
    sft: Sft | None = None
    rollouts: Rollouts | None = None
    teacher_logits: RecordSets = Field(default=RecordSets(), alias="teacher-logits")
    residualize: Residualize | None = None
    train: Train
    evaluate: Evaluate | None = None
    report: Report = Report()

    @model_validator(mode="after")
    def _tables_fit(self) -> "Recipe":
        for model in (self.teacher, self.student):
            name = model.pretrained_here if model else None
            if name is not None and name not in self.pretrain:
                raise ValueError(f"`pretrain:{name}` is named, but there is no [pretrain.{name}]")
        if self.pretrain and self.corpus is None:
            raise ValueError("[pretrain] needs a [corpus] to train on")
        if self.sft is not None and self.sft_data is None:
            raise ValueError("[sft] needs [sft-data]: the teacher's answers to train on")
        for name, table in self.teacher_logits.sets().items():
            self._candidates_fit(f"compare.{name}." if name else "", table)
        students = self.train.students()
        if self.student is None:
            needy = [table for table in ("sft", "rollouts") if getattr(self, table) is not None]
            needy += [f"train ({n})" for n, table in students.items() if table.init == "sft"]
            if needy:
                raise ValueError(f"[student] is missing: {', '.join(needy)} would start from it")
        at = self.evaluate.gradient.at if self.evaluate and self.evaluate.gradient else ""
        if at and at not in students:
            raise ValueError(
                f"evaluate.gradient.at is `{at}`, which is no student; there are "
                f"{', '.join(students)}"
            )
        return self

    def _candidates_fit(self, variant: str, table: TeacherLogits) -> None:
        record, rollouts = table.record, self.rollouts
        if (
            table.source == "rollouts"
            and rollouts is not None
            and record.kind == "head_tail"
            and record.candidates > rollouts.candidates
        ):
            raise ValueError(
                f"teacher-logits.{variant}record.candidates is {record.candidates}, but rollouts "
                f"keep {rollouts.candidates} per position: raise rollouts.candidates"
            )


def load_recipe(
    recipe: str | None, files: list[Path] | None = None, overrides: list[str] | None = None
) -> Recipe:
    """Read a recipe: the named one, then each file, then each `key.path=value`, in this order.

    Args:
        recipe: Name of a recipe that comes with the package, or None. Ignored when the first of
            `files` has a top-level `extends = "name"`, which then names it.
        files: TOML files; later ones win.
        overrides: `table.field=value`, the value written as in TOML (bare words are strings).

    Raises:
        ConfigError: no such recipe or file, not TOML, or a field that is unknown or impossible;
            the message names every field.
    """
    tree: Tree = {}
    layers = [_read(path) for path in files or []]
    base = str(layers[0].pop("extends", "")) or recipe if layers else recipe
    if base:
        tree = packaged(base)
    for layer in layers:
        tree = merge(tree, layer)
    for override in overrides or []:
        tree = merge(tree, _parse_override(override))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        source = ", ".join(str(path) for path in files or []) or f"recipe {recipe}"
        raise ConfigError(f"{source}: {_explain(error)}") from error


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


def _explain(error: ValidationError) -> str:
    lines: list[str] = []
    for issue in error.errors():
        where = ".".join(str(part) for part in issue["loc"]) or "recipe"
        lines.append(f"{where}: {issue['msg']}")
    return "; ".join(lines) + ". `afterglow config` prints all fields."
