"""What each verb of the command does. Each returns what the last line on stdout says."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import show
from pipeline.execution import repair, runner
from pipeline.execution.chain import Chain
from pipeline.execution.seeds import run_seeds
from pipeline.execution.units import parse_shards
from pipeline.execution.units import units as find_units
from pipeline.graph import BY_NAME
from pipeline.ledger import to_toml
from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, named, resolve
from pipeline.upkeep import housekeeping
from stages.job import Input
from storage.errors import DataError
from storage.files.place import place
from storage.sets import verify_set
from storage.store import Store

log = logging.getLogger(__name__)

Result = dict[str, object] | None


@dataclass(frozen=True)
class Opened:
    """A recipe, its store and its plan."""

    recipe: Recipe
    store: Store
    planned: list[Planned]
    """The targets and all they need, in order."""
    named: list[Planned]
    """The targets themselves."""


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe the command line selects; the demo where it selects none."""
    name = options.recipe or (None if options.config else "demo")
    return load_recipe(name, options.config, options.overrides)


def open_store(recipe: Recipe) -> Store:
    """The store a recipe names, relative to the working directory."""
    root = place(recipe.store)
    return Store(root.absolute() if isinstance(root, Path) else root)


def recipe_argv(options: argparse.Namespace) -> list[str]:
    """The arguments that select the same recipe in another process."""
    out = ["--recipe", options.recipe] if options.recipe else []
    for file in options.config:
        out += ["--config", str(file)]
    for override in options.overrides:
        out += ["--set", override]
    return out


def open_plan(options: argparse.Namespace, *, ready: bool, alone: bool = False) -> Opened:
    """Read the recipe and resolve its plan.

    Args:
        options: Parsed command line.
        ready: The plan is about to be run: files must be there, the Hub may be asked.
        alone: A target that is a stage and a node means the node.
    """
    recipe = read_recipe(options)
    store = open_store(recipe)
    nodes = build(recipe)
    targets = options.targets or [node.name for node in nodes]
    planned = resolve(select(nodes, targets), store, ready=ready)
    return Opened(recipe, store, planned, named(planned, targets, alone=alone))


def run(options: argparse.Namespace) -> Result:
    """Complete the targets and all they need, or single parts or nodes of them."""
    single = options.here or options.shard is not None
    opened = open_plan(options, ready=True, alone=single)
    if options.shard is not None:
        indices = parse_shards(options.shard)
        for chosen in opened.named:
            runner.run_shards(chosen, opened.store, indices)
        return {"verb": "run", "shard": options.shard, "done": _names(opened.named)}
    if options.here:
        Chain(opened.recipe, recipe_argv(options)).here(opened.named, opened.store)
        return {"verb": "run", "done": _names(opened.named)}
    chain = Chain(opened.recipe, recipe_argv(options))
    mended = repair.check(opened.planned, opened.store, chain) if options.check else []
    todo = repair.complete(opened.planned, opened.store, chain)
    if not todo:
        log.info("%s: up to date", ", ".join(options.targets))
    for chosen in opened.named:
        if chosen.node.stage.name == "report":
            sys.stdout.write((chosen.directory(opened.store) / "report.txt").read_text() + "\n")
    sets = {p.node.name: str(p.directory(opened.store)) for p in opened.named}
    return {"verb": "run", "ran": _names(todo), "sets": sets, "mended": mended}


def plan(options: argparse.Namespace) -> Result:
    """Print nodes, keys and sizes."""
    opened = open_plan(options, ready=False)
    return _print("plan", show.plan_lines(opened.recipe, opened.store, opened.planned))


def units(options: argparse.Namespace) -> Result:
    """Print the commands that complete a stage side by side, one a line; none if it is absent."""
    if _lacks(options):
        return {"verb": "units", "units": []}
    opened = open_plan(options, ready=True, alone=options.node)
    found = find_units(opened.named, opened.store, options.at_most)
    commands = [[*unit, *recipe_argv(options)] for unit in found]
    sys.stdout.write("".join(f"afterglow {shlex.join(command)}\n" for command in commands))
    return {"verb": "units", "units": commands}


