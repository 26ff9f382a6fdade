"""Offline against live distillation, at equal steps, equal teacher tokens and equal time.

    python -m benchmarks.live --seeds 5     (`make live SEEDS=5`)

All students of a seed start at the same pi_ref. Those that share one set of records are in
benchmarks/live.toml; those that need records of their own are that recipe with further settings.
What a student costs is in the ledgers of the sets that were made for it: rollouts, scoring and
training of all its rounds or, with a live teacher, its training alone.

Sets that are in the store are not made again. Figures by seed go to docs/live.jsonl, the tables
between the markers of docs/live.md.
"""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Table, markdown
from benchmarks.teachers import make
from pipeline import ledger
from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.document import replace_block
from pipeline.planning.nodes import Node, build, select
from pipeline.planning.plan import Planned, resolve
from stages.config.training import Student
from stages.reporting.table import Row, read_evaluation, summarise, with_gain
from storage.store import Store

log = logging.getLogger("benchmarks")

RECIPE = Path(__file__).with_name("live.toml")
PAGE, ROWS = ROOT / "docs" / "live.md", ROOT / "docs" / "live.jsonl"
LIVE, START = "live", "start (SFT)"


@dataclass(frozen=True)
class Study:
    """The recipe with some settings, and the students that are read from it."""

    students: Mapping[str, str]
    """By row of the table, the name of the student in its last round."""
    settings: tuple[str, ...] = ()
    """Overrides, as after `--set`."""

    def of_seed(self, seed: int) -> list[str]:
        """All overrides."""
        return [*self.settings, f"seed={seed}"]

    @property
    def targets(self) -> list[str]:
        """The nodes that evaluate the students."""
        return [f"evaluate.{student}" for student in self.students.values()]


def _rounds(count: int, steps: int, prompts: int) -> tuple[str, ...]:
    """Settings of rounds of `steps` with rollouts of their own."""
    return (f"train.rounds={count}", f"train.steps={steps}", f"rollouts.prompts.limit={prompts}")


STUDIES = (
    Study(
        {
            START: "sft",
            LIVE: "live",
            "offline": "reverse_kl",
            "prefix weights": "prefix",
            "prefix weights, no cap, no means": "prefix-exact",
            "two passes": "two-passes",
            "two passes, prefix weights": "both",
        }
    ),
    Study({"four samples a prompt": "reverse_kl"}, ("rollouts.n=4", "rollouts.prompts.limit=1952")),
    Study({"2 rounds of 60 steps": "reverse_kl-2"}, _rounds(2, 60, 3904)),
    Study({"4 rounds of 30 steps": "reverse_kl-4"}, _rounds(4, 30, 1952)),
    Study(
        {"4 rounds of 30 steps, prefix weights": "reverse_kl-4"},
        (*_rounds(4, 30, 1952), 'train.weights=[{name="prefix"}]'),
    ),
    Study({"2 rounds of 120 steps, two passes": "reverse_kl-2"}, _rounds(2, 120, 3904)),
)
"""The first has the live student. Rounds and several samples have as many sequences in all their
sets together as the first has in one."""


# ---------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Paid:
    """The nodes that were made for a student."""

    training: Sequence[Node]
    """Its rounds, the last one first."""
    records: Sequence[Node]
    """Rollouts and their records of all rounds; none with a live teacher."""

    @classmethod
    def by(cls, student: Node) -> "Paid":
        """All the way back to the start of the first round."""
        rounds = [student]
        while isinstance(before := rounds[-1].inputs["init"].source, Node):
            if before.stage is not student.stage:
                break
            rounds.append(before)
        records: list[Node] = []
        for one in rounds:
            data = one.inputs.get("data")
            source = data.source if data else None
            while isinstance(source, Node):
                records.append(source)
                source = source.data
        return cls(rounds, records)

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return sum(_config(one).steps or 0 for one in self.training)


def _config(node: Node) -> Student:
    assert isinstance(node.config, Student), "a node of `train`"
    return node.config


