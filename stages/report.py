"""`report`: one table over all evaluated models.

Inputs by role are the rows: every input is an `evaluate` set, its role the name shown. Output:

    report.txt      the table as aligned text, with a legend
    report.md       the same in Markdown, and what each student's objective was guaranteed to be
    report.html     the same with training curves and costs on one page (`stages.reporting.page`)
    metrics.jsonl   the rows, one JSON object a line; `summarise` takes these over seeds

Imports no torch.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence

from stages.config import Report
from stages.job import Job
from stages.reporting.page import FILE, page
from stages.reporting.table import PASS, Row, Value, format_table, summarise
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest, build_manifest

__all__ = ["METRICS", "format_table", "legend", "read_rows", "run", "summarise"]

log = logging.getLogger(__name__)

METRICS = "metrics.json"
"""What an `evaluate` set holds: an object with `metrics` (flat) and the story behind them."""

ROWS = "metrics.jsonl"


def run(job: Job[Report]) -> Manifest:
    """Collect the evaluations, write the three files and describe them.

    Raises:
        DataError: an evaluation cannot be read.
    """
    found = {name: _read(source.directory / METRICS) for name, source in job.inputs.items()}
    rows = with_gain([_row(name, one) for name, one in found.items()], job.config.baseline)
    notes, promises = legend(rows, job.config.baseline), _promises(found)
    text = f"{format_table(rows)}\n\n{notes}\n"
    log.info("%s:\n%s", job.name, text)
    job.directory.mkdir(parents=True, exist_ok=True)
    files = {
        "report.txt": text,
        "report.md": _markdown(rows, notes.splitlines(), promises),
        FILE: page(job, rows, notes.splitlines(), promises),
        ROWS: "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows),
    }
    for name, content in files.items():
        (job.directory / name).write_text(content)
    return build_manifest(
        job.directory,
        **job.identity,
        kind="metrics",
        meta={"baseline": job.config.baseline, "rows": list(found)},
        files=list(files),
    )


def read_rows(directory: Place) -> list[Row]:
    """The rows of a finished report.

    Raises:
        DataError: there is no readable report.
    """
    path = directory / ROWS
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a report ({error}). Run `report` again.") from error


def with_gain(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Rows with `gain`: accuracy above that of the row called `baseline`, in the same units.

    Models answer the same prompts, but only the marginal errors are known here, so no error is
    attached; `summarise` gives the spread of the gain over seeds.
    """
    if not any("accuracy" in row for row in rows):
        return list(rows)
    base = next((row.get("accuracy") for row in rows if row["model"] == baseline), None)
    if not isinstance(base, float):
        log.warning("report: no row `%s` with an accuracy; gains are left out", baseline)
        return list(rows)
    out: list[Row] = []
    for row in rows:
        own = row.get("accuracy")
        if row["model"] != baseline and isinstance(own, float):
            out.append({**row, "gain": own - base})
        else:
            out.append(row)
    return out


def legend(rows: Sequence[Row], baseline: str) -> str:
    """What the columns mean, and how much they rest on."""
    known = {key for row in rows for key in row}
    gain = f"gain over {baseline} in points" if "gain" in known else ""
    accuracy = "accuracy of sampled and greedy answers" if "accuracy" in known else ""
    lines = ["; ".join(part for part in (accuracy, _spread(known), gain) if part)]
    if "tokens" in known:
        lines.append("tokens: mean response length; cut: share of responses that hit the limit")
    if any(PASS in key for key in known):
        lines.append("pass@k: chance that one of k sampled answers is right")
    levels = {
        f"{word} KL is {row[key]}"
        for word, key in (("reverse", "reverse_kl_level"), ("forward", "forward_kl_level"))
        for row in rows
        if row.get(key)
    }
    if levels:
        lines.append(
            "KL: nats per token to the teacher on held-out rollouts, reverse KL(model, teacher) "
            f"and forward KL(teacher, model); {', '.join(sorted(levels))}"
        )
        lines.append("ECE: model's confidence against the teacher's probability of the same token")
    lines += [text for key, text in _LEGEND.items() if key in known]
    return "\n".join(line for line in lines if line)


_LEGEND = {
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


def _spread(known: set[str]) -> str:
    """What stands behind +-."""
    if any(key.endswith("_sd") for key in known):
        return "+- standard deviation over seeds"
    if any(key.endswith("_se") for key in known):
        return "+- standard error over prompts"
    return ""


def _markdown(rows: Sequence[Row], notes: Sequence[str], promises: Mapping[str, str]) -> str:
    bullets = "\n".join(f"- {line}" for line in notes)
    parts = ["# Report", format_table(rows, "markdown"), bullets]
    if promises:
        said = "\n".join(f"- `{name}`: {promise}" for name, promise in promises.items())
        parts += ["## What each objective was, on its records", said]
    return "\n\n".join(parts) + "\n"


def _promises(found: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """By student, what its objective was on its records."""
    return {
        name: f"{promise['level']}: {promise['reason']}"
        + (f" ({promise['note']})" if promise.get("note") else "")
        for name, one in found.items()
        if isinstance(promise := one.get("guarantee"), Mapping)
    }


def _read(path: Place) -> dict[str, object]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}). Run `evaluate` again.") from error
    if not isinstance(value, dict) or not isinstance(value.get("metrics"), dict):
        raise DataError(f"{path}: has no table `metrics`. Run `evaluate` again.")
    return value


def _row(name: str, one: Mapping[str, object]) -> Row:
    metrics = one["metrics"]
    assert isinstance(metrics, Mapping), "_read has looked"
    row: dict[str, Value] = {"model": name, "temperature": _temperature(one)}
    return row | {key: value for key, value in metrics.items() if not _missing(value)}


def _temperature(one: Mapping[str, object]) -> float | None:
    sampling = one.get("sampling")
    return float(sampling["temperature"]) if isinstance(sampling, Mapping) else None


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
