"""`report.html`: everything a run found on one page that needs no other file.

The table and its legend, accuracy as bars, the training curves of every student, what each
objective guarantees on its records, and the cost of every set. Curves and costs are read from the
sets that the evaluations descend from, as far as they are in the store.

No external script, style sheet, font or image. Imports no torch.
"""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.job import Job
from stages.reporting import charts
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
    "drift_ess": "effective share of the sample under the student, by step",
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

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
        overflow-x: auto }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #d9dee4 }
th:first-child, td:first-child { text-align: left }
ul { padding-left: 1.2rem; color: #4a5560 } svg { max-width: 100%; height: auto; margin: .4rem 0 }
code { background: #f2f4f7; padding: 0 .25rem; border-radius: 3px }
@media (prefers-color-scheme: dark) {
  body { color: #e6e9ed; background: #14171b } th, td { border-color: #333a42 }
  ul { color: #a9b3bd } code { background: #22272e } svg text { fill: #c9d1d9 } }
"""


@dataclass(frozen=True)
class Ancestor:
    """A set that the report descends from."""

    directory: Place
    manifest: Manifest


def page(
    job: Job[Any], rows: Sequence[Row], notes: Sequence[str], guarantees: Mapping[str, str]
) -> str:
    """The whole page.

    Args:
        job: Of the report; its inputs lead to all other sets.
        rows: Of the table, by model.
        notes: What its columns mean.
        guarantees: By student, what its objective guarantees on its records.
    """
    found = list(ancestors(job))
    promised = [f"<code>{_text(name)}</code>: {_text(said)}" for name, said in guarantees.items()]
    parts = [
        "<h1>Report</h1>",
        _table(cells(rows)),
        _list([_text(note) for note in notes]),
        charts.bars("accuracy, %", _accuracies(rows)),
        *_section("Training", _curves(found)),
        *_section("What each objective guarantees on its records", [_list(promised)]),
        *_section("Prompts, and rows that were dropped", [_prompts(found)]),
        *_section("Responses, and what the verifier said of them", [_responses(found)]),
        *_section("What it cost", [_ledger(found)]),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Report</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


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


def _accuracies(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    named = {"accuracy": "sampled", "greedy": "greedy"}
    found = {
        str(row["model"]): {
            shown: 100 * float(value)
            for key, shown in named.items()
            if isinstance(value := row.get(key), int | float)
        }
        for row in rows
    }
    return {name: values for name, values in found.items() if values}


def _curves(found: Sequence[Ancestor]) -> list[str]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        if one.manifest.stage == "train" and (one.directory / METRICS).exists():
            name = one.manifest.name.partition(".")[2] or one.manifest.name
            lines = (one.directory / METRICS).read_text().splitlines()
            runs[name] = [json.loads(line) for line in lines]
    return [
        charts.curves(
            title,
            {
                name: [
                    (float(line["step"] or 0), float(value))
                    for line in lines
                    if (value := line.get(key)) is not None
                ]
                for name, lines in runs.items()
            },
        )
        for key, title in _CURVES.items()
    ]


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
    return _table([["set", *used], *lines]) if lines else ""


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
    return _table([["set", *used], *lines]) if lines else ""


def _ledger(found: Sequence[Ancestor]) -> str:
    lines = [["set", "seconds", "sequences", "tokens", "bytes"]]
    total = 0.0
    for one in found:
        file = one.directory / PROVENANCE
        cost: dict[str, Any] = json.loads(file.read_text())["cost"] if file.exists() else {}
        total += float(cost.get("seconds", 0.0))
        amounts = [f"{cost[name]:,}" if cost.get(name) else "" for name in lines[0][2:]]
        seconds = f"{cost['seconds']:,.1f}" if cost else ""
        lines.append([f"{one.manifest.name} ({one.manifest.key[:12]})", seconds, *amounts])
    return _table([*lines, ["total", f"{total:,.1f}", "", "", ""]]) if found else ""


def _section(title: str, parts: Sequence[str]) -> list[str]:
    kept = [part for part in parts if part]
    return [f"<h2>{_text(title)}</h2>", *kept] if kept else []


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    out = [f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>"]
    out += [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in line)}</tr>" for line in body]
    return "<table>" + "".join(out) + "</table>"


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _text(text: str) -> str:
    return html.escape(text.replace(" +- ", " ± "))