class Made:
    """The sets of a study, all of them in the store."""

    def __init__(self, recipe: Recipe, targets: list[str], store: Path) -> None:
        self._store = Store(store.absolute())
        planned = resolve(select(build(recipe), targets), self._store)
        self.planned: Mapping[str, Planned] = {one.node.name: one for one in planned}

    def row(self, name: str, student: str) -> Row:
        """Accuracy and cost of a student, or of where it started."""
        evaluate = self.planned[f"evaluate.{student}"]
        found = read_evaluation(evaluate.directory(self._store))["metrics"]
        assert isinstance(found, dict), "checked when it is read"
        row: Row = {"model": name, "accuracy": float(found["accuracy"])}
        node = evaluate.node.inputs["model"].source
        if not isinstance(node, Node) or node.stage.name != "train":
            return row
        paid = Paid.by(node)
        return {
            **row,
            "steps": float(paid.steps),
            "teacher_tokens": self._tokens(paid),
            "records": sum(map(self._seconds, paid.records)),
            "training": sum(map(self._seconds, paid.training)),
        }

    def _seconds(self, node: Node) -> float:
        directory = self.planned[node.name].directory(self._store)
        return float(ledger.cost(directory).get("seconds", 0.0))

    def _tokens(self, paid: Paid) -> float:
        """Positions that the teacher scored for training.

        A live teacher scores fresh responses; they count as long as those of the stored set.
        """
        scored = [one for one in paid.records if one.stage.name == "teacher-logits"]
        if scored:
            return float(sum(self._scored(one)[1] for one in scored))
        live = paid.training[-1]
        prompts = live.inputs["records"].source
        assert isinstance(prompts, Node), "the recipe makes them"
        sequences, tokens = self._scored(prompts)
        return paid.steps * _config(live).batch_size * tokens / sequences

    def _scored(self, node: Node) -> tuple[int, int]:
        """Sequences and positions of a set that are trained on."""
        manifest = self.planned[node.name].manifest(self._store)
        assert manifest is not None, "it was made"
        parts = [part for part in manifest.parts if part.split == "train"]
        return sum(part.sequences for part in parts), sum(part.tokens for part in parts)

    def costs(self) -> Iterable[tuple[str, float, str]]:
        """Of every set: its directory, seconds, and the machine it was made on."""
        for name, one in self.planned.items():
            directory = one.directory(self._store)
            yield str(directory), self._seconds(self.planned[name].node), ledger.machine(directory)


def measure(
    seed: int, store: Path, extra: Sequence[str] = ()
) -> tuple[list[Row], dict[str, tuple[float, str]]]:
    """Rows of all students of a seed, and seconds and machine of every set they took.

    Args:
        seed: Of the recipe.
        store: Where the sets are, or go.
        extra: Further overrides of every study.
    """
    rows: list[Row] = []
    sets: dict[str, tuple[float, str]] = {}
    for study in STUDIES:
        overrides = [*study.of_seed(seed), *extra]
        arguments = [part for one in overrides for part in ("--set", one)]
        make(store, study.targets, "--config", str(RECIPE), *arguments)
        made = Made(load_recipe(None, [RECIPE], overrides), study.targets, store)
        rows += [made.row(name, student) for name, student in study.students.items()]
        sets |= {directory: (seconds, machine) for directory, seconds, machine in made.costs()}
    return rows, sets


# ---------------------------------------------------------------------------------------------
# Showing

EQUAL = 1.05
"""Tokens or seconds are equal up to 5 %."""

HEADER = (
    "student", "steps", "teacher tokens", "records, s", "training, s", "together, s",
    "accuracy at T = 1, %", "minus live, points",
)  # fmt: skip


def seconds(row: Row) -> float:
    """Of records and training."""
    return _number(row, "records") + _number(row, "training")


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, float), "a mean over seeds"
    return value


def spread(row: Row, key: str, scale: float = 100.0, *, signed: bool = False) -> str:
    """Mean and standard error over seeds, in points."""
    value, deviation, seeds = row.get(key), row.get(f"{key}_sd"), row.get("seeds")
    if not isinstance(value, float):
        return "-"
    shown = f"{scale * value:{'+' if signed else ''}.1f}"
    if not isinstance(deviation, float) or not isinstance(seeds, int):
        return shown
    return f"{shown} ± {scale * deviation / math.sqrt(seeds):.1f}"


