"""Bytes per position at the gradient error of RS-KD's 50 draws.

    python -m benchmarks.size

For each teacher tau of `head_tail` and the number of systematic draws are chosen so that the exact
gradient error equals that of 50 independent draws (arXiv 2503.16870: 36 B per position). Real parts
are written; bytes are compressed bytes on disk. *record* counts the columns that make the record:
what a set holds beyond one that keeps log p of the realised token and the teacher's entropy alone.
*whole* counts everything: tokens, prompts, three more numbers per position, footers.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.errors import Error, Profile, profile
from benchmarks.generator import small_world
from benchmarks.harness import Goal, Line, Options, Report, Table, main
from benchmarks.packed import write_both
from benchmarks.records import all_drawn
from benchmarks.sources import Source, Synthetic, affordable
from benchmarks.teachers import demo, smollm2, text
from stages.config.record_kinds import Counts, HeadTail, Record
from storage.parquet.reader import column_bytes
from storage.schema import column_names
from storage.sets import position_bytes

BESIDE = column_names("records", {"kind": "sampled"}, 0, True)
_GOALS = (Goal("ours", "<=", 15.0),)
_PUBLISHED = Counts(sampler="multinomial")


def run(options: Options) -> Report:
    """Bytes of three records of equal error, for each teacher."""
    sample, asked = (128, 1_000) if options.quick else (2_048, 32_768)
    lines: list[Line] = []
    rows: list[list[str]] = []
    columns: list[list[str]] = []
    for source in _sources(options):
        positions = affordable(source, asked)
        equal = list(_equals(profile(source, sample, (50,))))
        sizes_of = weigh(source, positions, [record for _, record, _ in equal])
        weighed = {
            kind: (error, size) for (kind, _, error), size in zip(equal, sizes_of, strict=True)
        }
        _, theirs = weighed[RS_KD]
        for kind, (error, sizes) in weighed.items():
            rows.append(_row(source.name, kind, error, sizes))
            columns += [[source.name, kind, layout, _columns(sizes[layout])] for layout in sizes]
            if kind != RS_KD:
                lines.append(_line(source.name, kind, sizes["packed"], theirs["packed"]))
    header = ("teacher", "record", "entries", "gradient MSE")
    table = Table(
        "Bytes per position",
        (*header, "open: record", "open: all", "packed: record", "packed: all"),
        rows,
    )
    split = Table(
        "Bytes of each column of the record",
        ("teacher", "record", "layout", "bytes per position of each column"),
        columns,
    )
    return Report("Bytes per record", lines, [table, split], _NOTES)


RS_KD = "RS-KD counts, N = 50"

_NOTES = (
    "Parts have 32,768 positions of the small teachers and 4,064 of SmolLM2.",
    "The records of a teacher have equal gradient errors for the forward KL. `head_tail` also "
    "holds log p of its head and the mass outside, which reverse KL needs.",
    "± is the standard error over positions; all records of a teacher see the same ones, so it "
    "moves them together.",
    "all: the record, the tokens and the other columns of every position.",
    "The target counts the record's columns in the packed layout; the published figure is 36 B.",
)


def _equals(found: Profile) -> Iterator[tuple[str, Record, Error]]:
    """The published record, and the cheapest of ours with no larger an error."""
    wanted = found.independent[50]
    tau = found.find_tau(lambda error: error.mse <= wanted.mse)
    if tau is None:
        raise ValueError(f"no tau has an error of {wanted.mse:.3g}")
    adaptive = HeadTail(tau=tau, candidates=0)
    yield f"head_tail, tau = {tau:.3g}", adaptive, found.head_tail(tau)
    draws = next(n for n in range(1, 51) if found.systematic(n).mse <= wanted.mse)
    even = Counts(draws=draws)
    yield f"systematic counts, N = {draws}", even, found.systematic(draws)
    yield RS_KD, _PUBLISHED, wanted


def _line(name: str, kind: str, ours: "Size", theirs: "Size") -> Line:
    return Line(
        what=f"bytes per position at the error of RS-KD N = 50, {name}, {kind.partition(',')[0]}",
        unit="B",
        ours=ours.record,
        against="RS-KD counts, packed too",
        peer=theirs.record,
        ratio=ours.record / theirs.record,
        goals=_GOALS,
    )


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return [
        *smollm2(options.store, options.scratch),
        demo(options.store),
        text(options.store),
    ]


class Size(NamedTuple):
    """Bytes per position."""

    record: float
    whole: float
    columns: dict[str, float]


def weigh(source: Source, positions: int, records: Sequence[Record]) -> list[dict[str, Size]]:
    """Bytes of each kind of record in each layout, of the first positions of a teacher."""
    count_V = source.frequencies()
    out: list[dict[str, Size]] = []
    for record, data in zip(records, all_drawn(source, positions, records), strict=True):
        sizes: dict[str, Size] = {}
        with tempfile.TemporaryDirectory() as scratch:
            written = write_both(Path(scratch), data, record, source.vocabulary, count_V)
            for layout, path in written.items():
                found, columns = position_bytes(path.parent), column_bytes(path)
                shares = {name: size / len(data.tok_T) for name, size in columns.items()}
                sizes[layout] = Size(found.record, found.part, shares)
        out.append(sizes)
    return out


def _row(name: str, record: str, error: Error, size: dict[str, Size]) -> list[str]:
    layouts = [f"{value:.2f}" for one in size.values() for value in (one.record, one.whole)]
    means = f"{error.entries:.2f}", f"{error.mse:.3g} ± {error.mse_error:.2g}"
    return [name, record, *means, *layouts]


def _columns(size: Size) -> str:
    own = {name: value for name, value in size.columns.items() if name not in BESIDE}
    return ", ".join(f"{name} {value:.2f}" for name, value in own.items())


if __name__ == "__main__":
    main(run, __doc__)
