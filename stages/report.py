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
from stages.evaluation.answers import ANSWERS, Answer, read_answers, right_by_prompt
from stages.evaluation.difficulty import by_difficulty
from stages.evaluation.positions import POSITIONS, read_positions
from stages.inspection.inspect import TITLE, held_out_section
from stages.job import Job
from stages.reporting.diagrams import FEW, Point, by_group, calibration
from stages.reporting.html import charted, listed
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
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import FILE_NAME, Manifest, build_manifest

log = logging.getLogger(__name__)

MOST_MODELS = 6
"""Models whose values the page shows token by token."""


def run(job: Job[Report]) -> Manifest:
    """Collect the evaluations, write the files and describe them.

    Raises:
        DataError: an evaluation cannot be read.
    """
    found = {name: read_evaluation(source.directory) for name, source in job.inputs.items()}
    rows = [_row(name, one) for name, one in found.items()]
    baseline = find_baseline(rows, job.config.baseline)
    files = {name: source.directory / ANSWERS for name, source in job.inputs.items()}
    answers = {name: read_answers(file) for name, file in files.items() if file.exists()}
    right = {name: right_by_prompt(given) for name, given in answers.items()}
    rows = with_gain(rows, baseline, job.config.baselines, right)
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
    content = {
        "report.txt": text,
        "report.md": _markdown(rows, notes, guarantees),
        FILE: page(
            job, rows, notes, guarantees, [_difficulty(answers), _calibration(found), _tokens(job)]
        ),
        ROWS: "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows),
    }
    for name, whole in content.items():
        (job.directory / name).write_text(whole)
    return build_manifest(
        job.directory,
        job.identity("metrics", meta={"baseline": baseline, "rows": list(found)}),
        files=list(content),
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


def _difficulty(answers: Mapping[str, Sequence[Answer]]) -> Section:
    """Accuracy by difficulty, of the evaluations that keep their answers."""
    found = by_difficulty(answers)
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


def _calibration(found: Mapping[str, Mapping[str, object]]) -> Section:
    """Confidence against the truth, for every evaluation that kept the bins."""
    truths = {
        "held-out rollouts": "teacher's probability",
        "held-out text": "share of hits",
    }
    parts: list[str] = []
    for source, truth in truths.items():
        drawn = [
            calibration(f"{name}, {source}", bins[source], truth)
            for name, one in found.items()
            if isinstance(bins := one.get("calibration"), Mapping) and bins.get(source)
        ]
        parts.append(charted(drawn))
    note = (
        "Tokens are put into bins by the model's confidence, its probability of the id it expects. "
        "A mark on the diagonal is a calibrated bin; the grey bars show how many tokens are in it. "
        f"Hollow marks are bins with less than {FEW:.0%} of them."
    )
    return Section("Calibration", [*parts, listed([note])] if any(parts) else [])


def _tokens(job: Job[Report]) -> Section:
    """Held-out records, token by token, with what each evaluated model but the teacher says."""
    kept: dict[str, Place] = {}
    shown: str | None = None
    for name, source in job.inputs.items():
        directory = source.directory
        if not (directory / FILE_NAME).exists():
            continue
        inputs = job.store.read(directory).payload.get("inputs")
        key = inputs.get("records", {}).get("key") if isinstance(inputs, Mapping) else None
        shown = shown or key
        if key is None or key != shown or name == "teacher":
            continue
        if (directory / POSITIONS).exists():
            kept[name] = directory / POSITIONS
    values = {name: read_positions(kept[name]) for name in at_most(MOST_MODELS, list(kept))}
    records = next(job.store.named(shown), None) if shown else None
    if records is None:
        return Section(TITLE, [])
    try:
        return held_out_section(records, values)
    except DataError as error:  # the figures stand without it
        log.warning("%s: the page shows no tokens: %s", job.name, error)
        return Section(TITLE, [])


def at_most(count: int, names: Sequence[str]) -> Sequence[str]:
    """Of more rows of the table the first, where students start, and the last ones.

    The very last one is the student of `[train]` itself, with which the others are compared.
    """
    return names if len(names) <= count else [names[0], *names[1 - count :]]


def _markdown(rows: Sequence[Row], notes: Sequence[str], guarantees: Mapping[str, str]) -> str:
    parts = ["# Report", format_table(rows, "markdown"), "\n".join(f"- {line}" for line in notes)]
    if guarantees:
        lines = "\n".join(f"- `{name}`: {text}" for name, text in guarantees.items())
        parts += ["## What each objective guarantees on its records", lines]
    return "\n\n".join(parts) + "\n"
