"""The verbs of the command and what each takes. Imports nothing `--help` need not wait for."""

import argparse
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Parses a command line; `verb` names what is to be done, as in `pipeline.verbs`."""
    made = argparse.ArgumentParser(
        prog="afterglow", description="Offline on-policy distillation: score once, train many."
    )
    made.add_argument("--log-level", default="info", choices=["debug", "info", "warning"])
    verbs = _Verbs(made.add_subparsers(dest="verb", required=True, metavar="VERB"))
    _run(verbs)
    _check(verbs)
    _init(verbs)
    verbs.add("plan", "print stages, keys and estimated sizes; runs and downloads nothing", "*")
    _units_and_commit(verbs)
    verbs.add("status", "print what is done, how large it is and what it cost", "*")
    verbs.add("explain", "print why sets are missing, field by field against the nearest ones", "*")
    verbs.add("config", "print the resolved recipe as TOML")
    _methods(verbs)
    _seeds(verbs)
    _verify(verbs)
    _inspect(verbs)
    _prune(verbs)
    _gc(verbs)
    _adopt(verbs)
    _publish(verbs)
    return made


class _Verbs:
    """The verbs so far."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add(
        self, name: str, summary: str, targets: int | str | None = None, *, recipe: bool = True
    ) -> argparse.ArgumentParser:
        """The parser of another verb.

        Args:
            name: The verb.
            summary: For the help.
            targets: How many stages it takes, as `nargs`; None: it takes none.
            recipe: Whether a recipe is selected.
        """
        sub: argparse.ArgumentParser
        sub = self._subparsers.add_parser(name, help=summary, description=summary)
        sub.add_argument(
            "--json",
            action="store_true",
            help="end with one line of JSON, as where stdout is not a terminal",
        )
        if recipe:
            sub.add_argument("--recipe", help="recipe that comes with the package (default: demo)")
            sub.add_argument(
                "--config",
                action="append",
                default=[],
                type=Path,
                metavar="FILE",
                help="TOML; repeatable",
            )
            sub.add_argument(
                "--method",
                action="append",
                default=[],
                metavar="NAME",
                dest="methods",
                help="one student more, of this method (see `methods`); several: of all of them",
            )
            sub.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                dest="overrides",
                help="override one field, e.g. train.learning_rate=1e-4; repeatable",
            )
        if targets is not None:
            sub.add_argument(
                "targets", nargs=targets, metavar="STAGE", help="stage, or node as in `status`"
            )
        return sub


# ---------------------------------------------------------------------------------------------
# Verbs of a recipe


def _run(verbs: _Verbs) -> None:
    run = verbs.add("run", "complete the named stages and all that they need", "+")
    run.add_argument(
        "--shard", metavar="PARTS", help="make only these parts of one sharded stage: 3, 0-7, 0-2,5"
    )
    run.add_argument("--here", action="store_true", help="only the named nodes, in this process")
    run.add_argument(
        "--check", action="store_true", help="check every hash first and make damaged parts again"
    )


def _check(verbs: _Verbs) -> None:
    check = verbs.add("check", "compare models, templates and prompts before anything runs", "*")
    check.add_argument(
        "--show", action="store_true", help="also print the first prompt of every source"
    )


def _init(verbs: _Verbs) -> None:
    start = verbs.add(
        "init", "ask for models and prompts and write a commented recipe", recipe=False
    )
    start.add_argument("--teacher", metavar="MODEL", help="directory or Hub id")
    start.add_argument("--student", metavar="MODEL", help="directory or Hub id")
    start.add_argument("--prompts", metavar="FILE", help="prompts to distil on")
    start.add_argument("--sft-prompts", metavar="FILE", help="for SFT on the teacher's answers")
    start.add_argument("--eval-prompts", metavar="FILE", help="prompts to evaluate on")
    start.add_argument("--field", metavar="NAME", help="column of the prompts (found by its name)")
    start.add_argument("--answer-field", metavar="NAME", help="column of the reference answers")
    start.add_argument("--max-tokens", metavar="N", help="longest response, in tokens (1024)")
    start.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    start.add_argument("--into", type=Path, default=Path("recipe.toml"), metavar="FILE")
    start.add_argument("--yes", action="store_true", help="ask nothing, take what is found")


def _units_and_commit(verbs: _Verbs) -> None:
    units = verbs.add(
        "units", "print the commands that complete a stage side by side, one a line", 1
    )
    units.add_argument(
        "--at-most", type=int, default=8, metavar="N", help="most commands of a sharded stage (8)"
    )
    commit = verbs.add("commit", "verify all parts of a sharded stage and write its manifest", 1)
    commit.add_argument(
        "--if-present", action="store_true", help="succeed if the recipe lacks the stage"
    )
    for each in (units, commit):
        each.add_argument(
            "--node", action="store_true", help="only the node of this name, not the whole stage"
        )


