"""`report.html`: everything a run found on one page that needs no other file.

What to beware of, the table and its legend, figures with their intervals, the training curves of
every student, what each objective guarantees on its records, and the cost of every set. Curves and
costs are read from the sets that the evaluations descend from, as far as they are in the store.
`stages.report` adds what is read from answers and records.

No external script, style sheet, font or image. Imports no torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.job import Job
from stages.reporting import charts
from stages.reporting.cautions import cautions
from stages.reporting.diagrams import Point, intervals
from stages.reporting.html import charted, document, listed, section, table, text
from stages.reporting.table import Row, cells
from storage.files.place import Place
from storage.manifest import FILE_NAME, Manifest, read_manifest
from storage.schema import OUTCOME

FILE = "report.html"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
"""As `stages.training.metrics` names it, which imports torch."""
_CURVES = {
    "loss": "loss of each objective, by step",
    "drift": "drift: KL(pi_ref, student) on the records, nats per token, by step",
    "grad_norm": "norm of the gradient, by step",
}
"""Columns of a training's `metrics.jsonl` that are drawn, where a student has them."""

_PROMPTS = {
    "rows": "rows read",
    "kept": "prompts",
    "answers": "with an answer",
    "duplicates": "dropped: duplicates",
    "empty": "dropped: empty",
    "over_long": "dropped: over-long",
    "without_answer": "dropped: no answer",
    "control_tokens": "dropped: control tokens",
    "with_control_tokens": "with control tokens",
    "end_tokens_removed": "end token removed",
}
"""Counts of a `stages.data.prompts.PromptReport` that are shown, where any set has them."""
_ALWAYS = ("rows", "kept", "answers")


@dataclass(frozen=True)
class Ancestor:
    """A set that the report descends from."""

    directory: Place
    manifest: Manifest


@dataclass(frozen=True)
class Section:
    """A part of the page that its caller makes."""

    title: str
    parts: Sequence[str]
    """HTML; without any, there is no section."""
    assets: tuple[str, ...] = ()
    """Style sheets and scripts it needs, by name in `assets/`."""


def page(
    job: Job[Any],
    rows: Sequence[Row],
    notes: Sequence[str],
    guarantees: Mapping[str, str],
    sections: Sequence[Section] = (),
) -> str:
    """The whole page.

    Args:
        job: Of the report; its inputs lead to all other sets.
        rows: Of the table, by model.
        notes: What its columns mean.
        guarantees: By student, what its objective guarantees on its records.
        sections: Further parts, between the table and the training curves.
    """
    found = list(ancestors(job))
    promised = [f"<code>{text(name)}</code>: {text(said)}" for name, said in guarantees.items()]
    beware = cautions(rows, guarantees, [one.manifest for one in found])
    body = [
        listed([text(one) for one in beware], "warnings"),
        table(cells(rows)),
        listed([text(note) for note in notes]),
        charted(_intervals(rows)),
    ]
    for one in sections:
        body += section(one.title, one.parts)
    body += [
        *section("Training", [charted(_curves(found))]),
        *section("What each objective guarantees on its records", [listed(promised)]),
        *section("Prompts, and rows that were dropped", [_prompts(found)]),
        *section("Responses, and what the verifier said of them", [_responses(found)]),
        *section("What it cost", [_ledger(found)]),
    ]
    assets = [name for one in sections if one.parts for name in one.assets]
    return document("Report", body, list(dict.fromkeys(assets)))


def ancestors(job: Job[Any]) -> Iterator[Ancestor]:
    """Sets that the report descends from and that are in the store, each after what it reads."""
    seen: set[str] = set()

    def visit(directory: Place) -> Iterator[Ancestor]:
        if str(directory) in seen or not (directory / FILE_NAME).exists():
            return
        seen.add(str(directory))
        manifest = read_manifest(directory)
        inputs = manifest.payload.get("inputs")
        for source in inputs.values() if isinstance(inputs, Mapping) else ():
            key = source.get("key")
            for found in job.store.named(key) if key else ():
                yield from visit(found)
        yield Ancestor(directory, manifest)

    for source in job.inputs.values():
        yield from visit(source.directory)


_FIGURES = {
    "accuracy, %": {"accuracy": ("sampled", 100.0), "greedy": ("greedy", 100.0)},
    "gain in accuracy, points": {"gain": ("gain", 100.0)},
    "divergence from the teacher, nats per token": {
        "reverse_kl": ("reverse KL", 1.0),
        "forward_kl": ("forward KL", 1.0),
    },
    "held-out text, nats per token": {"text_loss": ("loss", 1.0), "text_kl": ("KL", 1.0)},
}
"""Figures that are drawn with their intervals: name and scale, by key and by title of the chart."""


