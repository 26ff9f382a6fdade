"""`report`: one table over all evaluated models.

Inputs by role are the rows: every input is an `evaluate` set, its role the name shown. Output:

    report.txt    the table as aligned text, with a legend
    report.md     the same in Markdown, and what each student's objective guarantees
    report.html   the same with diagrams, training curves and costs on one page that needs no other
                  file (`stages.reporting.page`)
    rows.jsonl    the rows, one JSON object a line; `summarise` takes these over seeds

Imports no torch.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence

from stages.config.evaluation import Report
from stages.evaluation.answers import ANSWERS, read_answers
from stages.evaluation.difficulty import by_difficulty
from stages.job import Job
from stages.reporting.diagrams import Point, by_group
from stages.reporting.html import listed
from stages.reporting.page import FILE, Section, page
from stages.reporting.table import (
    ROWS,
    Row,
    Value,
    find_baseline,
    format_table,
    legend,
    read_evaluation,
    with_gain,
)
from storage.manifest import Manifest, build_manifest

log = logging.getLogger(__name__)


def run(job: Job[Report]) -> Manifest:
    """Collect the evaluations, write the files and describe them.

    Raises:
        DataError: an evaluation cannot be read.
    """
    found = {name: read_evaluation(source.directory) for name, source in job.inputs.items()}
    rows = [_row(name, one) for name, one in found.items()]
    baseline = find_baseline(rows, job.config.baseline)
    rows = with_gain(rows, baseline, job.config.baselines)
    notes = legend(rows, baseline, job.config.baselines)
    guarantees = {
        name: f"{made['level']}: {made['reason']}"
        + (f" ({made['note']})" if made.get("note") else "")
        for name, one in found.items()
        if isinstance(made := one.get("guarantee"), Mapping)
    }
    text = "\n".join([format_table(rows), "", *notes, ""])
    log.info("%s:\n%s", job.name, text)
    job.directory.mkdir(parents=True, exist_ok=True)
    files = {
        "report.txt": text,
        "report.md": _markdown(rows, notes, guarantees),
        FILE: page(job, rows, notes, guarantees, [_difficulty(job)]),
        ROWS: "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows),
    }
    for name, content in files.items():
        (job.directory / name).write_text(content)
    return build_manifest(
        job.directory,
        job.identity("metrics", meta={"baseline": baseline, "rows": list(found)}),
        files=list(files),
    )


def _row(name: str, one: Mapping[str, object]) -> Row:
    """The figures of one evaluation; missing and infinite ones are left out."""
    sampling, metrics = one.get("sampling"), one["metrics"]
    assert isinstance(metrics, Mapping), "checked by read_evaluation"
    temperature = float(sampling["temperature"]) if isinstance(sampling, Mapping) else None
    row: dict[str, Value] = {"model": name, "temperature": temperature}
    return row | {
        key: value
        for key, value in metrics.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }


def _difficulty(job: Job[Report]) -> Section:
    """Accuracy by difficulty, of the evaluations that keep their answers."""
    files = {name: source.directory / ANSWERS for name, source in job.inputs.items()}
    found = by_difficulty({name: read_answers(f) for name, f in files.items() if f.exists()})
    if found is None:
        return Section("Accuracy by difficulty", [])
    columns = zip(*found.models.values(), strict=True)
    sizes = [next((one.prompts for one in group if one), 0) for group in columns]
    names = [f"{name} ({size:,})" for name, size in zip(found.groups, sizes, strict=True)]
    points = {
        name: [
            one
            and Point(
                100 * one.accuracy,
                None if one.error is None else 100 * one.error,
                f"{one.prompts:,} prompts",
            )
            for one in group
        ]
        for name, group in found.models.items()
    }
    note = (
        "Prompts are grouped by the share of right answers that all models together gave to them "
        "(sampled and greedy), hard ones on the left; in brackets, how many there are. Intervals "
        "are two standard errors over prompts."
    )
    return Section(
        "Accuracy by difficulty",
        [by_group("sampled answers that are right, %", names, points), listed([note])],
    )


def _markdown(rows: Sequence[Row], notes: Sequence[str], guarantees: Mapping[str, str]) -> str:
    parts = ["# Report", format_table(rows, "markdown"), "\n".join(f"- {line}" for line in notes)]
    if guarantees:
        lines = "\n".join(f"- `{name}`: {text}" for name, text in guarantees.items())
        parts += ["## What each objective guarantees on its records", lines]
    return "\n\n".join(parts) + "\n"
