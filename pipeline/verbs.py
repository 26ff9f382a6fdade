"""What each verb of the command does: `cmd_VERB` returns the last line on stdout."""

import argparse
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import init, show
from pipeline.execution import repair, runner
from pipeline.execution.chain import Chain, processes_wanted
from pipeline.execution.seeds import run_seeds
from pipeline.execution.units import find_units, parse_shards
from pipeline.graph import BY_NAME
from pipeline.inspector import cmd_inspect as cmd_inspect
from pipeline.ledger import to_toml
from pipeline.planning import nodes, plan
from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.plan import Planned
from pipeline.preflight.finding import Finding, finding_lines, log_notes, refuse
from pipeline.preflight.gate import preflight
from pipeline.preflight.scope import Scope
from pipeline.preflight.show import shown_prompts
from pipeline.upkeep import publish
from pipeline.upkeep.adopt import adopt_parts, adopt_set
from pipeline.upkeep.sweep import find_strays, remove
from stages.job import Input
from stages.progress import Progress
from stages.ranks import here
from storage.errors import DataError, UsageError
from storage.files.place import Place, place
from storage.manifest import FILE_NAME, read_manifest
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
    targets: list[Planned]
    later: list[Planned]
    """What reads the targets, directly or through others, in order; none of `planned`."""
    ready: bool
    """Whether the plan is about to be run."""

    def check(self, *, elsewhere: bool = False) -> list[Finding]:
        """What the preflight finds; nothing runs, and nothing is found of what is up to date."""
        todo = runner.needed(self.targets, self.planned, self.store)
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
    recipe = load_recipe(name, options.config, options.overrides)
    root = place(recipe.store)
    return recipe, Store(root.absolute() if isinstance(root, Path) else root)


def recipe_argv(options: argparse.Namespace) -> list[str]:
    """The arguments that select the same recipe in another process."""
    out = ["--recipe", options.recipe] if options.recipe else []
    for file in options.config:
        out += ["--config", str(file)]
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


def cmd_run(options: argparse.Namespace) -> Result:
    """Complete the targets and all they need, or only parts or nodes of them."""
    single = options.here or options.shard is not None
    opened = open_plan(options, ready=True, exact=single)
    if single:  # part of a run whose command has checked everything and logged the notes
        refuse(opened.check_targets())
    else:
        log_notes(refuse(opened.check()))
    store, chain = opened.store, Chain(opened.recipe, recipe_argv(options))
    if options.shard is not None:
        for chosen in opened.targets:
            runner.run_shards(chosen, store, parse_shards(options.shard))
        return {"verb": "run", "shard": options.shard, "done": _names(opened.targets)}
    if options.here:
        for chosen in opened.targets:
            if here().size == 1 and processes_wanted(chosen) > 1:
                chain.run([chosen])
            else:
                runner.run_node(chosen, store)
        if here().size > 1:
            from stages.training.distributed import shutdown  # torch

            shutdown()
        return {"verb": "run", "done": _names(opened.targets)}
    repaired: list[str] = []
    if options.check:
        with Progress("check of what is there"):
            repaired = repair.check(opened.planned, store, chain)
    ran = repair.complete(opened.targets, opened.planned, store, chain)
    if not ran:
        log.info("%s: up to date", ", ".join(options.targets))
    for chosen in opened.targets:
        if chosen.node.stage.name == "report":
            sys.stdout.write((chosen.directory(store) / "report.txt").read_text() + "\n")
    sets = _sets(opened.targets, store)
    return {"verb": "run", "ran": _names(ran), "sets": sets, "repaired": repaired}


def cmd_plan(options: argparse.Namespace) -> Result:
    """Print nodes, keys and sizes, and log what the preflight finds."""
    return _show(options, show.plan_lines, check=True)


def cmd_check(options: argparse.Namespace) -> Result:
    """Print what the preflight finds, one line each.

    Raises:
        Rejected: something would be refused; the table says how to mend it.
    """
    opened = open_plan(options, ready=False)
    found = opened.check()
    lines = finding_lines(found)
    if options.show:
        lines += shown_prompts(Scope(opened.planned, opened.store, opened.later))
    sys.stdout.write("\n".join(lines) + "\n")
    result: Result = {"verb": "check", "findings": [one.to_json() for one in found]}
    refused = [one for one in found if one.level == "refused"]
    if refused:
        raise Rejected(f"check: {len(refused)} of {len(found)} lines are refused", result)
    return result


