"""Bytes per position of `head_tail` at the gradient error of RS-KD's 50 draws.

    python -m benchmarks.size

For each teacher tau is chosen so that the exact gradient error of `head_tail` equals that of 50
independent draws (arXiv 2503.16870, which spends 36 B per position on them). Real parts are
written; bytes are compressed bytes on disk. *record* counts the columns that make the record: what
a set holds beyond one that keeps log p of the realised token and the teacher's entropy alone.
*whole* counts everything: tokens, prompts, three more numbers per position, footers.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.errors import Error, profile
from benchmarks.generator import SETS, Teacher, small_world, world
from benchmarks.harness import Goal, Line, Options, Report, Table, main
from benchmarks.packed import write_both
from benchmarks.records import Sequences, counts_of, drawn
from benchmarks.sources import Source, Synthetic
from benchmarks.teachers import demo, text
from stages.config import Record
from storage.arrow import column_bytes
from storage.schema import column_names
from storage.sizes import weight

BESIDE = column_names("records", {"kind": "sampled"}, 0, True)
_PUBLISHED = 36.0
_GOALS = (Goal("ours", "<=", 15.0),)
_COUNTS = Record(kind="counts", sampler="multinomial")


def run(options: Options) -> Report:
    """Bytes of both records for each teacher."""
    sample, positions = (128, 1_000) if options.quick else (2_048, 65_536)
    lines: list[Line] = []
    rows: list[list[str]] = []
    columns: list[list[str]] = []
    for source in _sources(options):
        found = profile(source, sample, (50,))
        wanted = found.independent[50]
        tau = found.find_tau(lambda error, wanted=wanted: error.mse <= wanted.mse)
        if tau is None:
            raise ValueError(f"{source.name}: no tau has the error of 50 draws")
        record = Record(tau=tau, candidates=0)
        ours = _weigh(drawn(source, positions, record), record, source.vocabulary)
        draws = next(n for n in range(1, 51) if found.systematic(n).mse <= wanted.mse)
        even = Record(kind="counts", draws=draws)
        evenly = _weigh(drawn(source, positions, even), even, source.vocabulary)
        theirs = _weigh(_counts(source, positions), _COUNTS, source.vocabulary)
        best = min(ours, key=lambda layout: ours[layout].record)
        lines.append(
            Line(
                what=f"bytes per position at the error of RS-KD N = 50, {source.name}, {best}",
                unit="B",
                ours=ours[best].record,
                against="as published",
                peer=_PUBLISHED,
                ratio=ours[best].record / _PUBLISHED,
                goals=_GOALS,
            )
        )
        rows += [
            _row(source.name, f"head_tail, tau = {tau:.3g}", found.head_tail(tau), ours),
            _row(source.name, f"systematic counts, N = {draws}", found.systematic(draws), evenly),
            _row(source.name, "RS-KD counts, N = 50", wanted, theirs),
        ]
        columns += [[source.name, layout, _columns(ours[layout])] for layout in ours]
    table = Table(
        f"Bytes per position, parts of {positions:,} positions",
        (
            *("teacher", "record", "entries", "gradient MSE"),
            *("open: record", "whole", "packed: record", "whole"),
        ),
        rows,
    )
    header = ("teacher", "layout", "bytes of each column of the record")
    split = Table("Where the bytes of `head_tail` are", header, columns)
    return Report("What a record weighs", lines, [table, split])


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return [demo(options.store), text(options.store), *(Synthetic(n, world()) for n in SETS)]


def _counts(source: Source, positions: int) -> Sequences:
    """Records as published; of synthetic teachers from their own, much faster, sampler."""
    if isinstance(source, Synthetic):
        return counts_of(Teacher(SETS[source.name], source.seed, source.world), positions)
    return drawn(source, positions, _COUNTS)


class Size(NamedTuple):
    """Bytes per position."""

    record: float
    whole: float
    columns: dict[str, float]


def _weigh(data: Sequences, record: Record, vocabulary: int) -> dict[str, Size]:
    """Bytes in each layout."""
    out: dict[str, Size] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for layout, path in write_both(Path(scratch), data, record, vocabulary).items():
            found, columns = weight(path.parent), column_bytes(path)
            shares = {name: size / len(data.tok_T) for name, size in columns.items()}
            out[layout] = Size(found.record, found.part, shares)
    return out


def _row(name: str, record: str, error: Error, size: dict[str, Size]) -> list[str]:
    layouts = [f"{value:.2f}" for one in size.values() for value in (one.record, one.whole)]
    return [name, record, f"{error.entries:.2f}", f"{error.mse:.3g}", *layouts]


def _columns(size: Size) -> str:
    own = {name: value for name, value in size.columns.items() if name not in BESIDE}
    return ", ".join(f"{name} {value:.2f}" for name, value in own.items())


if __name__ == "__main__":
    main(run, __doc__)
