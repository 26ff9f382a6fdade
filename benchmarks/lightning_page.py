"""The tables and the figure of docs/repro-lightning.md, from docs/repro-lightning.jsonl."""

import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.harness import ROOT, Table, markdown
from benchmarks.lightning_rows import Figures, Row, spread
from stages.reporting.charts import curves

PAGE = ROOT / "docs" / "repro-lightning.md"
FIGURE = ROOT / "docs" / "figures" / "lightning.svg"

Lines = Sequence[Sequence[str]]
STEPS = ("10", "30", "60", "120")


def tables(rows: Sequence[Row]) -> str:
    """What the page shows of the parts that have rows."""
    if not rows:
        return "`make repro-lightning SEEDS=5` puts its tables here."
    found = Figures(rows)
    parts = [
        part
        for made in (_students, _scores, _rates, _grid, _lengths, _gradients, _bound, _cost, _real)
        if (part := made(found))
    ]
    return "\n".join([*parts, _machine(rows)])


# ---------------------------------------------------------------------------------------------
# One table each


def _section(
    title: str, found: Figures, part: str, header: Sequence[str], lines: Lines, told: str = ""
) -> str:
    table = markdown(Table("", header, lines))
    return f"### {title}\n\n{told}{table}\n{found.count(part)}.\n" if lines else ""


def _students(found: Figures) -> str:
    """Offline and live, by objective and batch size."""
    lines: list[list[str]] = []
    start = ("students", "start")
    for name, live, batch, what in (
        ("offline", "live", 64, "Lightning"),
        ("offline, 512", "live, 512", 512, "Lightning"),
        ("reverse KL", "reverse KL, live", 64, "reverse KL, corrected"),
    ):
        for mode, row in (("offline", name), ("live", live)):
            if not found.seeds("students", row):
                continue
            lines.append(
                [
                    what,
                    str(batch),
                    mode,
                    *(found.mean("students", row, step) for step in STEPS),
                    found.minus(("students", row), start),
                    found.minus(("students", row), ("students", live)) if row == name else "",
                    found.value("students", row, "drift"),
                ]
            )
    header = (
        "objective", "sequences a step", "contexts", *(f"step {step}, %" for step in STEPS),
        "gain over SFT", "minus live", "drift, nats a token",
    )  # fmt: skip
    told = (
        f"SFT: {found.mean(*start)} %.\n\n"
        f"![Accuracy over steps, offline and live](figures/{FIGURE.name})\n\n"
    )
    return _section("Offline against live", found, "students", header, lines, told)


def _scores(found: Figures) -> str:
    """What is summed out or changed in the scores."""
    lines: list[list[str]] = []
    for what, batch, name, base in (
        ("as published", 64, "offline", "offline"),
        ("token summed out", 64, "token summed out", "offline"),
        ("reverse KL, token summed out", 64, "reverse KL, token summed out", "offline"),
        ("residualized", 64, "residualized", "offline"),
        ("mean of d subtracted", 64, "shifted", "offline"),
        ("mean of d subtracted, token summed out", 64, "shifted, token summed out", "offline"),
        ("as published", 512, "offline, 512", "offline, 512"),
        ("residualized", 512, "residualized, 512", "offline, 512"),
    ):
        row = ("students", name)
        if not found.seeds(*row):
            continue
        gains = found.minus(row, ("students", "start")), found.minus(row, ("students", base))
        drift = found.value(*row, "drift")
        lines.append(
            [what, str(batch), found.mean(*row), gains[0], gains[1] * (name != base), drift]
        )
    header = (
        "offline objective", "sequences a step", "accuracy, %", "gain over SFT",
        "minus as published", "drift",
    )  # fmt: skip
    return _section("What the objective does", found, "students", header, lines)


def _rates(found: Figures) -> str:
    """Gains by learning rate and clip."""
    found = found.within("rates")

    def row(rate: str, clip: str) -> tuple[str, str]:
        own = "rates", f"offline, {rate}, clip {clip}"
        return own if found.seeds(*own) else ("students", "offline")

    lines: list[list[str]] = []
    for rate in ("1e-05", "0.0001", "0.0003", "0.001"):
        if not found.seeds("rates", "offline, 0.001, clip 10"):
            continue
        live = ("students", "live") if rate == "0.0003" else ("rates", f"live, {rate}")
        start = ("students", "start")
        lines.append(
            [
                rate,
                *(found.minus(row(rate, clip), start) for clip in ("1", "3", "10")),
                found.minus(live, start),
            ]
        )
    header = (
        "learning rate", "offline, clip 1", "offline, clip 3", "offline, clip 10 (published)",
        "live, clip 10",
    )  # fmt: skip
    return _section("Gain over SFT by learning rate and clip", found, "rates", header, lines)