def cmd_init(options: argparse.Namespace) -> Result:
    """Write a commented recipe, then print what the preflight says of it.

    Raises:
        UsageError: the file exists, or something is missing and there is no terminal to ask on.
        Rejected: the recipe is written, and `run` would refuse it.
    """
    init.write(init.ask(options), options.into)
    log.info("%s: written; read it, then `afterglow plan --config %s`", options.into, options.into)
    options.recipe, options.config, options.overrides = None, [options.into], []
    options.targets, options.show = [], True
    found = cmd_check(options)
    return {**(found or {}), "verb": "init", "recipe": str(options.into)}


def cmd_units(options: argparse.Namespace) -> Result:
    """Print the commands that complete a stage side by side, one a line; none if it is absent."""
    if _lacks(options):
        return {"verb": "units", "units": []}
    opened = open_plan(options, ready=True, exact=options.node)
    if options.node:  # as in `cmd_run`
        refuse(opened.check_targets(elsewhere=True))
    else:
        log_notes(refuse(opened.check(elsewhere=True)))
    found = find_units(opened.targets, opened.store, options.at_most)
    commands = [[*unit, *recipe_argv(options)] for unit in found]
    sys.stdout.write("".join(f"afterglow {shlex.join(command)}\n" for command in commands))
    return {"verb": "units", "units": commands}


def _lacks(options: argparse.Namespace) -> bool:
    """Whether the target is a stage, but none of this recipe: schedulers know the graph only."""
    (target,) = options.targets
    recipe, _ = read_recipe(options)
    return target in BY_NAME and all(node.stage.name != target for node in nodes.build(recipe))


def cmd_commit(options: argparse.Namespace) -> Result:
    """Verify all parts of a sharded stage and write its manifest."""
    if options.if_present and _lacks(options):
        return {"verb": "commit", "sets": {}, "new": []}
    opened = open_plan(options, ready=True, exact=options.node)
    new = runner.missing(opened.targets, opened.store)
    if options.if_present:  # later rounds are committed when the one before has ended
        new = [chosen for chosen in new if not chosen.waits_for(opened.store)]
    for chosen in new:
        runner.commit(chosen, opened.store)
    done = [p for p in opened.targets if p.manifest(opened.store) is not None]
    return {"verb": "commit", "sets": _sets(done, opened.store), "new": _names(new)}


def cmd_status(options: argparse.Namespace) -> Result:
    """Print what is done, how large it is and what it cost."""
    return _show(options, show.status_lines)


def cmd_explain(options: argparse.Namespace) -> Result:
    """Print why sets are missing."""
    return _show(options, show.explain_lines)


def cmd_config(options: argparse.Namespace) -> Result:
    """Print the resolved recipe as TOML, and nothing else."""
    sys.stdout.write(to_toml(read_recipe(options)[0]))
    return None


def cmd_seeds(options: argparse.Namespace) -> Result:
    """Run the recipe for several seeds and print one table over them."""
    recipe, store = read_recipe(options)
    return run_seeds(recipe, options.count, store, recipe_argv(options), options.into)


