"""The rows of docs/repro-lightning.jsonl, and means over the seeds they have."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

ROWS = ROOT / "docs" / "repro-lightning.jsonl"

Row = Mapping[str, Any]


def read(path: Path = ROWS) -> list[Row]:
    """The rows that have been made."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Figures:
    """Accuracies in points by part, name and seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._found = {(row["part"], row["name"], row["seed"]): row for row in rows}

    def seeds(self, part: str, *names: str) -> list[int]:
        """Seeds that have all of these rows."""
        every = sorted({row["seed"] for row in self.rows if row["part"] == part})
        return [s for s in every if all((part, name, s) in self._found for name in names)]

    def count(self, part: str) -> str:
        """How many seeds its rows have, in words."""
        names = {row["name"] for row in self.rows if row["part"] == part}
        counts = {len(self.seeds(part, name)) for name in names}
        if counts == {1}:
            return "One seed"
        return f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} seeds"

    def within(self, part: str) -> "Figures":
        """Those of the seeds that a part has."""
        kept = {row["seed"] for row in self.rows if row["part"] == part}
        return Figures([row for row in self.rows if row["seed"] in kept])

    def row(self, part: str, name: str, seed: int) -> Row:
        """One row."""
        return self._found[part, name, seed]

    def right(self, part: str, name: str, seed: int, step: str | None = None) -> float:
        """Accuracy at a step, the last by default."""
        found = self.row(part, name, seed)["accuracy"]
        return 100.0 * found[step or max(found, key=int)]

    def mean(self, part: str, name: str, step: str | None = None) -> str:
        """Mean accuracy and its standard error."""
        return spread(self.right(part, name, seed, step) for seed in self.seeds(part, name))

    def minus(self, one: tuple[str, str], other: tuple[str, str]) -> str:
        """Difference of two rows, within seeds."""
        shared = sorted({*self.seeds(*one)} & {*self.seeds(*other)})
        return spread((self.right(*one, s) - self.right(*other, s) for s in shared), signed=True)

    def value(self, part: str, name: str, key: str, digits: int = 2) -> str:
        """Mean and standard error of another figure of a row."""
        values = [self.row(part, name, seed)[key] for seed in self.seeds(part, name)]
        return spread(values, digits=digits)


def spread(values: Iterable[float], *, signed: bool = False, digits: int = 1) -> str:
    """Mean ± standard error."""
    found = list(values)
    if not found:
        return "-"
    shown = f"{statistics.fmean(found):{'+' if signed else ''}.{digits}f}"
    if len(found) == 1:
        return shown
    return f"{shown} ± {statistics.stdev(found) / math.sqrt(len(found)):.{digits}f}"
