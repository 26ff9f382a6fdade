"""Published methods as TOML overlays: each is one student more, beside those of a recipe.

An overlay, `pipeline/recipes/methods/NAME.toml`, holds two tables. `[method]` says whose idea it
is, what is done here, and what that is on stored records. `[train]` says what a student of the
method does otherwise than the student of the recipe's `[train]`. Laid over a recipe it becomes
`[train.compare.NAME]`: the method reads the same records for as many steps, and the student of
`[train]` stays what it is, its control. Several methods are one student, whose weights multiply.
"""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Literal, cast

from pydantic import Field, ValidationError

from stages.config.merge import merge
from stages.table import Table
from storage.errors import ConfigError

Tree = dict[str, object]

Mechanism = Literal["position weight", "sequence weight", "routing", "objective", "control"]
Offline = Literal["exact", "unbiased", "lower bound", "biased", "another objective"]


class Method(Table):
    """An overlay. All but `name` and `train` are fields of its `[method]` table."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Of the file."""
    title: str
    """What it is, in a few words."""
    paper: str
    """Title of the paper; for a control, what it controls."""
    arxiv: Annotated[str, Field(pattern=r"^(\d{4}\.\d{4,5})?$")] = ""
    """Its number; empty where there is none."""
    mechanism: Mechanism
    does: str
    """What is done here, and what otherwise than in the paper."""
    offline: Offline
    """What it is on `head_tail` records of rollouts. *another objective*: what was realised decides
    which contexts count."""
    why: str
    """The reason for `offline`."""
    needs: str = ""
    """What the set must hold beside default records of rollouts."""
    cost: str
    """Compared with a student of the default objective."""
    claim: str
    """What the paper says of it."""
    train: Tree
    """Fields of the student."""

    @property
    def summary(self) -> dict[str, str]:
        """What it is, for a program."""
        return {name: str(value) for name, value in self if name != "train"}


def method_names() -> list[str]:
    """Names of the overlays that come with the package."""
    return sorted(entry.name[:-5] for entry in _folder().iterdir() if entry.name.endswith(".toml"))


@cache
def read_method(name: str) -> Method:
    """The overlay called `name`.

    Raises:
        ConfigError: there is none, or it is not what an overlay should be.
    """
    known = method_names()
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else "."
        raise ConfigError(f"no method called `{name}`{hint} `afterglow methods` lists all.")
    file = _folder() / f"{name}.toml"
    tree: Tree = tomllib.loads(file.read_text())
    about = _table(tree.pop("method", {}))
    try:
        return Method.model_validate({"name": name, **about, **tree})
    except ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error


def lay_methods(tree: Tree, names: Sequence[str]) -> Tree:
    """A recipe with one student more, of all the methods `names`; `tree` is not changed.

    The student is called after the methods, joined by dashes. Weights multiply, those of [train]
    too, of which it has the rounds as well.

    Raises:
        ConfigError: no such method, two of them set the same field, or the name is taken.
    """
    if not names:
        return tree
    train = _table(tree.get("train"))
    student: Tree = {"rounds": train["rounds"]} if "rounds" in train else {}
    weights = _weights(train)
    set_by: dict[str, str] = {}
    for method in map(read_method, names):
        fields = {f"weights.{name}": name for name in _weights(method.train)}
        fields |= {name: name for name in method.train if name != "weights"}
        if taken := [(field, set_by[field]) for field in fields if field in set_by]:
            field, other = taken[0]
            raise ConfigError(
                f"--method {other} --method {method.name}: both set train.{field}, and one student "
                "has one. Lay one of them over the recipe, and compare in two runs."
            )
        set_by |= dict.fromkeys(fields, method.name)
        weights |= _weights(method.train)
        student |= {name: value for name, value in method.train.items() if name != "weights"}
    if weights:
        student["weights"] = list(weights.values())
    row = "-".join(names)
    if row == _table(train.get("objective")).get("name"):
        raise ConfigError(
            f"--method: the student of [train] is called `{row}` after its objective; leave the "
            "method out"
        )
    if row in _table(train.get("compare")):
        raise ConfigError(
            f"--method: the recipe has a table [train.compare.{row}] of its own: rename it, or "
            "leave the method out"
        )
    return merge(tree, {"train": {"compare": {row: student}}})


def _weights(table: Mapping[str, object]) -> dict[str, object]:
    """The tables of `weights` by name."""
    found = table.get("weights")
    tables = [_table(one) for one in cast("list[object]", found)] if isinstance(found, list) else []
    return {str(one.get("name")): one for one in tables}


def _table(value: object) -> Tree:
    """A table; of what is none, which the recipe refuses by itself, an empty one."""
    return cast(Tree, value) if isinstance(value, dict) else {}


def _folder() -> Traversable:
    return resources.files("pipeline") / "recipes" / "methods"