def _lacks(options: argparse.Namespace) -> bool:
    """Whether the target is a stage, but none of this recipe: schedulers know the graph only."""
    (target,) = options.targets
    nodes = build(read_recipe(options))
    return target in BY_NAME and all(node.stage.name != target for node in nodes)


def commit(options: argparse.Namespace) -> Result:
    """Verify all parts of a sharded stage and write its manifest."""
    if options.if_present and _lacks(options):
        return {"verb": "commit", "sets": {}, "new": []}
    opened = open_plan(options, ready=True, alone=options.node)
    new = runner.missing(opened.named, opened.store)
    if options.if_present:  # later rounds have their turn when the one before has ended
        new = [chosen for chosen in new if not chosen.waits_for(opened.store)]
    for chosen in new:
        runner.commit(chosen, opened.store)
    there = [p for p in opened.named if p.manifest(opened.store) is not None]
    sets = {p.node.name: str(p.directory(opened.store)) for p in there}
    return {"verb": "commit", "sets": sets, "new": _names(new)}


def status(options: argparse.Namespace) -> Result:
    """Print what is done, how large it is and what it cost."""
    opened = open_plan(options, ready=False)
    return _print("status", show.status_lines(opened.store, opened.planned))


def explain(options: argparse.Namespace) -> Result:
    """Print why sets are missing."""
    opened = open_plan(options, ready=False)
    return _print("explain", show.explain_lines(opened.store, opened.planned))


def config(options: argparse.Namespace) -> Result:
    """Print the resolved recipe as TOML, and nothing else."""
    sys.stdout.write(to_toml(read_recipe(options)))
    return None


def seeds(options: argparse.Namespace) -> Result:
    """Run the recipe for several seeds and print one table over them."""
    recipe = read_recipe(options)
    return run_seeds(recipe, options.count, open_store(recipe), recipe_argv(options), options.into)


class Rejected(DataError):
    """A check came to an end and says no; `result` is its last line all the same."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


def verify(options: argparse.Namespace) -> Result:
    """Re-check every hash and checksum of sets; with a teacher, whether they are its own.

    Raises:
        DataError: something is damaged; every problem is named.
        Rejected: the teacher did not sample or score one of the sets.
    """
    if options.teacher is not None:
        return _verify_teacher(options)
    problems: list[str] = []
    for directory in options.directories:
        found = verify_set(directory)
        log.info("%s: %s", directory, f"{len(found)} problems" if found else "sound")
        problems += found
    if problems:
        raise DataError("; ".join(problems))
    return {"verb": "verify", "sound": [str(directory) for directory in options.directories]}


def _verify_teacher(options: argparse.Namespace) -> Result:
    from stages.attribution.verify import Question, verify_teacher  # torch

    named = ("tokens", "level", "temperature", "dtype")
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    found = verify_teacher(Input(options.teacher), options.directories, Question(**given))
    sys.stdout.write("".join(f"{line}\n" for one in found for line in one.lines()))
    result: Result = {"verb": "verify", "findings": [one.to_json() for one in found]}
    rejected = [one for one in found if one.rejected]
    if rejected:
        said = "; ".join(f"{one.set} ({', '.join(one.reasons)})" for one in rejected)
        raise Rejected(f"{options.teacher} is not behind {said}", result)
    return result


def gc(options: argparse.Namespace) -> Result:
    """Sweep what nothing refers to."""
    recipe = read_recipe(options)
    return housekeeping.gc(options, recipe, open_store(recipe))


def adopt(options: argparse.Namespace) -> Result:
    """Register sets that were made elsewhere."""
    recipe = read_recipe(options)
    return housekeeping.adopt(options, recipe, open_store(recipe))


def _print(verb: str, lines: show.Lines) -> Result:
    rows, nodes = lines
    sys.stdout.write("\n".join(rows) + "\n")
    return {"verb": verb, "nodes": nodes}


def _names(planned: list[Planned]) -> list[str]:
    return [p.node.name for p in planned]


VERBS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "run": run,
    "plan": plan,
    "units": units,
    "commit": commit,
    "status": status,
    "explain": explain,
    "config": config,
    "seeds": seeds,
    "verify": verify,
    "gc": gc,
    "adopt": adopt,
    "publish": housekeeping.publish,
}
