"""What each verb of the command does: `cmd_VERB` returns the last line on stdout."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable

from pipeline import init, show
from pipeline.execution import repair, runner
from pipeline.execution.chain import Chain, processes_wanted
from pipeline.execution.seeds import run_seeds
from pipeline.execution.units import find_units, parse_shards
from pipeline.graph import BY_NAME
from pipeline.inspector import cmd_inspect as cmd_inspect
from pipeline.ledger import to_toml
from pipeline.opened import Rejected, Result, open_plan, read_recipe, recipe_argv
from pipeline.planning import nodes
from pipeline.planning.methods import method_names, read_method
from pipeline.planning.plan import Planned
from pipeline.preflight.finding import finding_lines, log_notes, refuse
from pipeline.preflight.scope import Scope
from pipeline.preflight.show import shown_prompts
from pipeline.upkeep.verbs import cmd_adopt as cmd_adopt
from pipeline.upkeep.verbs import cmd_gc as cmd_gc
from pipeline.upkeep.verbs import cmd_prune as cmd_prune
from pipeline.upkeep.verbs import cmd_publish as cmd_publish
from pipeline.upkeep.verbs import cmd_verify as cmd_verify
from stages.progress import Progress
from stages.ranks import here
from storage.store import Store

log = logging.getLogger(__name__)


def cmd_run(options: argparse.Namespace) -> Result:
    """Complete the targets and all they need, or only parts or nodes of them."""
    if not options.here and options.shard is None:
        return _complete(options)
    # Part of a run whose command has checked everything and logged the notes.
    opened = open_plan(options, ready=True, exact=True)
    refuse(opened.check_targets())
    if options.shard is not None:
        for chosen in opened.targets:
            runner.run_shards(chosen, opened.store, parse_shards(options.shard))
        return {"verb": "run", "shard": options.shard, "done": _names(opened.targets)}
    for chosen in opened.targets:
        if here().size == 1 and processes_wanted(chosen) > 1:
            Chain(opened.recipe, recipe_argv(options)).run([chosen])
        else:
            runner.run_node(chosen, opened.store)
    if here().size > 1:
        from stages.training.distributed import shutdown  # torch

        shutdown()
    return {"verb": "run", "done": _names(opened.targets)}


def _complete(options: argparse.Namespace) -> Result:
    """Check everything, then make what is missing."""
    opened = open_plan(options, ready=True)
    store, repaired = opened.store, list[str]()
    with Chain(opened.recipe, recipe_argv(options)).ahead(opened.todo) as chain:
        log_notes(refuse(opened.check()))
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
    options.methods = []
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


def cmd_methods(options: argparse.Namespace) -> Result:
    """Print the methods that `--method` knows, or all that is known of some."""
    found = [read_method(name) for name in options.names or method_names()]
    lines = show.methods_described(found) if options.names else show.methods_listed(found)
    sys.stdout.write("\n".join(lines) + "\n")
    return {"verb": "methods", "methods": [method.summary for method in found]}


def cmd_seeds(options: argparse.Namespace) -> Result:
    """Run the recipe for several seeds and print one table over them."""
    recipe, store = read_recipe(options)
    return run_seeds(recipe, options.count, store, recipe_argv(options), options.into)


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