def _methods(verbs: _Verbs) -> None:
    methods = verbs.add("methods", "list the published methods that --method knows", recipe=False)
    methods.add_argument(
        "names", nargs="*", metavar="METHOD", help="print all that is known of these"
    )


def _seeds(verbs: _Verbs) -> None:
    seeds = verbs.add("seeds", "run the recipe for several seeds and print means over them")
    seeds.add_argument("--count", type=int, default=3, metavar="N", help="number of seeds (3)")
    seeds.add_argument(
        "--into", type=Path, metavar="FILE", help="put the table into this Markdown file's block"
    )


# ---------------------------------------------------------------------------------------------
# Verbs of sets and models


def _verify(verbs: _Verbs) -> None:
    verify = verbs.add(
        "verify", "check every hash of sets, or whose tokens or records they hold", recipe=False
    )
    verify.add_argument("directories", nargs="+", type=_place, metavar="SET")
    verify.add_argument(
        "--teacher",
        metavar="MODEL",
        help="directory or Hub id: instead of hashes, test that this model sampled the sequences "
        "or made the records (exit code 65 if not)",
    )
    group = verify.add_argument_group("with --teacher")
    group.add_argument("--tokens", type=int, metavar="N", help="response tokens to read (65536)")
    group.add_argument("--level", type=float, metavar="P", help="rate of false alarms (1e-4)")
    group.add_argument("--temperature", type=float, metavar="T", help="test this temperature")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the set's own")


def _inspect(verbs: _Verbs) -> None:
    inspect = verbs.add(
        "inspect",
        "write a page that shows a set token by token, worst sequences first",
        recipe=False,
    )
    inspect.add_argument(
        "set",
        type=_place,
        metavar="SET",
        help="sequences or records; of a model or an evaluation, those that it read",
    )
    inspect.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="directory or Hub id of a model to run over the tokens; repeatable: before, after",
    )
    inspect.add_argument("--into", type=Path, metavar="FILE", help="default: inspect-SET.html")
    inspect.add_argument("--open", action="store_true", help="open it in a browser")
    inspect.add_argument(
        "--limit", type=int, metavar="N", help="read N random sequences (all; 2048 with a model)"
    )
    inspect.add_argument("--only", metavar="IDS", help="read these sequences: 3, 0-7, 0-2,5")
    inspect.add_argument(
        "--tokens", type=int, default=100_000, metavar="N", help="tokens in the page (100000)"
    )
    inspect.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="models run in (float32)",
    )


def _prune(verbs: _Verbs) -> None:
    prune = verbs.add("prune", "write a model with some layers of another", recipe=False)
    prune.add_argument("model", metavar="MODEL", help="directory or Hub id")
    prune.add_argument(
        "--layers", required=True, metavar="LAYERS", help="to keep, from 0: 0-3,8,12 or 0,3,6"
    )
    prune.add_argument(
        "--into", required=True, type=Path, metavar="DIR", help="a directory that does not exist"
    )


def _gc(verbs: _Verbs) -> None:
    gc = verbs.add("gc", "list files of the store that nothing uses; with --yes, remove them")
    gc.add_argument("--yes", action="store_true", help="remove them; otherwise nothing changes")
    gc.add_argument(
        "--older-than",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="keep files written to in the last HOURS (24); no writer pauses that long",
    )


def _adopt(verbs: _Verbs) -> None:
    adopt = verbs.add("adopt", "check sets that were made elsewhere and copy them into the store")
    adopt.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIRECTORY",
        help="a set with its manifest, or parts of a set of the recipe",
    )


def _publish(verbs: _Verbs) -> None:
    publish = verbs.add("publish", "send sets to the Hugging Face Hub with a card", recipe=False)
    publish.add_argument("directories", nargs="+", type=Path, metavar="SET")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME")
    publish.add_argument(
        "--licence", default="unknown", metavar="ID", help="as on the Hub, e.g. apache-2.0"
    )
    publish.add_argument("--private", action="store_true", help="if the repository is created")
    publish.add_argument(
        "--dry-run", action="store_true", help="write the repository here and send nothing"
    )
    publish.add_argument(
        "--into", type=Path, metavar="DIRECTORY", help="of the dry run (OWNER--NAME)"
    )


def _place(text: str) -> object:
    """A set named on the command line."""
    from storage.files.place import place

    return place(text)
