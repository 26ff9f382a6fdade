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
from stages.ranks import here
from storage.errors import AfterglowError

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    logs.configure(options.log_level)
    try:
        from pipeline.verbs import VERBS  # not at the top: `--help` should cost nothing

        if not here().first:
            logs.hush()
        result = VERBS[options.verb](options)
    except AfterglowError as error:
        if (code := _told(error.exit_code)) is not None:
            return code
        log.error("%s", error)
        _last_line(getattr(error, "result", None))  # what was found out before saying no
        return error.exit_code
    except KeyboardInterrupt:
        if (code := _told(75)) is not None:
            return code
        log.error("interrupted; finished parts and checkpoints are kept, run the same again")
        return 75
    except Exception:
        if (code := _told(1)) is not None:
            return code
        raise
    if here().first:
        _last_line(result)
    return 0


def _told(code: int) -> int | None:
    """Exit code of another process under torchrun that has explained already; None if to do so."""
    from pipeline.execution.torchrun import told

    return told(code)


def _last_line(result: dict[str, object] | None) -> None:
    if result is not None:
        sys.stdout.write(json.dumps(result) + "\n")


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
    run.add_argument(
        "--shard", metavar="PARTS", help="make only these parts of one sharded stage: 3, 0-7, 0-2,5"
    )
    run.add_argument("--here", action="store_true", help="only the named nodes, in this process")
    run.add_argument(
        "--check", action="store_true", help="re-check every hash first, make damaged parts again"
    )
    plan = verb("plan", "print stages, keys and estimated sizes; nothing is run or downloaded")
    plan.add_argument("targets", nargs="*", metavar="STAGE")
    units = verb("units", "print the commands that complete a stage side by side, one a line")
    units.add_argument("targets", nargs=1, metavar="STAGE")
    units.add_argument(
        "--at-most", type=int, default=8, metavar="N", help="most commands of a sharded stage (8)"
    )
    commit = verb("commit", "verify all parts of a sharded stage and write its manifest")
    commit.add_argument("targets", nargs=1, metavar="STAGE")
    commit.add_argument(
        "--if-present", action="store_true", help="succeed if the recipe lacks the stage"
    )
    for each in (units, commit):
        each.add_argument(
            "--node", action="store_true", help="the node of this name, not the stage's other ones"
        )
    status = verb("status", "what is done, how large it is and what it cost")
    status.add_argument("targets", nargs="*", metavar="STAGE")
    explain = verb("explain", "why a set is missing, field by field against the nearest one")
    explain.add_argument("targets", nargs="*", metavar="STAGE")
    verb("config", "print the resolved recipe as TOML")
    seeds = verb("seeds", "run the recipe for several seeds and print means over them")
    seeds.add_argument("--count", type=int, default=3, metavar="N", help="number of seeds (3)")
    seeds.add_argument(
        "--into", type=Path, metavar="FILE", help="Markdown file whose generated part it becomes"
    )
    verify = verb(
        "verify", "re-check every hash of a set, or whose tokens or records it holds", recipe=False
    )
    verify.add_argument("directories", nargs="+", type=_place, metavar="SET")
    _teacher_arguments(verify)
    gc = verb("gc", "list what the store holds for nothing; with --yes, remove it")
    adopt = verb("adopt", "check a set that was made elsewhere and copy it into the store")
    publish = verb("publish", "send sets to the Hugging Face Hub with a card", recipe=False)
    _housekeeping_arguments(gc, adopt, publish)
    return parser


def _housekeeping_arguments(
    gc: argparse.ArgumentParser, adopt: argparse.ArgumentParser, publish: argparse.ArgumentParser
) -> None:
    gc.add_argument("--yes", action="store_true", help="remove it; otherwise nothing changes")
    gc.add_argument(
        "--older-than",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="leave alone what was written to since (24); longer than any writer pauses",
    )
    adopt.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIRECTORY",
        help="a set with its manifest, or parts of a set of the recipe",
    )
    publish.add_argument("directories", nargs="+", type=Path, metavar="SET")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME")
    publish.add_argument(
        "--licence", default="unknown", metavar="ID", help="as on the Hub, e.g. apache-2.0"
    )
    publish.add_argument("--private", action="store_true", help="if the repository is made anew")
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


def _teacher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        help="directory or Hub id: instead of hashes, test that this model sampled the sequences, "
        "or made the records (exit code 65 if not)",
    )
    group = parser.add_argument_group("with --teacher")
    group.add_argument("--tokens", type=int, metavar="N", help="response tokens looked at (65536)")
    group.add_argument("--level", type=float, metavar="P", help="rate of false alarms (1e-4)")
    group.add_argument("--temperature", type=float, metavar="T", help="test this one instead")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as the set says")


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
