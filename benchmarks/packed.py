"""The packed layout over the context-free entropy floor, and what it costs to read.

    python -m benchmarks.packed

Records of 50 independent draws of the synthetic teachers. The floor (`benchmarks.floor`) is what an
ideal coder would need that knows nothing of the text around a position; packed and open are the
compressed bytes of the record's columns on disk. The order of ids that packed sets keep in a file
of their own, once per set, is not counted: 0.6 MB for the whole vocabulary.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.floor import floor
from benchmarks.generator import SETS, Teacher, small_world, world
from benchmarks.harness import Goal, Line, Options, Report, Table, figure, interleave, main, ratios
from benchmarks.records import Sequences, counts_of, meta_of, packed_meta, write_part, write_set
from stages.config.record_kinds import Counts, Record
from storage.codec import to_batch
from storage.manifest import SetMeta
from storage.sets import position_bytes
from storage.shard import PartFile

_RECORD = Counts(sampler="multinomial")
_GOAL = Goal("ratio", "<=", 1.12)


def run(options: Options) -> Report:
    """Bits per position of floor and layouts, and speeds of the layouts."""
    positions = 3_000 if options.quick else 500_000
    of = small_world() if options.quick else world()
    lines: list[Line] = []
    sizes: list[list[str]] = []
    speeds: list[list[str]] = []
    raw: dict[str, object] = {}
    for name in SETS:
        data = counts_of(Teacher(SETS[name], 1, of), positions)
        columns = (data.columns[column] for column in ("nu", "ids", "cnt"))
        least = floor(*columns, draws=_RECORD.draws, vocabulary=len(of.unigram_V))
        with tempfile.TemporaryDirectory() as scratch:
            paths = write_both(Path(scratch), data, _RECORD, len(of.unigram_V))
            bits = {
                layout: 8 * position_bytes(path.parent).record for layout, path in paths.items()
            }
            found = interleave(
                {layout: lambda path=path: _read(path) for layout, path in paths.items()},
                max(2, options.rounds // 2),
            )
        raw[name] = found
        lines.append(
            Line(
                what=f"packed layout over the context-free floor, {name}",
                unit="bits/position",
                ours=bits["packed"],
                against="floor",
                peer=least.total,
                ratio=bits["packed"] / least.total,
                goals=(_GOAL,),
            )
        )
        sizes.append(
            [
                name,
                *(f"{part:.1f}" for part in (*least, least.total, *bits.values())),
                f"{bits['open'] / least.total:.3f}",
            ]
        )
        speeds += [
            [
                name,
                layout,
                figure(positions / statistics.median(seconds)),
                f"{statistics.median(ratios(found, 'open', layout)):.2f}",
            ]
            for layout, seconds in found.items()
        ]
    tables = [
        Table(
            f"Bits per position, {positions:,} positions",
            ("set", "ids", "counts", "order (free)", "floor", *bits, "open / floor"),
            sizes,
        ),
        Table(
            "Shard to CSR, one core, all columns",
            ("set", "layout", "positions/s", "x open"),
            speeds,
        ),
    ]
    return Report("Size against the floor", lines, tables, [], raw)


def write_both(scratch: Path, data: Sequences, record: Record, vocabulary: int) -> dict[str, Path]:
    """A set of one part in each layout; paths of the parts."""
    rows, plain = data.rows(), meta_of(record, vocabulary)
    metas: dict[str, SetMeta] = {
        "open": plain,
        "packed": packed_meta(scratch / "packed", plain, data.tok_T),
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