def cells(row: Row) -> list[str]:
    """A line of the table of students."""
    ends = [spread(row, "accuracy"), spread(row, "gain", signed=True)]
    if "steps" not in row:
        return [str(row["model"]), *["-"] * 5, *ends]
    paid = [_number(row, "records"), _number(row, "training"), seconds(row)]
    tokens = f"{_number(row, 'teacher_tokens') / 1000:,.0f} k"
    steps = f"{_number(row, 'steps'):.0f}"
    return [str(row["model"]), steps, tokens, *(f"{one:.0f}" for one in paid), *ends]


def comparisons(rows: Sequence[Row]) -> Table:
    """The offline students that pay no more than the live one of one thing, the best first."""
    live = next(row for row in rows if row["model"] == LIVE)
    others = [row for row in rows if "gain" in row and "steps" in row]

    def line(held: str, equal: Callable[[Row], bool]) -> list[str]:
        found = sorted(filter(equal, others), key=lambda row: -_number(row, "gain"))
        shown = [f"{row['model']} {spread(row, 'gain', signed=True)}" for row in found]
        return [held, "; ".join(shown) or "none"]

    def near(key: str) -> Callable[[Row], bool]:
        return lambda row: 1 / EQUAL < _number(row, key) / _number(live, key) < EQUAL

    limit = EQUAL * seconds(live)
    return Table(
        "",
        ("equal", "offline students, points above live"),
        [
            line("steps", lambda row: row["steps"] == live["steps"]),
            line("teacher tokens", near("teacher_tokens")),
            line("time, records included", lambda row: seconds(row) <= limit),
            line("time, records already there", lambda row: _number(row, "training") <= limit),
        ],
    )


def by_seed(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Accuracy of the live student and differences to it, seed by seed."""
    names = [str(row["model"]) for row in runs[0]["rows"]]
    lines: list[list[str]] = []
    for index, name in enumerate(names):
        found = [run["rows"][index] for run in runs]
        shown = [
            f"{100 * row['gain']:+.1f}" if "gain" in row else f"{100 * row['accuracy']:.1f} %"
            for row in found
        ]
        lines.append([name, *shown])
    return Table("", ("minus live, points", *(f"seed {run['seed']}" for run in runs)), lines)


def tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the page shows of the runs in docs/live.jsonl."""
    if not runs:
        return "`make live SEEDS=5` puts its tables here."
    rows = summarise([run["rows"] for run in runs])
    minutes = sum(run["minutes"] for run in runs)
    machines = "; ".join(sorted({machine for run in runs for machine in run["machines"]}))
    count = "one seed" if len(runs) == 1 else f"{len(runs)} seeds, mean ± standard error over seeds"
    return "\n".join(
        [
            markdown(Table("", HEADER, [cells(row) for row in rows])),
            markdown(comparisons(rows)),
            markdown(by_seed(runs)),
            f"`make live SEEDS={len(runs)}`: {count}; {minutes:.0f} min of stages on {machines}, "
            f"{runs[-1]['date']}.",
        ]
    )


def read() -> list[dict[str, Any]]:
    """The runs that the page shows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds (5)")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="extra")
    parser.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    runs: list[dict[str, Any]] = []
    seen: set[str] = set()
    for seed in range(parsed.seeds):
        rows, sets = measure(seed, parsed.store, parsed.extra)
        fresh = {name: cost for name, cost in sets.items() if name not in seen}
        seen |= sets.keys()
        runs.append(
            {
                "seed": seed,
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "minutes": sum(cost for cost, _ in fresh.values()) / 60,
                "machines": sorted({machine for _, machine in fresh.values()}),
                "rows": with_gain(rows, LIVE),
            }
        )
        log.info("%s", tables(runs))
    if parsed.dry:
        return
    ROWS.write_text("".join(json.dumps(run) + "\n" for run in runs))
    replace_block(PAGE, tables(runs))


if __name__ == "__main__":
    main()
