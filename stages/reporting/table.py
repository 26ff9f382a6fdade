"""The closing table: rows of metrics as aligned text or Markdown, for one run or over seeds.

A row is a flat dictionary: `model` names it, other keys are those of an evaluation's `metrics`.
`name_se` beside `name` is a standard error within one run, `name_sd` a standard deviation over
seeds; a cell shows whichever is there. Imports no torch.
"""

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from storage.errors import DataError
from storage.files.place import Place

log = logging.getLogger(__name__)

Value = float | int | str | None
Row = Mapping[str, Value]

EVALUATION = "evaluation.json"
"""In an `evaluate` set: an object with `metrics` (flat) and what they rest on."""
ROWS = "rows.jsonl"
"""In a `report` set: the rows, one JSON object a line."""
_FORMER = {EVALUATION: "metrics.json", ROWS: "metrics.jsonl"}
"""Names of these files in sets made by version 0.1.0."""

STARTS = ("sft", "reference")
"""Rows of pi_ref, where students start: the student after SFT, or the model that is given."""

PASS = "pass@"
"""Keys `pass@1`, `pass@2`, ...: chance that one of k responses is right."""


def read_evaluation(directory: Place) -> dict[str, object]:
    """The content of a finished `evaluate` set.

    Raises:
        DataError: there is no readable evaluation.
    """
    path = _present(directory, EVALUATION)
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}). Run `evaluate` again.") from error
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict):
        raise DataError(f"{path}: has no table `metrics`. Run `evaluate` again.")
    return value


def read_rows(directory: Place) -> list[Row]:
    """The rows of a finished report.

    Raises:
        DataError: there is no readable report.
    """
    path = _present(directory, ROWS)
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a report ({error}). Run `report` again.") from error


def _present(directory: Place, name: str) -> Place:
    former = directory / _FORMER[name]
    return former if former.exists() and not (directory / name).exists() else directory / name


@dataclass(frozen=True)
class TableColumn:
    """One column of the table."""

    title: str
    key: str
    scale: float = 1.0
    digits: int = 1
    signed: bool = False
    rare: bool = False
    """Left out where it is 0 in every row."""

    def concerns(self, row: Row) -> bool:
        """Whether the row has something to show here."""
        value = _number(row.get(self.key))
        return value is not None and not (self.rare and value == 0)

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


