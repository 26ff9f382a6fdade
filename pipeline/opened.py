"""What the verbs of a recipe begin with: the recipe, its store, and what is to be made there."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from pipeline.execution import runner
from pipeline.planning import nodes, plan
from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.plan import Planned
from pipeline.preflight.finding import Finding
from pipeline.preflight.gate import preflight
from stages.progress import Progress
from storage.errors import DataError
from storage.files.place import place
from storage.store import Store

Result = dict[str, object] | None
"""The last line on stdout, for programs; None: there is none."""


class Rejected(DataError):
    """A check completed and failed. `result` is still printed as the last line."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Opened:
    """A recipe, its store and its plan."""

    recipe: Recipe
    store: Store
    planned: list[Planned]
    """The targets and all they need, in order."""
    targets: list[Planned]
    later: list[Planned]
    """What reads the targets, directly or through others, in order; none of `planned`."""
    ready: bool
    """Whether the plan is about to be run."""

    @property
    def todo(self) -> list[Planned]:
        """The sets to be made so that the targets are there, in order."""
        return runner.needed(self.targets, self.planned, self.store)

    def check(self, *, elsewhere: bool = False) -> list[Finding]:
        """What the preflight finds; nothing runs, and nothing is found of what is up to date."""
        todo = self.todo
        if not todo:
            return []
        return preflight(
            todo, self.store, self.later, self.planned, elsewhere=elsewhere, ready=self.ready
        )

    def check_targets(self, *, elsewhere: bool = False) -> list[Finding]:
        """What the preflight finds of the targets alone."""
        return preflight(
            self.targets, self.store, beside=self.planned, elsewhere=elsewhere, ready=self.ready
        )


def read_recipe(options: argparse.Namespace) -> tuple[Recipe, Store]:
    """The recipe the command line selects (default: the demo), and the store it names.

    A relative store starts at the working directory.
    """
    name = options.recipe or (None if options.config else "demo")
    recipe = load_recipe(name, options.config, options.overrides, options.methods)
    root = place(recipe.store)
    return recipe, Store(root.absolute() if isinstance(root, Path) else root)


def recipe_argv(options: argparse.Namespace) -> list[str]:
    """The arguments that select the same recipe in another process."""
    out = ["--recipe", options.recipe] if options.recipe else []
    for file in options.config:
        out += ["--config", str(file)]
    for method in options.methods:
        out += ["--method", method]
    for override in options.overrides:
        out += ["--set", override]
    return out


def open_plan(options: argparse.Namespace, *, ready: bool, exact: bool = False) -> Opened:
    """Read the recipe and resolve its plan.

    Args:
        options: Parsed command line.
        ready: The plan is about to be run: files must be there, the Hub may be asked.
        exact: A target that names both a stage and a node means the node.
    """
    recipe, store = read_recipe(options)
    made = nodes.build(recipe)
    targets = options.targets or [node.name for node in made]
    with Progress("digests of models and files"):
        planned = plan.resolve(nodes.select(made, targets), store, ready=ready)
    chosen = plan.select(planned, targets, exact=exact)
    readers = nodes.readers(made, [one.node for one in chosen])
    beside = plan.resolve(nodes.select(made, readers), store) if readers else []
    known = {one.node.name for one in planned}
    later = [one for one in beside if one.node.name in set(readers) - known]
    return Opened(recipe, store, planned, chosen, later, ready)
