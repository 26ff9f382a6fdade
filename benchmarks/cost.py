"""What a student costs from its SFT start to its evaluation, offline and live.

    python -m benchmarks.cost [--rounds 1] [--store store]

A round takes some five minutes on two cores. In a store of its own with copies of the demo's models
(of `--store`, where they are made if they are missing) it runs, one after the other:

    offline   rollouts, records, training and evaluation of a first student; then a second student,
              which reads the same records
    live      training and evaluation of a student with the teacher in the loop, and of a second one
    apart     the stages of the first offline student, each in a process started for it, as
              schedulers do

Seconds are those between start and end of the commands, with planning, imports and engine starts;
processor time is that of all their processes. The commands run as `make` runs them: bytecode and
compiled loops are on disk, where a small run before the first round has left them. The live student
also needs a list of prompts and is given the rollouts' for nothing. Tables go between the markers
of docs/cost.md, means over rounds.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.__main__ import memory, processor
from benchmarks.harness import ROOT, Table, markdown
from benchmarks.teachers import make
from pipeline import ledger
from pipeline.planning.config import load_recipe
from pipeline.planning.document import replace_block, surroundings
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import resolve
from storage.store import Store

log = logging.getLogger("benchmarks")

RECIPE = Path(__file__).with_name("cost.toml")
PAGE = ROOT / "docs" / "cost.md"

STUDENTS = {
    "offline, first student": "reverse_kl",
    "live, first student": "live",
    "offline, second student": "second",
    "live, second student": "live-second",
}
"""By row of the table, in the order in which they are made."""
FIRST = "offline, first student"
APART = "offline, first student, stages apart"
_SMALL = ("rollouts.prompts.limit=192", "train.steps=2", "evaluate.prompts.limit=8")
_STAGES = ("rollouts", "teacher-logits", "train", "evaluate")


@dataclass(frozen=True)
class Cost:
    """Of one student."""

    seconds: float
    processor: float
    """Processor seconds."""
    stages: dict[str, float]
    """Seconds of each stage at work, as the sets' ledgers have them: without starting it."""


def prepare(base: Store) -> None:
    """Make a student of a few steps, so that what is compiled once is compiled."""
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root) / "small")
        copy_start(base, store)
        _run(store, STUDENTS[FIRST], apart=False, overrides=_SMALL)


def measure(base: Store) -> dict[str, Cost]:
    """One round, by row of the table; `base` has the models that all students share."""
    found: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as root:
        for row, student in {**STUDENTS, APART: STUDENTS[FIRST]}.items():
            store = Store(Path(root) / ("apart" if row == APART else "together"))
            if not store.root.exists():
                copy_start(base, store)
            found[row] = _run(store, student, apart=row == APART)
            log.info("%s: %.1f s", row, found[row].seconds)
    return found


def copy_start(base: Store, store: Store) -> None:
    """Copy the sets that every student starts from."""
    planned = resolve(select(build(load_recipe(None, [RECIPE], [])), ["sft"]), base)
    for one in planned:
        directory = one.directory(base)
        shutil.copytree(str(directory), str(store.root / directory.name))


def _run(store: Store, student: str, *, apart: bool, overrides: Sequence[str] = ()) -> Cost:
    """Make what is missing of a student and its evaluation, in one run or stage by stage."""
    nodes = ["rollouts", "teacher-logits", f"train.{student}", f"evaluate.{student}"]
    before, start = set(store.root.iterdir()), time.monotonic()
    used, environment = _children(), dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(ROOT / ".pycache")
    for command in [[node, "--here"] for node in nodes] if apart else [[nodes[-1]]]:
        call = [sys.executable, "-m", "pipeline", "run", *command, "--config", str(RECIPE)]
        for override in (f"store={store.root}", *overrides):
            call += ["--set", override]
        subprocess.run(
            [*call, "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, env=environment
        )
    seconds, used = time.monotonic() - start, _children() - used
    made = [path for path in store.root.iterdir() if path not in before and path.is_dir()]
    stages = {
        path.name.rpartition("-")[0]: float(ledger.cost(path).get("seconds", 0.0)) for path in made
    }
    return Cost(seconds, used, stages)


def _children() -> float:
    """Processor seconds of the processes started here that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tables(rounds: Sequence[dict[str, Cost]]) -> str:
    """The two tables: all of it, and the stages."""

    def mean(row: str, what: str) -> float:
        return fmean(getattr(one[row], what) for one in rounds)

    def cell(what: str, row: str, other: str) -> str:
        return f"{mean(row, what) / mean(other, what):.2f}"

    offline, live, second, live_second = STUDENTS
    compared = {offline: live, live: live, second: live_second, live_second: live_second}
    header = ["", "seconds", "processor seconds", "seconds / live", "processor / live"]
    rows = [
        [
            row,
            f"{mean(row, 'seconds'):.1f}",
            f"{mean(row, 'processor'):.1f}",
            cell("seconds", row, other),
            cell("processor", row, other),
        ]
        for row, other in {**compared, APART: live}.items()
    ]
    stages = [
        [
            row,
            *(
                f"{fmean(one[row].stages.get(name, 0.0) for one in rounds):.1f}"
                if name in rounds[0][row].stages
                else ""
                for name in _STAGES
            ),
            f"{fmean(one[row].seconds - sum(one[row].stages.values()) for one in rounds):.1f}",
        ]
        for row in (*compared, APART)
    ]
    return "\n".join(
        [
            markdown(Table("", header, rows)),
            "Of these, seconds of each stage at work:\n",
            markdown(Table("", ["", *_STAGES, "planning, imports"], stages)),
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    surroundings(PAGE)  # an error now, not after the work
    make(parsed.store, ["sft"])
    base = Store(parsed.store.absolute())
    prepare(base)
    rounds = [measure(base) for _ in range(parsed.rounds)]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    minutes = sum(cost.seconds for one in rounds for cost in one.values()) / 60
    about = (
        f"`python -m benchmarks.cost --rounds {parsed.rounds}`: {minutes:.0f} min on "
        f"{processor()}, {memory()}, {date}."
    )
    replace_block(PAGE, f"{about}\n\n{tables(rounds)}")
    sys.stdout.write(json.dumps({row: cost.seconds for row, cost in rounds[-1].items()}) + "\n")


if __name__ == "__main__":
    main()