def columns(rows: Sequence[Row]) -> list[TableColumn]:
    """The columns that at least one row has something for, in order."""
    passes = {key.removeprefix(PASS) for row in rows for key in row if key.startswith(PASS)}
    ks = {int(k) for k in passes if k.isdigit()}
    temperatures = {row.get("temperature") for row in rows} - {None}
    sampled = f"T={temperatures.pop():g} %" if len(temperatures) == 1 else "sampled %"
    every = [
        TableColumn(sampled, "accuracy", 100),
        TableColumn("greedy %", "greedy", 100),
        TableColumn("gain", "gain", 100, signed=True),
        *(TableColumn(f"{PASS}{k} %", f"{PASS}{k}", 100) for k in sorted(ks - {1})),
        TableColumn("tokens", "tokens"),
        TableColumn("limit %", "truncated", 100),
        TableColumn("unparsed %", "unparsed", 100, rare=True),
        TableColumn("cut %", "cut", 100, rare=True),
        TableColumn("reverse KL", "reverse_kl", digits=4),
        TableColumn("forward KL", "forward_kl", digits=4),
        TableColumn("ECE %", "ece", 100, digits=2),
        TableColumn("rec. accept %", "record_acceptance", 100),
        TableColumn("loss", "text_loss", digits=3),
        TableColumn("text KL", "text_kl", digits=3),
        TableColumn("text ECE %", "text_ece", 100, digits=2),
        TableColumn("accept %", "acceptance", 100),
        TableColumn("angle", "gradient_angle"),
        TableColumn("norm", "gradient_norm", digits=2),
        TableColumn("B/pos", "bytes"),
        TableColumn("record B", "record_bytes"),
    ]
    return [c for c in every if any(c.concerns(row) for row in rows)]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, the header first."""
    chosen = columns(rows)
    head = ["model", *(column.title for column in chosen)]
    return [head, *([str(row["model"]), *(c.cell(row) for c in chosen)] for row in rows)]


def format_table(rows: Sequence[Row], style: Literal["text", "markdown"] = "text") -> str:
    """The table, one line per row, without a final line break."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if style == "markdown":
        lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = [[line[0].ljust(widths[0]), *(map(str.rjust, line[1:], widths[1:]))] for line in lines]
    if style == "markdown":
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def summarise(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and standard deviation over seeds, row by row.

    Args:
        runs: For each seed the rows of its report.

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
    out: list[Row] = []
    for group in zip(*runs, strict=True):
        row: dict[str, Value] = {}
        for key in dict.fromkeys(key for one in group for key in one if not key.endswith("_se")):
            values = [one.get(key) for one in group]
            numbers = [number for value in values if (number := _number(value)) is not None]
            if numbers:
                row[key] = statistics.fmean(numbers)
                if len(numbers) > 1:
                    row[f"{key}_sd"] = statistics.stdev(numbers)
            elif len(set(values)) == 1:
                row[key] = values[0]
        out.append(row | {"seeds": len(group)})
    return out


def find_baseline(rows: Sequence[Row], asked: str | None) -> str | None:
    """The row that gains are measured against: the one asked for, or where the students started.

    None where students started from nothing, or from a model that was not evaluated.
    """
    names = {str(row["model"]) for row in rows}
    return asked or next((name for name in STARTS if name in names), None)


def with_gain(
    rows: Sequence[Row],
    baseline: str | None,
    baselines: Mapping[str, str] = MappingProxyType({}),
    right: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
) -> list[Row]:
    """Rows with `gain`: accuracy above that of another row, in the same units.

    Where both models answered the same prompts, `gain_se` is the standard error of the mean
    difference prompt by prompt: what is hard for both does not count as noise.

    Args:
        rows: One for each model.
        baseline: The row that gains are measured against; it has none itself.
        baselines: Other rows in its place, by model; they have none either.
        right: By model and prompt, the share of right answers; without it no error is known.
    """
    if not any("accuracy" in row for row in rows):
        return list(rows)
    accuracy = {str(row["model"]): row.get("accuracy") for row in rows}
    bases = {base for base in (baseline, *baselines.values()) if base is not None}
    for base in sorted(bases):
        if not isinstance(accuracy.get(base), float):
            log.warning("report: no row `%s` with an accuracy; gains over it are left out", base)
    out: list[Row] = []
    for row in rows:
        name = str(row["model"])
        start = baselines.get(name, baseline or "")
        own, base = accuracy[name], accuracy.get(start)
        if name not in bases and isinstance(own, float) and isinstance(base, float):
            error = _paired_error(right.get(name, {}), right.get(start, {}))
            row = {**row, "gain": own - base} | ({} if error is None else {"gain_se": error})
        out.append(row)
    return out


def _paired_error(own: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """Standard error of the mean difference; None unless both have the same prompts, at least 2."""
    if own.keys() != base.keys() or len(own) < 2:
        return None
    differences = [own[prompt] - base[prompt] for prompt in own]
    return statistics.stdev(differences) / math.sqrt(len(differences))


_LEGEND = {
    "gain_se": "+- of the gain: standard error of the differences prompt by prompt",
    "tokens": "tokens: mean response length; limit: share of responses that hit the limit",
    "unparsed": "not right and not wrong, share of sampled answers: unparsed, no answer was found; "
    "cut, the limit came before the right answer",
    "pass": "pass@k: chance that one of k sampled answers is right",
    "kl": "KL: nats per token to the teacher on held-out rollouts, reverse KL(model, teacher) "
    "and forward KL(teacher, model); {levels}; estimated from drawn tokens, so a small KL may come "
    "out below 0",
    "ece": "ECE: model's confidence against the teacher's probability of the same token",
    "record_acceptance": "rec. accept: 1 - TVD to the teacher on held-out rollouts, the share of a "
    "model's tokens that pass speculative sampling, from the records; {acceptance}",
    "text_loss": "loss: cross-entropy on held-out text, nats per token",
    "text_kl": "text KL: KL(teacher, model) on held-out text, whole distributions, nats per token",
    "text_ece": "text ECE: model's confidence against whether the next token is the one it expects",
    "acceptance": "accept: 1 - TVD to the teacher on held-out text, the share of a model's tokens "
    "that pass speculative sampling",
    "gradient_angle": "angle (degrees), norm (ratio): gradient from the records against that of "
    "the teacher's whole distribution, same weights and batch",
    "bytes": "B/pos, record B: bytes of the student's set per position, and of the record columns "
    "alone",
}


def legend(
    rows: Sequence[Row], baseline: str | None, baselines: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """What the columns mean, and how much they rest on: one line each; arguments as above."""
    known = {key for row in rows for key in row}
    first = ["accuracy of sampled and greedy answers"] if "accuracy" in known else []
    if any(key.endswith("_sd") for key in known):
        first.append("+- standard deviation over seeds")
    elif any(key.endswith("_se") for key in known):
        first.append("+- standard error over prompts")
    if "gain" in known:
        others = "".join(f", of {name} over {base}" for name, base in baselines.items())
        first.append(f"gain over {baseline} in points{others}")
    levels = {
        f"{word} KL is {row[key]}"
        for word, key in (("reverse", "reverse_kl_level"), ("forward", "forward_kl_level"))
        for row in rows
        if row.get(key)
    }
    shown = known | ({"pass"} if any(PASS in key for key in known) else set())
    shown = shown - {"ece"} | ({"kl", "ece"} if levels else set())
    if not any(row.get(key) for row in rows for key in ("unparsed", "cut")):
        shown = shown - {"unparsed"}
    lines = [text for key, text in _LEGEND.items() if key in shown]
    acceptance = {
        str(level).replace("_", " ")
        for row in rows
        if (level := row.get("record_acceptance_level"))
    }
    lines = [
        line.format(levels=", ".join(sorted(levels)), acceptance=", ".join(sorted(acceptance)))
        for line in lines
    ]
    return ["; ".join(first), *lines] if first else lines


def _number(value: Value) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