def _intervals(rows: Sequence[Row]) -> list[str]:
    out: list[str] = []
    for title, figures in _FIGURES.items():
        values: dict[str, dict[str, Point]] = {}
        for row in rows:
            for key, (shown, scale) in figures.items():
                value, error = row.get(key), row.get(f"{key}_se")
                if isinstance(value, int | float):
                    spread = scale * error if isinstance(error, int | float) else None
                    point = Point(scale * value, spread)
                    values.setdefault(str(row["model"]), {})[shown] = point
        out.append(intervals(title, values))
    return out


def _curves(found: Sequence[Ancestor]) -> list[str]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        if one.manifest.stage == "train" and (one.directory / METRICS).exists():
            name = one.manifest.name.partition(".")[2] or one.manifest.name
            lines = (one.directory / METRICS).read_text().splitlines()
            runs[name] = [json.loads(line) for line in lines]

    def points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
        return [
            (float(line["step"] or 0), float(value))
            for line in lines
            if (value := line.get(key)) is not None
        ]

    out: list[str] = []
    for key, title in _CURVES.items():
        values = {name: points(lines, key) for name, lines in runs.items()}
        if key == "drift":  # students of the same records: the teacher is as far in all of them
            far = (points(lines, "drift_teacher") for lines in runs.values())
            values["the teacher"] = next(filter(None, far), [])
        out.append(charts.curves(title, values))
    return out


def _prompts(found: Sequence[Ancestor]) -> str:
    """What became of the rows of each prompt file; models evaluated on the same rows share a line.

    Kinds of dropped rows that occur nowhere have no column.
    """
    counts: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    for one in found:
        report = one.manifest.meta.get("prompts")
        if isinstance(report, Mapping):
            evaluated = one.manifest.stage == "evaluate"
            name = one.manifest.stage if evaluated else one.manifest.name
            columns = {shown: report.get(key) for key, shown in _PROMPTS.items()}
            counts[name, tuple(int(value or 0) for value in columns.values())] = columns
    used = [
        shown
        for place, (key, shown) in enumerate(_PROMPTS.items())
        if key in _ALWAYS or any(values[place] for _, values in counts)
    ]
    lines = [
        [name, *("" if columns[shown] is None else f"{columns[shown]:,}" for shown in used)]
        for (name, _), columns in counts.items()
    ]
    return table([["set", *used], *lines]) if lines else ""


def _responses(found: Sequence[Ancestor]) -> str:
    """Counts of outcomes and of skipped sequences, for sets of sequences that have any."""
    counts: dict[str, dict[str, int]] = {}
    for one in found:
        meta = one.manifest.meta
        told: dict[str, int] = dict(meta.get("outcomes") or {})
        if "skipped" in meta:
            told["skipped"] = meta["skipped"]
        if told:
            counts[one.manifest.name] = {"sequences": one.manifest.totals.sequences, **told}
    shown = ["sequences", *OUTCOME, "skipped"]
    used = [name for name in shown if any(name in values for values in counts.values())]
    lines = [
        [name, *(f"{values.get(column, 0):,}" for column in used)]
        for name, values in counts.items()
    ]
    return table([["set", *used], *lines]) if lines else ""


def _ledger(found: Sequence[Ancestor]) -> str:
    lines = [["set", "seconds", "sequences", "tokens", "bytes", "bytes a token"]]
    total = 0.0
    for one in found:
        file = one.directory / PROVENANCE
        cost: dict[str, Any] = json.loads(file.read_text())["cost"] if file.exists() else {}
        total += float(cost.get("seconds", 0.0))
        amounts = [f"{cost[name]:,}" if cost.get(name) else "" for name in lines[0][2:5]]
        seconds = f"{cost['seconds']:,.1f}" if cost else ""
        stored = one.manifest.kind in ("sequences", "records") and cost.get("tokens")
        amounts.append(f"{cost.get('bytes', 0) / cost['tokens']:.1f}" if stored else "")
        lines.append([f"{one.manifest.name} ({one.manifest.key[:12]})", seconds, *amounts])
    return table([*lines, ["total", f"{total:,.1f}", "", "", "", ""]]) if found else ""
