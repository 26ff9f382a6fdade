"""Interleaved rounds, ratios of medians, and what a benchmark hands back.

A benchmark is a module with a function `run(options) -> Report`. A report has *lines*, the rows of
the table of targets, *tables* with everything else, *notes*, and the raw figure of every round.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.planning.document import replace_block

log = logging.getLogger("benchmarks")

ROOT = Path(__file__).resolve().parent.parent
"""Where child processes start: `benchmarks` is no installed package."""

Seconds = dict[str, list[float]]
"""CPU seconds of each candidate, round by round."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    quick: bool = False
    """Toy sizes, two rounds."""
    rounds: int = 7
    store: Path = Path("store")
    """Where real teachers are found, or made."""
    scratch: Path | None = None
    """What several benchmarks need of a teacher is kept here; None: nothing is."""


@dataclass(frozen=True)
class Goal:
    """What a line must reach."""

    of: Literal["ours", "ratio"]
    sense: Literal["<=", ">="]
    limit: float

    def met(self, line: "Line") -> bool:
        """Whether it does."""
        value = line.ours if self.of == "ours" else line.ratio
        return value <= self.limit if self.sense == "<=" else value >= self.limit


@dataclass(frozen=True)
class Line:
    """One row of the table of targets."""

    what: str
    unit: str
    """Of `ours` and `peer`."""
    ours: float
    against: str
    """What `peer` is."""
    peer: float
    ratio: float
    """Ours over the peer's: the median over rounds of the ratio within a round."""
    goals: tuple[Goal, ...]
    spread: float = 0.0
    """Half the distance between the quartiles of the ratio; 0 where nothing is random."""

    @property
    def met(self) -> bool:
        """Whether all goals are."""
        return all(goal.met(self) for goal in self.goals)


@dataclass(frozen=True)
class Table:
    """Figures beside the lines."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """What a benchmark found."""

    title: str
    lines: Sequence[Line] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    rounds: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Raw figures by name, for the JSON lines file."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Report":
        """The inverse of `to_json`."""
        lines = [
            Line(**{**line, "goals": tuple(Goal(**goal) for goal in line["goals"])})
            for line in value["lines"]
        ]
        tables = [Table(**table) for table in value["tables"]]
        return cls(value["title"], lines, tables, value["notes"], value["rounds"])


# ---------------------------------------------------------------------------------------------
# Measuring


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> Seconds:
    """CPU seconds of each candidate in each of `rounds` rounds.

    A round runs every candidate once, beginning with another one each time. One more round goes
    before, for compilation and cold caches, and is not counted.
    """
    names = list(candidates)
    found: Seconds = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            candidates[name]()
            seconds = clock() - start
            if turn:
                found[name].append(seconds)
    return found


def ratios(found: Seconds, of: str, over: str) -> list[float]:
    """found[of] / found[over], round by round."""
    return [a / b for a, b in zip(found[of], found[over], strict=True)]


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def speed_line(
    what: str,
    unit: str,
    found: Seconds,
    ours: str,
    against: str,
    *,
    amount: float,
    goals: Sequence[Goal],
) -> Line:
    """A line of speeds: `amount` of work per CPU second, ours over the peer's."""
    faster = ratios(found, against, ours)
    return Line(
        what=what,
        unit=unit,
        ours=amount / statistics.median(found[ours]),
        against=against,
        peer=amount / statistics.median(found[against]),
        ratio=statistics.median(faster),
        goals=tuple(goals),
        spread=spread(faster),
    )


def cost_line(
    what: str, unit: str, found: Seconds, ours: str, against: str, *, goals: Sequence[Goal]
) -> Line:
    """A line of costs, ours over the peer's, such as seconds."""
    dearer = ratios(found, ours, against)
    return Line(
        what=what,
        unit=unit,
        ours=statistics.median(found[ours]),
        against=against,
        peer=statistics.median(found[against]),
        ratio=statistics.median(dearer),
        goals=tuple(goals),
        spread=spread(dearer),
    )


# ---------------------------------------------------------------------------------------------
# Showing


def figure(value: float) -> str:
    """Three significant digits, with a prefix for large numbers."""
    for scale, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 10 * scale or (scale > 1e3 and abs(value) >= scale):
            return f"{value / scale:.3g}{prefix}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def lines_table(lines: Sequence[Line]) -> Table:
    """The table of targets."""
    rows: list[list[str]] = []
    for line in lines:
        ratio = f"{line.ratio:.3g}" + (f" ± {line.spread:.2g}" if line.spread else "")
        unit = f" {line.unit}".rstrip()
        targets = [
            f"{'' if goal.of == 'ours' else 'ratio '}{'≤' if goal.sense == '<=' else '≥'} "
            f"{figure(goal.limit)}{unit if goal.of == 'ours' else ''}"
            for goal in line.goals
        ]
        rows.append(
            [
                line.what,
                figure(line.ours) + unit,
                f"{figure(line.peer)}{unit} ({line.against})",
                ratio,
                ", ".join(targets),
                ("met" if line.met else "**not met**") if line.goals else "",
            ]
        )
    return Table("", ("line", "ours", "peer", "ratio", "target", ""), rows)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{table.title}\n\n{text}" if table.title else text


def show(report: Report, heading: str = "##") -> str:
    """A report as Markdown."""
    parts = [f"{heading} {report.title}\n"]
    if report.lines:
        parts.append(markdown(lines_table(report.lines)))
    return "\n".join([*parts, body(report)])


def body(report: Report) -> str:
    """Tables and notes of a report as Markdown."""
    parts = [markdown(table) for table in report.tables]
    if report.notes:
        parts.append("".join(f"- {note}\n" for note in report.notes))
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------
# Running one


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="toy sizes, two rounds")
    parser.add_argument("--rounds", type=int, help="rounds that are counted (default 7)")
    parser.add_argument("--store", type=Path, default=Path("store"), help="where real teachers lie")
    parser.add_argument("--scratch", type=Path, help="where what a teacher computed is kept")
    return parser


def options(parsed: argparse.Namespace) -> Options:
    """Options from parsed arguments."""
    rounds = parsed.rounds or (2 if parsed.quick else 7)
    return Options(parsed.quick, rounds, parsed.store, parsed.scratch)


def main(run: Callable[[Options], Report], doc: str | None, block: str = "") -> None:
    """The command line of one benchmark: run it and print its report.

    Args:
        run: The benchmark.
        doc: What it does.
        block: Name of the generated block of a page that its tables may go into; empty: none.
    """
    import torch

    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser).add_argument("--json", type=Path, help="write the report to this file")
    if block:
        parser.add_argument("--into", type=Path, help=f"a page with a block `generated: {block}`")
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        asked = options(parsed)
        report = run(asked if asked.scratch else replace(asked, scratch=Path(own)))
    log.info("%s", show(report))
    if block and parsed.into is not None:
        replace_block(parsed.into, body(report), block)
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(report.to_json()))
