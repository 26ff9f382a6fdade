"""All benchmarks, one process each, and the page made of what they say.

    python -m benchmarks [--quick] [--only NAME ...]

Writes docs/benchmarks.md, docs/benchmarks.jsonl with the figures of every round, and a table of
docs/records.md. With --quick or --only, or where a benchmark fails, the pages in the repository are
left alone.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    ROOT,
    Line,
    Report,
    Table,
    arguments,
    body,
    figure,
    lines_table,
    markdown,
    show,
)
from pipeline.planning.document import replace_block

log = logging.getLogger("benchmarks")

PAGE, RAW = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks.jsonl"

BENCHMARKS = (
    "gradient_error",
    "error_by_size",
    "size",
    "packed",
    "decode",
    "extraction",
    "vllm_scoring",
    "drawing",
    "sampler",
    "train_step",
    "reader_share",
    "memory",
    "containers",
)
"""In the order of the table of targets; `error_by_size`, `vllm_scoring`, `drawing` and `containers`
have none."""

ELSEWHERE = {"error_by_size": ROOT / "docs" / "records.md"}
"""Benchmarks whose tables also stand in the block of their name of another page."""

LIBRARIES = (
    "numpy",
    "numba",
    "pyarrow",
    "torch",
    "transformers",
    "datasets",
    "h5py",
    "litdata",
    "mosaicml-streaming",
    "trl",
)

INTRODUCTION = """\
# Benchmarks

Speed and size, measured against targets and alternatives. `make bench` writes this page. What is
compared is measured in the same run, in turn, as CPU time of the process on one core: other load
changes all times but hardly their ratio, so **compare ratios**. A ratio is the median over rounds
of the ratio within a round; ± is half its interquartile range. `benchmarks.jsonl` has the figures
of every round.
"""

SUMMARY = (
    ("Is a record of the same size more exact?", "gradient MSE of head_tail, SmolLM2", "RS-KD"),
    ("What does recording add to scoring?", "record extraction on CPU, head_tail", "forward"),
    ("How fast are records drawn from logits?", "sampler kernel, V = 151,936", "softmax"),
    ("How fast do shards become tensors?", "open layout, shard to torch CSR", "naive"),
    ("How long is a train step?", "train step with reverse_kl, V = 151,936: time", "plain"),
    ("How much memory does it take?", "train step with reverse_kl, V = 151,936: memory", "plain"),
    ("How much of a step is reading?", "reader share of the train step", "whole step"),
    ("Does memory grow with the set?", "reader resident memory", "parts"),
)
"""What a reader asks first: the question, how its line begins, and what that is held against."""


def main() -> int:
    """Run them all; the number of those that failed, as an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser).add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = [f"--store={parsed.store.absolute()}", *(["--quick"] if parsed.quick else [])]
    options += [f"--rounds={parsed.rounds}"] if parsed.rounds else []
    before, start = os.getloadavg()[0], time.time()
    reports: dict[str, Report] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in parsed.only:
            began = time.time()
            found = run_one(name, [f"--scratch={parsed.scratch or scratch}", *options])
            seconds[name] = time.time() - began
            log.info("%s: %.0f s%s", name, seconds[name], "" if found else ", failed")
            if found:
                reports[name] = found
    text = page(reports, seconds, machine(before, time.time() - start))
    if parsed.quick or reports.keys() != set(BENCHMARKS):
        sys.stdout.write(text)
    else:
        PAGE.write_text(text)
        RAW.write_text("".join(json.dumps(line) + "\n" for line in raw_lines(reports)))
        for name, into in ELSEWHERE.items():
            replace_block(into, body(reports[name]), name)
        sys.stdout.write(markdown(lines_table(all_lines(reports))))
    return len(parsed.only) - len(reports)


def run_one(name: str, options: list[str]) -> Report | None:
    """The report of one benchmark, run in a process of its own; None where it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--json={out}", *options]
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=sys.stderr)
        if done.returncode != 0 or not out.exists():
            return None
        return Report.from_json(json.loads(out.read_text()))


def environment() -> dict[str, str]:
    """One thread per library, no progress bars, no look at the Hub."""
    return os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def all_lines(reports: dict[str, Report]) -> list[Line]:
    """The table of targets."""
    return [line for report in reports.values() for line in report.lines]


def machine(load: float, seconds: float) -> list[tuple[str, str]]:
    """What the figures were measured on, and with."""
    versions = {name: version(name) for name in LIBRARIES}
    return [
        ("machine", f"{processor()}, {os.cpu_count()} cores, {memory()}"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("libraries", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("date", time.strftime("%Y-%m-%d", time.gmtime())),
        ("load before", f"{load:.2f}"),
        ("duration", f"{seconds / 60:.1f} minutes"),
        ("command", "`make bench`"),
    ]


def processor() -> str:
    """Model of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory() -> str:
    """Installed memory."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB"


def version(name: str) -> str:
    """Of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def page(
    reports: dict[str, Report], seconds: dict[str, float], facts: list[tuple[str, str]]
) -> str:
    """The whole document."""
    lines = all_lines(reports)
    aimed = [line for line in lines if line.goals]
    met = sum(line.met for line in aimed)
    parts = [
        INTRODUCTION,
        f"## In one screen\n\n{markdown(summary(lines))}",
        "".join(f"- {name}: {value}\n" for name, value in facts),
        f"## Targets\n\n{met} of {len(aimed)} are met.\n\n{markdown(lines_table(lines))}",
    ]
    for name, report in reports.items():
        command = f"`python -m benchmarks.{name}`, {figure(seconds[name])} s\n"
        parts.append(
            show(Report(report.title, (), report.tables, [command.strip(), *report.notes]))
        )
    return "\n".join(parts)


def summary(lines: list[Line]) -> Table:
    """The lines that answer the questions of `SUMMARY`."""
    rows: list[list[str]] = []
    for question, what, against in SUMMARY:
        for line in lines:
            if line.what.startswith(what) and against in line.against:
                _, ours, peer, ratio, *_ = lines_table([line]).rows[0]
                rows.append([question, ours, peer, ratio])
                break
    return Table("", ("question", "ours", "against", "ratio"), rows)


def raw_lines(reports: dict[str, Report]) -> list[dict[str, Any]]:
    """One object per benchmark: its lines, and the figures of every round."""
    return [
        {
            "benchmark": name,
            "lines": [
                {"what": line.what, "ours": line.ours, "peer": line.peer, "ratio": line.ratio}
                for line in report.lines
            ],
            "rounds": report.rounds,
        }
        for name, report in reports.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