def _grid(found: Figures) -> str:
    """Who taught, who scores."""
    found = found.within("grid")
    seeds = found.seeds("grid", "teachers")
    if not seeds:
        return ""
    lines: list[list[str]] = []
    for taught in "AB":
        for scored in "AB":
            own = f"{taught} {scored}" != "A A"
            part, prefix = ("grid", f"{taught} {scored} ") if own else ("students", "")
            start = ("students", "start") if taught == "A" else ("grid", "B A start")
            rows = {name: (part, prefix + name) for name in ("offline", "residualized", "live")}
            kl = [found.row("grid", "teachers", s)[f"KL policy {taught} {scored}"] for s in seeds]
            lines.append(
                [
                    taught,
                    scored,
                    spread(kl, digits=2),
                    found.mean(*start),
                    *(found.minus(row, start) for row in rows.values()),
                    found.minus(rows["residualized"], rows["offline"]),
                    found.minus(rows["offline"], rows["live"]),
                ]
            )
    header = (
        "SFT by", "scored by", "KL(pi_ref to the scoring teacher)", "SFT, %", "offline, gain",
        "residualized, gain", "live, gain", "residualized minus offline", "offline minus live",
    )  # fmt: skip

    def apart(name: str) -> str:
        return spread((found.row("grid", "teachers", s)[name] for s in seeds), digits=2)

    right = [
        spread(100 * found.row("grid", "teachers", seed)[f"accuracy {name}"] for seed in seeds)
        for name in "AB"
    ]
    told = (
        f"Teacher A: {right[0]} %, teacher B: {right[1]} %. KL(A to B) and KL(B to A), nats a "
        f"token: {apart('KL A B at A')} and {apart('KL B A at A')} at the contexts of A's pi_ref, "
        f"{apart('KL A B at B')} and {apart('KL B A at B')} at those of B's.\n\n"
    )
    return _section("Two teachers", found, "grid", header, lines, told)


def _lengths(found: Figures) -> str:
    """Steps of SFT."""
    found = found.within("lengths")
    lines: list[list[str]] = []
    for steps in (100, 200, 400, 800):
        part, prefix = ("students", "") if steps == 800 else ("lengths", f"{steps} ")
        start, offline, live = ((part, prefix + name) for name in ("start", "offline", "live"))
        if not found.seeds(*offline):
            continue
        lines.append(
            [
                str(steps),
                *(found.mean(*row) for row in (start, offline, live)),
                found.minus(offline, start),
                found.minus(offline, live),
            ]
        )
    header = (
        "steps of SFT", "SFT, %", "offline, %", "live, %", "offline minus SFT",
        "offline minus live",
    )  # fmt: skip
    known = lines if found.seeds("lengths", "400 offline") else []
    return _section("Length of SFT", found, "lengths", header, known)


def _gradients(found: Figures) -> str:
    """Bias and noise while students train."""
    lines: list[list[str]] = []
    for row in _followed(found):
        for step, one in row["steps"].items():
            lines.append(
                [
                    *row["name"].split(", clip "),
                    str(row["seed"]),
                    step,
                    *(_estimate(one[k]) for k in ("cosine_token", "cosine_contexts", "cosine")),
                    f"{one['length_published']['value'] / one['length_live']['value']:.1f}",
                    *(f"{one[k]['value']:,.0f}" for k in ("noise_drawn", "noise_expected")),
                    f"{100 * one['rare']:.0f}",
                    f"{one['drift']:.3f}",
                    f"{100 * one['accuracy']:.1f}" if "accuracy" in one else "",
                ]
            )
    header = (
        "rate", "clip", "seed", "step", "cosine, token", "cosine, contexts", "cosine, both",
        "length / live", "noise, sequences", "noise, token summed out", "rare, %", "drift",
        "accuracy, %",
    )  # fmt: skip
    return _section("Gradients while training", found, "gradients", header, lines)


