"""The `afterglow` command.

The last line on stdout is one JSON object for programs; people's messages go to stderr. Exit codes:
0 done, 2 usage, 65 bad data, 75 try again, 78 bad configuration.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from pipeline import logs
from storage.errors import AfterglowError

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    logs.configure(options.log_level)
    try:
        result = _VERBS[options.verb](options)
    except AfterglowError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; finished parts and checkpoints are kept, run the same again")
        return 75
    if result is not None:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


# ---------------------------------------------------------------------------------------------
# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="afterglow", description="Offline on-policy distillation: score once, train many."
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning"])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, *, recipe: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        if recipe:
            _recipe_arguments(sub)
        return sub

    run = verb("run", "complete the named stages and all they need")
    run.add_argument("targets", nargs="+", metavar="STAGE", help="stage, or node as in `status`")
    run.add_argument("--shard", type=int, help="make only this part of one sharded stage")
    run.add_argument("--here", action="store_true", help="only the named nodes, in this process")
    plan = verb("plan", "print stages, keys and estimated sizes; nothing is run or downloaded")
    plan.add_argument("targets", nargs="*", metavar="STAGE")
    commit = verb("commit", "verify all parts of a sharded stage and write its manifest")
    commit.add_argument("targets", nargs=1, metavar="STAGE")
    status = verb("status", "what is done, how large it is and what it cost")
    status.add_argument("targets", nargs="*", metavar="STAGE")
    explain = verb("explain", "why a set is missing, field by field against the nearest one")
    explain.add_argument("targets", nargs="*", metavar="STAGE")
    verb("config", "print the resolved recipe as TOML")
    demo = verb("demo", "run the recipe for several seeds and print means over them")
    demo.add_argument("--seeds", type=int, default=1, help="number of seeds, from the recipe's on")
    verify = verb("verify", "re-check every hash and checksum of a set", recipe=False)
    verify.add_argument("directories", nargs="+", type=Path, metavar="SET")
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", help="recipe that comes with the package (default: demo)")
    parser.add_argument(
        "--config", action="append", default=[], type=Path, metavar="FILE", help="TOML; repeatable"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one field, e.g. train.learning_rate=1e-4; repeatable",
    )


def recipe_argv(options: argparse.Namespace) -> list[str]:
    """The arguments that select the same recipe in another process."""
    out = ["--recipe", options.recipe] if options.recipe else []
    for file in options.config:
        out += ["--config", str(file)]
    for override in options.overrides:
        out += ["--set", override]
    return out


# ---------------------------------------------------------------------------------------------
# Verbs; each imports what it needs, so that `--help` costs nothing


def _open(options: argparse.Namespace, *, online: bool = False):  # noqa: ANN202
    from pipeline import plan
    from pipeline.config import load_recipe
    from storage.store import Store

    name = options.recipe or (None if options.config else "demo")
    recipe = load_recipe(name, options.config, options.overrides)
    store = Store(Path(recipe.store))
    nodes = plan.build(recipe)
    targets = getattr(options, "targets", []) or [node.name for node in nodes]
    planned = plan.resolve(plan.select(nodes, targets), store, online=online)
    return recipe, store, planned


def _run(options: argparse.Namespace) -> dict[str, object]:
    from pipeline import runner

    _, store, planned = _open(options, online=True)
    named = [p for p in planned if {p.node.name, p.node.stage.name} & set(options.targets)]
    if options.shard is not None:
        for chosen in named:
            runner.run_shard(chosen, store, options.shard)
        return {"verb": "run", "shard": options.shard, "done": [p.node.name for p in named]}
    if options.here:
        for chosen in named:
            runner.run_node(chosen, store)
        return {"verb": "run", "done": [p.node.name for p in named]}
    todo = runner.missing(planned, store)
    if todo:
        runner.run_chain(todo, recipe_argv(options))
    else:
        log.info("%s: up to date", ", ".join(options.targets))
    _show_reports(named, store)
    directories = {p.node.name: str(store.path(p.node.stage.name, p.key or "")) for p in named}
    return {"verb": "run", "ran": [p.node.name for p in todo], "sets": directories}


def _show_reports(planned, store) -> None:  # noqa: ANN001
    for chosen in planned:
        if chosen.node.stage.name == "report":
            directory = store.path("report", chosen.key)
            sys.stdout.write((directory / "report.txt").read_text() + "\n")


def _plan(options: argparse.Namespace) -> dict[str, object]:
    from pipeline.show import plan_lines

    recipe, store, planned = _open(options)
    rows, result = plan_lines(recipe, store, planned)
    sys.stdout.write("\n".join(rows) + "\n")
    return {"verb": "plan", "nodes": result}


def _commit(options: argparse.Namespace) -> dict[str, object]:
    from pipeline import runner

    _, store, planned = _open(options)
    named = [p for p in planned if options.targets[0] in (p.node.name, p.node.stage.name)]
    done = {p.node.name: runner.commit(p, store).key for p in named}
    return {"verb": "commit", "keys": done}


def _status(options: argparse.Namespace) -> dict[str, object]:
    from pipeline.show import status_lines

    _, store, planned = _open(options)
    rows, result = status_lines(store, planned)
    sys.stdout.write("\n".join(rows) + "\n")
    return {"verb": "status", "nodes": result}


def _explain(options: argparse.Namespace) -> dict[str, object]:
    from pipeline.show import explain_lines

    _, store, planned = _open(options)
    rows, result = explain_lines(store, planned)
    sys.stdout.write("\n".join(rows) + "\n")
    return {"verb": "explain", "nodes": result}


def _config(options: argparse.Namespace) -> None:
    from pipeline.config import load_recipe
    from pipeline.provenance import to_toml

    name = options.recipe or (None if options.config else "demo")
    recipe = load_recipe(name, options.config, options.overrides)
    sys.stdout.write(to_toml(recipe))


def _demo(options: argparse.Namespace) -> dict[str, object]:
    from pipeline.demo import run_seeds

    return run_seeds(options.seeds, options.recipe, options.config, options.overrides)


def _verify(options: argparse.Namespace) -> dict[str, object]:
    from storage.errors import DataError
    from storage.manifest import verify_set

    problems: list[str] = []
    for directory in options.directories:
        found = verify_set(directory)
        log.info("%s: %s", directory, f"{len(found)} problems" if found else "sound")
        problems += found
    if problems:
        raise DataError("; ".join(problems))
    return {"verb": "verify", "sound": [str(directory) for directory in options.directories]}


_VERBS = {
    "run": _run,
    "plan": _plan,
    "commit": _commit,
    "status": _status,
    "explain": _explain,
    "config": _config,
    "demo": _demo,
    "verify": _verify,
}
