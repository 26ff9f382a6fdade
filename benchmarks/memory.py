"""Resident memory of the reader: a set of 8 parts against one of 256.

    python -m benchmarks.memory

Each set is read in a process of its own, the same number of batches, in shuffled order with two
batches ahead. Parts are equally large, so the larger set is 32 times the smaller one. The figure is
the peak of the resident memory; what was resident before the reader was made is the base.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.generator import SETS, VOCABULARY, Teacher, small_world, world
from benchmarks.harness import ROOT, Goal, Line, Options, Report, Table, main, spread
from benchmarks.records import counts_of, meta_of, write_part, write_set
from stages.config.record_kinds import Counts

_RECORD = Counts(sampler="multinomial")
FEW, MANY = 8, 256


def run(options: Options) -> Report:
    """Peak resident memory for both sets."""
    few, many, positions = (2, 6, 2_000) if options.quick else (FEW, MANY, 20_000)
    # Long enough that every part of the larger set has been open.
    batches = 4 if options.quick else 160
    rounds = 1 if options.quick else max(3, options.rounds // 2)
    found: dict[str, list[dict[str, float]]] = {str(few): [], str(many): []}
    with tempfile.TemporaryDirectory() as scratch:
        for parts in (few, many):
            _write(Path(scratch) / str(parts), parts, positions, options.quick)
        for _ in range(rounds):
            for parts in found:
                found[parts].append(_child(Path(scratch) / parts, batches))

    def peak(parts: int) -> list[float]:
        return [one["peak"] for one in found[str(parts)]]

    pairs = [a / b for a, b in zip(peak(many), peak(few), strict=True)]
    line = Line(
        what=f"reader resident memory, {many} parts against {few}",
        unit="MB",
        ours=statistics.median(peak(many)),
        against=f"{few} parts",
        peer=statistics.median(peak(few)),
        ratio=statistics.median(pairs),
        goals=(Goal("ratio", "<=", 1.05),),
        spread=spread(pairs),
    )
    rows = [
        [
            parts,
            f"{statistics.median(one['base'] for one in all_):.1f}",
            f"{statistics.median(one['peak'] for one in all_):.1f}",
            f"{statistics.median(one['peak'] - one['base'] for one in all_):.1f}",
        ]
        for parts, all_ in found.items()
    ]
    table = Table(
        f"Resident memory in MB, {batches} batches of 64 sequences",
        ("parts", "before", "peak", "growth"),
        rows,
    )
    return Report("Memory of the reader", [line], [table], [], {"megabytes": found})


def _write(directory: Path, parts: int, positions: int, quick: bool) -> None:
    """A set whose parts hold the same sequences: only how many there are matters."""
    teacher = Teacher(SETS["r12"], 31, small_world() if quick else world())
    rows = counts_of(teacher, positions).rows()
    meta = meta_of(_RECORD, VOCABULARY)
    made = [write_part(directory, index, rows, meta) for index in range(parts)]
    write_set(directory, made, meta)


def _child(directory: Path, batches: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--read", str(directory)]
    done = subprocess.run(
        [*command, "--batches", str(batches)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise KeyError(field)


def read(directory: Path, batches: int) -> dict[str, float]:
    """Read this many batches; memory before and at its peak, in MB."""
    # What a trainer has loaded anyway is not the reader's.
    import pyarrow.parquet  # noqa: F401

    import storage.kernels  # noqa: F401
    from storage.stream import Stream

    base = resident("VmRSS")
    with Stream(directory, seed=0, batch_size=64, prefetch=2) as stream:
        for _ in range(batches):
            next(stream)
    return {"base": base, "peak": resident("VmHWM")}


if __name__ == "__main__":
    if "--read" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--read", type=Path)
        parser.add_argument("--batches", type=int)
        asked = parser.parse_args()
        sys.stdout.write(json.dumps(read(asked.read, asked.batches)) + "\n")
    else:
        main(run, __doc__)
