"""From a shard to CSR tensors on one core: the open layout against lists of lists.

    python -m benchmarks.decode

Both files hold the same sequences: tokens, three numbers per position, and the record. The naive
layout is what one gets by handing the records to a data frame: ids and weights as lists of lists,
dictionary encoding, Snappy, no checksums verified; it is read through Arrow's buffers, without a
Python object per row. Ours verifies the CRC of every page and of the decoded values.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.generator import SETS, VOCABULARY, Teacher, small_world, world
from benchmarks.harness import (
    Goal,
    Options,
    Report,
    Table,
    figure,
    interleave,
    main,
    ratios,
    speed_line,
)
from benchmarks.records import Sequences, counts_of, drawn, meta_of, write_part
from benchmarks.sources import Synthetic
from stages.config.record_kinds import Counts, HeadTail, Record
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch
from storage.codec import stored, to_batch
from storage.rows import Rows
from storage.schema import ROW_GROUP
from storage.shard import PartFile

Array = NDArray[Any]
Csr = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Offsets, ids, weights."""

_PLAIN = ("tok", "ref_lp", "lp", "ent")

_SYNTHETIC = (
    "The sets are synthetic: many positions, 151,936 ids, and shapes from many ids a position "
    "(`r12`) to few (`rl`)."
)


def run(options: Options) -> Report:
    """Positions per second, and bytes, of both layouts."""
    positions = 2_000 if options.quick else 200_000
    of = small_world() if options.quick else world()
    kinds: dict[str, tuple[Record, Sequences]] = {}
    for name in SETS:
        record = Counts(sampler="multinomial")
        kinds[f"counts, {name}"] = (record, counts_of(Teacher(SETS[name], 1, of), positions))
    adaptive = HeadTail(candidates=0)
    source = Synthetic("r12", of)
    kinds["head_tail, r12"] = (adaptive, drawn(source, positions // 5, adaptive))

    lines, rows, raw = [], [], {}
    for name, (record, data) in kinds.items():
        with tempfile.TemporaryDirectory() as scratch:
            found, sizes = _measure(Path(scratch), data, record, options.rounds)
        raw[name] = found
        count = len(data.tok_T)
        if not lines:
            lines.append(
                speed_line(
                    "open layout, shard to torch CSR, one core",
                    "positions/s",
                    found,
                    "open",
                    "naive",
                    amount=count,
                    goals=(Goal("ours", ">=", 5e6), Goal("ratio", ">=", 1.4)),
                )
            )
        for layout, seconds in found.items():
            speed = float(np.median([count / s for s in seconds]))
            over = float(np.median(ratios(found, "naive", layout)))
            size = sizes["naive" if layout == "naive" else "open"] / count
            rows.append([name, layout, figure(speed), f"{over:.2f}", f"{size:.2f}"])
    table = Table(
        "Shard to torch CSR, one core, all columns",
        ("records", "path", "positions/s", "x naive", "B/position"),
        rows,
    )
    notes = [
        "`open`: all columns read, both checksums verified, decoded to int64 ids and float32 "
        "weights, passed to torch. `open, trainer` adds the conversion to the `TorchRecords` of "
        "the training loop.",
        "B/position: the whole file, with tokens and the four numbers of every position.",
        _SYNTHETIC,
    ]
    return Report("Reading records", lines, [table], notes, raw)


def _measure(
    scratch: Path, data: Sequences, record: Record, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    rows = stored(data.rows())
    meta = meta_of(record, VOCABULARY)
    part = write_part(scratch, 0, rows, meta)
    ours, naive = scratch / part.file, scratch / "naive.parquet"
    batch = to_batch(rows, meta)
    write_naive(naive, rows, batch)
    _check(ours, naive, batch)
    candidates: dict[str, Callable[[], object]] = {
        "naive": lambda: [0 for _ in read_naive(naive)],
        "open": lambda: [0 for _ in read_open(ours)],
        "open, trainer": lambda: [TorchRecords.from_batch(batch) for batch in _batches(ours)],
    }
    sizes = {"open": part.bytes, "naive": naive.stat().st_size}
    return interleave(candidates, rounds), sizes


def write_naive(path: Path, rows: Rows, batch: Batch) -> None:
    """Lists of lists, as a data frame library would write them."""
    lengths = pa.array(rows.offsets["position"].astype(np.int32))
    inner = pa.array(batch.entry_off.astype(np.int32))
    columns: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(lengths, pa.array(_plain(rows[name]))) for name in _PLAIN
    }
    for name, values in (("ids", batch.ids.astype(np.int32)), ("weights", batch.weight)):
        per_position = pa.ListArray.from_arrays(inner, pa.array(values))
        columns[name] = pa.ListArray.from_arrays(lengths, per_position)
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)


def _plain(values: Array) -> Array:
    return values.astype(np.int32 if values.dtype.kind == "u" else np.float32)


def read_naive(path: Path) -> Any:
    """CSR tensors of each row group of the naive file."""
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        for name in _PLAIN:
            torch.tensor(_one(table, name).values.to_numpy())
        ids, weights = (_one(table, name).values for name in ("ids", "weights"))
        yield (
            torch.from_numpy(ids.offsets.to_numpy().astype(np.int64)),
            torch.from_numpy(ids.values.to_numpy().astype(np.int64)),
            torch.tensor(weights.values.to_numpy()),
        )


def _one(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _batches(path: Path) -> Any:
    with PartFile(path) as file:
        for group in range(len(file.row_groups)):
            yield to_batch(file.read(group), file.meta)


def read_open(path: Path) -> Any:
    """CSR tensors of each row group of a part."""
    for batch in _batches(path):
        for values in (batch.tok, batch.lp, batch.ref_lp, batch.ent):
            torch.from_numpy(np.require(values, requirements="W"))
        yield tuple(torch.from_numpy(v) for v in (batch.entry_off, batch.ids, batch.weight))


def _check(ours: Path, naive: Path, batch: Batch) -> None:
    """Both files give back what was written."""
    start = 0
    for one, other in zip(read_open(ours), read_naive(naive), strict=True):
        stop = start + len(one[1])
        same = all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))
        close = torch.allclose(one[2], other[2], atol=1e-6)
        if not (same and close and np.array_equal(one[1].numpy(), batch.ids[start:stop])):
            raise AssertionError(f"{ours} and {naive} differ, or are not what was written")
        start = stop


if __name__ == "__main__":
    main(run, __doc__)
