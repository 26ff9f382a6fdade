"""The packed layout over the context-free entropy floor, and what it costs to read.

    python -m benchmarks.packed

Records of 50 independent draws. Bits are those of SmolLM2's records. The floor
(`benchmarks.floor`) is what an ideal coder would need that knows the frequencies of the ids, which
the packed layout knows too, and nothing of the text around a position; packed and open are the
compressed bytes of the record's columns on disk. The order of ids that packed sets keep in a file
of their own, once per set, is not counted: 0.2 MB for the whole vocabulary.

Speeds are measured on synthetic sets: many positions, and 151,936 ids.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.floor import floor
from benchmarks.generator import SETS, Teacher, small_world, world
from benchmarks.harness import Goal, Line, Options, Report, Table, figure, interleave, main, ratios
from benchmarks.records import (
    Sequences,
    counts_of,
    drawn,
    meta_of,
    packed_meta,
    write_part,
    write_set,
)
from benchmarks.sources import Source, Synthetic
from benchmarks.teachers import smollm2
from stages.config.record_kinds import Counts, Record
from storage.codec import to_batch
from storage.manifest import SetMeta
from storage.sets import position_bytes
from storage.shard import PartFile

_RECORD = Counts(sampler="multinomial")
_GOAL = Goal("ratio", "<=", 1.12)


def run(options: Options) -> Report:
    """Bits per position of floor and layouts, and speeds of the layouts."""
    positions, many = (3_000, 3_000) if options.quick else (4_064, 200_000)
    lines: list[Line] = []
    rows: list[list[str]] = []
    for source in _sources(options):
        line, row = _size(source, positions)
        lines.append(line)
        rows.append(row)
    sizes = Table(
        f"Bits per position, {positions:,} positions",
        ("teacher", "ids", "counts", "order (free)", "floor", "open", "packed", "open / floor"),
        rows,
    )
    speeds, raw = _speeds(many, options)
    return Report("Size against the floor", lines, [sizes, speeds], [], raw)


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return smollm2(options.store, options.scratch)


def _size(source: Source, positions: int) -> tuple[Line, list[str]]:
    data, count_V = drawn(source, positions, _RECORD), source.frequencies()
    columns = (data.columns[column] for column in ("nu", "ids", "cnt"))
    least = floor(*columns, draws=_RECORD.draws, vocabulary=source.vocabulary, count_V=count_V)
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_both(Path(scratch), data, _RECORD, source.vocabulary, count_V)
        bits = {layout: 8 * position_bytes(path.parent).record for layout, path in paths.items()}
    line = Line(
        what=f"packed layout over the context-free floor, {source.name}",
        unit="bits/position",
        ours=bits["packed"],
        against="floor",
        peer=least.total,
        ratio=bits["packed"] / least.total,
        goals=(_GOAL,),
    )
    figures = (*least, least.total, bits["open"], bits["packed"])
    over = bits["open"] / least.total
    return line, [source.name, *(f"{part:.1f}" for part in figures), f"{over:.3f}"]


def _speeds(positions: int, options: Options) -> tuple[Table, dict[str, object]]:
    """Of both layouts, with the seconds of every round."""
    of = small_world() if options.quick else world()
    rows: list[list[str]] = []
    raw: dict[str, object] = {}
    for name in SETS:
        data = counts_of(Teacher(SETS[name], 1, of), positions)
        with tempfile.TemporaryDirectory() as scratch:
            paths = write_both(Path(scratch), data, _RECORD, len(of.unigram_V))
            found = interleave(
                {layout: lambda path=path: _read(path) for layout, path in paths.items()},
                max(2, options.rounds // 2),
            )
        raw[name] = found
        for layout, seconds in found.items():
            speed = figure(positions / statistics.median(seconds))
            over = statistics.median(ratios(found, "open", layout))
            rows.append([name, layout, speed, f"{over:.2f}"])
    return (
        Table(
            "Shard to CSR, one core, all columns; synthetic sets of 151,936 ids",
            ("set", "layout", "positions/s", "x open"),
            rows,
        ),
        raw,
    )


def write_both(
    scratch: Path,
    data: Sequences,
    record: Record,
    vocabulary: int,
    count_V: NDArray[np.integer[Any]] | None = None,
) -> dict[str, Path]:
    """A set of one part in each layout; paths of the parts.

    Args:
        scratch: Where the sets go.
        data: Positions and records.
        record: What kind they are of.
        vocabulary: Number of ids.
        count_V: How often each id occurs in the whole set; default: in `data`.
    """
    rows, plain = data.rows(), meta_of(record, vocabulary)
    if count_V is None:
        count_V = np.bincount(data.tok_T, minlength=vocabulary)
    metas: dict[str, SetMeta] = {
        "open": plain,
        "packed": packed_meta(scratch / "packed", plain, count_V),
    }
    out: dict[str, Path] = {}
    for layout, meta in metas.items():
        part = write_part(scratch / layout, 0, rows, meta)
        write_set(scratch / layout, [part], meta)
        out[layout] = scratch / layout / part.file
    return out


def _read(path: Path) -> None:
    with PartFile(path) as file:
        for group in range(len(file.row_groups)):
            to_batch(file.read(group), file.meta)


if __name__ == "__main__":
    main(run, __doc__)