class Rejected(DataError):
    """A check completed and failed. `result` is still printed as the last line."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


def cmd_verify(options: argparse.Namespace) -> Result:
    """Check every hash and checksum of sets; with a teacher, whether it sampled or scored them.

    Raises:
        DataError: something is damaged; the message names every problem.
        Rejected: the teacher did not sample or score one of the sets.
    """
    if options.teacher is not None:
        return _verify_teacher(options)
    problems: list[str] = []
    for directory in options.directories:
        found = _verified(directory)
        log.info("%s: %s", directory, f"{len(found)} problems" if found else "sound")
        problems += found
    if problems:
        raise DataError("; ".join(problems))
    return {"verb": "verify", "sound": [str(directory) for directory in options.directories]}


def _verified(directory: Place) -> list[str]:
    """Everything wrong with a set, while a line or a bar says how much of it has been read."""
    try:
        size = read_manifest(directory).totals.bytes
    except DataError as error:
        return [str(error)]
    with Progress(f"verify {directory}", size, "bytes") as progress:
        return verify_set(directory, progress.advance)


def _verify_teacher(options: argparse.Namespace) -> Result:
    from stages.attribution.verify import Settings, verify_teacher  # torch

    fields = ("tokens", "level", "temperature", "dtype")
    given = {name: value for name in fields if (value := getattr(options, name)) is not None}
    found = verify_teacher(Input(options.teacher), options.directories, Settings(**given))
    sys.stdout.write("".join(f"{line}\n" for one in found for line in one.lines()))
    result: Result = {"verb": "verify", "findings": [one.to_json() for one in found]}
    rejected = [one for one in found if one.rejected]
    if rejected:
        sets = "; ".join(f"{one.set} ({', '.join(one.reasons)})" for one in rejected)
        raise Rejected(f"{options.teacher} did not make {sets}", result)
    return result


def cmd_prune(options: argparse.Namespace) -> Result:
    """Write a model with some layers of another, its tokenizer and template beside it.

    Raises:
        UsageError: the directory exists, or the layers are no list of indices.
        ConfigError, DataError: the model cannot be pruned so, or cannot be loaded.
    """
    layers, into = parse_shards(options.layers, "--layers"), options.into
    if into.exists():
        raise UsageError(f"{into}: exists already; give a directory that does not")
    from stages.models.identity import local_directory
    from stages.models.prune import prune_directory  # torch
    from stages.training.output import write_model

    source = local_directory(Input(options.model))
    model = prune_directory(source, layers)
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=into) as work:
        write_model(model, into, source, model.dtype, Path(work))
    millions = model.num_parameters() / 1e6
    log.info("%s: %d layers, %.1f million parameters", into, len(layers), millions)
    return {"verb": "prune", "directory": str(into), "layers": layers}


def cmd_gc(options: argparse.Namespace) -> Result:
    """Print what the store holds that nothing uses; with `--yes`, remove it."""
    if not options.older_than >= 0:
        raise UsageError(f"--older-than {options.older_than}: give hours, 0 or more")
    recipe, store = read_recipe(options)
    if not isinstance(store.root, Path):
        raise UsageError(
            f"{store.root}: gc works on stores on this machine. On an object store let a lifecycle "
            "rule remove unfinished uploads, and remove sets by hand."
        )
    planned = plan.resolve(nodes.build(recipe), store)
    keep = {one.directory(store).name if one.key else one.node.stage.name for one in planned}
    strays = find_strays(store.root, keep, time.time() - 3600.0 * options.older_than)
    for stray in strays:
        sys.stdout.write(f"{stray.bytes:>15,}  {stray.path}  ({stray.why})\n")
    total = sum(stray.bytes for stray in strays)
    removed = remove(strays) if options.yes else 0
    what = "removed" if options.yes else "to be removed with --yes"
    sys.stdout.write(f"{total:>15,}  bytes {what}\n")
    items = [{"path": str(one.path), "bytes": one.bytes, "why": one.why} for one in strays]
    return {"verb": "gc", "strays": items, "bytes": total, "removed": removed}


def cmd_adopt(options: argparse.Namespace) -> Result:
    """Copy sets that were made elsewhere into the store, after checking every byte."""
    recipe, store = read_recipe(options)
    sets: dict[str, str] = {}
    for source in options.directories:
        with Progress(f"adopt {source}"):
            if (source / FILE_NAME).exists():
                manifest = adopt_set(source, store)
            else:
                manifest = adopt_parts(source, plan.resolve(nodes.build(recipe), store), store)
        sets[str(source)] = str(store.path(manifest.stage, manifest.key))
        log.info("%s: adopted as %s", source, sets[str(source)])
    return {"verb": "adopt", "sets": sets}


def cmd_publish(options: argparse.Namespace) -> Result:
    """Send sets to the Hub with a card; as a dry run, write what would be sent."""
    kind, content = publish.contents(options.repo, options.directories, options.licence)
    result = {"verb": "publish", "repo": options.repo, "type": kind, "files": len(content)}
    if options.dry_run:
        into: Path = options.into or Path(options.repo.replace("/", "--"))
        publish.write(content, into)
        log.info("%s: %d files in %s", options.repo, len(content), into)
        return {**result, "into": str(into), "url": None}
    with Progress(f"publish {options.repo}"):
        url = publish.upload(options.repo, kind, content, private=options.private)
    log.info("%s: %d files at %s", options.repo, len(content), url)
    return {**result, "into": None, "url": url}


def _show(
    options: argparse.Namespace,
    describe: Callable[[Store, list[Planned]], show.Lines],
    *,
    check: bool = False,
) -> Result:
    """Print one of the tables over the plan."""
    opened = open_plan(options, ready=False)
    lines, found = describe(opened.store, opened.planned)
    sys.stdout.write("\n".join(lines) + "\n")
    if check:
        log_notes(opened.check())
    return {"verb": options.verb, "nodes": found}


def _names(planned: list[Planned]) -> list[str]:
    return [p.node.name for p in planned]


def _sets(planned: list[Planned], store: Store) -> dict[str, str]:
    """Directories by node."""
    return {p.node.name: str(p.directory(store)) for p in planned}