def _bound(found: Figures) -> str:
    """Theorem 3.5 beside the measured difference."""
    lines: list[list[str]] = []
    for row in _followed(found):
        if not row["name"].endswith("clip 10"):
            continue
        for step, one in row["steps"].items():
            lines.append(
                [
                    row["name"].split(",")[0],
                    str(row["seed"]),
                    step,
                    f"{one['weight']:.3f} ± {one['weight_sd']:.2f}",
                    *(f"{one[k]:.3g}" for k in ("drift", "sequence_drift", "sequence_kl")),
                    *(f"{one[k]:.3g}" for k in ("chi2_least", "chi2_sampled", "sigma", "G")),
                    f"{one['bound']:.3g}" if one["bound"] else "-",
                    _estimate(one["gap"]),
                    f"{one['bound'] / one['gap']['value']:,.0f}" if one["gap"]["value"] else "-",
                ]
            )
    header = (
        "rate", "seed", "step", "token weight", "token drift", "KL(pi_ref to student)",
        "KL(student to pi_ref)", "chi2, at least", "chi2, of the sample", "sigma_A", "G", "bound",
        "measured", "bound / measured",
    )  # fmt: skip
    return _section("Drift and the bound", found, "gradients", header, lines)


def _followed(found: Figures) -> list[Row]:
    rows = [row for row in found.rows if row["part"] == "gradients"]
    return sorted(rows, key=lambda row: (*_place(row["name"]), row["seed"]))


def _place(name: str) -> tuple[float, float]:
    rate, _, clip = name.partition(", clip ")
    return float(rate), float(clip)


def _cost(found: Figures) -> str:
    """Seconds of a student."""
    lines: list[list[str]] = []
    for row in found.rows:
        if row["part"] != "cost":
            continue
        rollouts, scoring, training, live = (
            row[name] for name in ("rollouts", "scoring", "training", "live")
        )
        lines.append(
            [
                row["name"],
                *(f"{one:.1f}" for one in (rollouts, scoring, training, live)),
                f"{live / (rollouts + scoring + training):.2f}",
                f"{live / training:.1f}",
            ]
        )
    header = (
        "sequences a step", "rollouts, s", "scoring, s", "training, s", "live, s",
        "live / offline, first student", "live / offline, second student",
    )  # fmt: skip
    return _section("Processor seconds of 120 steps", found, "cost", header, lines)


def _real(found: Figures) -> str:
    """SmolLM2, where it was run."""
    names = ("offline", "residualized", "live", "reverse KL, live")
    start = ("smollm2", "start")
    lines = [
        [name, found.mean("smollm2", name), found.minus(("smollm2", name), start)]
        for name in names
        if found.seeds("smollm2", name)
    ]
    header = ("student", "accuracy, %", "gain over SFT")
    return _section("SmolLM2", found, "smollm2", header, lines)


def _estimate(figure: Mapping[str, float]) -> str:
    value, error = figure["value"], figure["error"]
    known = math.isfinite(value) and math.isfinite(error)
    return f"{value:.2f} ± {error:.2f}" if known else "-"


def _machine(rows: Sequence[Row]) -> str:
    minutes = sum(row["processor_seconds"] for row in rows) / 60
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    dates = sorted({row["date"] for row in rows})
    seeds = len({row["seed"] for row in rows})
    return (
        f"`make repro-lightning SEEDS={seeds}`: {minutes:.0f} min of processor time on {machines}, "
        f"{dates[-1]}."
    )


# ---------------------------------------------------------------------------------------------
# The figure


def figure(rows: Sequence[Row]) -> str:
    """Accuracy over steps, means over seeds, as a picture of its own."""
    found = Figures(rows)
    start = [found.right("students", "start", s) for s in found.seeds("students", "start")]
    values: dict[str, list[tuple[float, float]]] = {}
    for row, name in (
        ("offline", "offline, 64"),
        ("live", "live, 64"),
        ("offline, 512", "offline, 512"),
        ("live, 512", "live, 512"),
        ("reverse KL", "reverse KL, offline"),
        ("reverse KL, live", "reverse KL, live"),
    ):
        seeds = found.seeds("students", row)
        if seeds and start:
            points = [
                (
                    float(step),
                    statistics.fmean(found.right("students", row, s, step) for s in seeds),
                )
                for step in STEPS
            ]
            values[name] = [(0.0, statistics.fmean(start)), *points]
    svg = curves("accuracy at T = 1, %, over optimiser steps", values)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
