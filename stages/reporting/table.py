"""The closing table: rows of metrics as aligned text or Markdown, for one run or over seeds.

A row is a flat dictionary: `model` names it, other keys are those of an evaluation's `metrics`.
`name_se` beside `name` is a standard error within one run, `name_sd` a standard deviation over
seeds; a cell shows whichever is there. Standard library only.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from storage.errors import DataError

Value = float | int | str | None
Row = Mapping[str, Value]

PASS = "pass@"
"""Keys `pass@1`, `pass@2`, ...: chance that one of k responses is right."""


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    title: str
    key: str
    scale: float = 1.0
    digits: int = 1
    signed: bool = False

    def cell(self, row: Row) -> str:
        """The value with its spread, or a dash."""
        value = _number(row.get(self.key))
        if value is None:
            return "-"
        shown = f"{value * self.scale:{'+' if self.signed else ''}.{self.digits}f}"
        spread = _number(row.get(f"{self.key}_sd"))
        if spread is None:
            spread = _number(row.get(f"{self.key}_se"))
        return shown if spread is None else f"{shown} +- {spread * self.scale:.{self.digits}f}"


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that at least one row has something for, in order."""
    ks = {int(key.removeprefix(PASS)) for row in rows for key in row if _is_pass(key)}
    temperatures = {row.get("temperature") for row in rows} - {None}
    sampled = f"T={temperatures.pop():g} %" if len(temperatures) == 1 else "sampled %"
    every = [
        Column(sampled, "accuracy", 100),
        Column("greedy %", "greedy", 100),
        Column("gain", "gain", 100, signed=True),
        *(Column(f"{PASS}{k} %", f"{PASS}{k}", 100) for k in sorted(ks - {1})),
        Column("tokens", "tokens"),
        Column("cut %", "truncated", 100),
        Column("reverse KL", "reverse_kl", digits=4),
        Column("forward KL", "forward_kl", digits=4),
        Column("ECE %", "ece", 100, digits=2),
        Column("loss", "text_loss", digits=3),
        Column("text KL", "text_kl", digits=3),
        Column("text ECE %", "text_ece", 100, digits=2),
        Column("accept %", "acceptance", 100),
        Column("angle", "gradient_angle"),
        Column("norm", "gradient_norm", digits=2),
        Column("B/pos", "bytes"),
        Column("record B", "record_bytes"),
    ]
    return [c for c in every if any(_number(row.get(c.key)) is not None for row in rows)]


def format_table(rows: Sequence[Row], style: Literal["text", "markdown"] = "text") -> str:
    """The table, one line per row, without a final line break."""
    chosen = columns(rows)
    lines = [["model", *(c.title for c in chosen)]]
    lines += [[str(row["model"]), *(c.cell(row) for c in chosen)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if style == "markdown":
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines.insert(1, rule)
        return "\n".join(f"| {' | '.join(_padded(line, widths))} |" for line in lines)
    return "\n".join("  ".join(_padded(line, widths)).rstrip() for line in lines)


def summarise(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and standard deviation over seeds, row by row.

    Args:
        runs: For each seed the rows of its report (the lines of its `metrics.jsonl`).

    Returns:
        Rows with the mean of every number under its own name, the sample standard deviation under
        `..._sd` (absent for one seed), `seeds`, and the texts all seeds agree on. Standard errors
        within a run are dropped: the spread over seeds contains them.

    Raises:
        DataError: the reports do not have the same rows.
    """
    names = [[str(row["model"]) for row in rows] for rows in runs]
    odd = next((found for found in names if found != names[0]), None)
    if odd is not None:
        raise DataError(
            f"the reports of two seeds have different rows ({', '.join(names[0])} against "
            f"{', '.join(odd)}): make them with the same recipe"
        )
    return [_over_seeds(group) for group in zip(*runs, strict=True)]


def _over_seeds(group: Sequence[Row]) -> Row:
    out: dict[str, Value] = {}
    for key in dict.fromkeys(key for row in group for key in row if not key.endswith("_se")):
        values = [row.get(key) for row in group]
        numbers = [number for value in values if (number := _number(value)) is not None]
        if numbers:
            out[key] = statistics.fmean(numbers)
            if len(numbers) > 1:
                out[f"{key}_sd"] = statistics.stdev(numbers)
        elif len(set(values)) == 1:
            out[key] = values[0]
    return out | {"seeds": len(group)}


def _number(value: Value) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _is_pass(key: str) -> bool:
    return key.startswith(PASS) and key.removeprefix(PASS).isdigit()


def _padded(cells: list[str], widths: list[int]) -> list[str]:
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
