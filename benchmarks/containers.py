"""The same sequences in other containers: bytes, and CPU time to write and to read.

    python -m benchmarks.containers

Every container holds whole sequences with records of 50 draws and hands them out one by one as
tensors. A library that is not installed is named and left out (`make bench` installs all).
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.generator import SETS, Teacher, small_world, world
from benchmarks.harness import Options, Report, Table, figure, interleave, main, ratios
from benchmarks.peers import (
    ArrowDataset,
    Container,
    Hdf5,
    Item,
    LitData,
    Mds,
    Npz,
    Tensors,
    TorchSave,
    tensors,
)
from benchmarks.records import Sequences, counts_of, meta_of, write_part
from stages.config.record_kinds import Counts
from storage.batch import Batch
from storage.codec import stored, to_batch
from storage.manifest import SetMeta
from storage.shard import PartFile

_RECORD = Counts(sampler="multinomial")
_OURS = "open"


class Open:
    """The product's parts, sequence by sequence like the others."""

    def __init__(self, data: Sequences, meta: SetMeta) -> None:
        self._rows = data.rows()
        self._meta = meta

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """One part; rounding and every check included."""
        write_part(directory, 0, self._rows, self._meta)

    def read(self, directory: Path) -> Iterator[Tensors]:
        """Row group after row group, both checksums verified."""
        (path,) = directory.glob("*.parquet")
        with PartFile(path) as file:
            for group in range(len(file.row_groups)):
                for item in items_of(to_batch(file.read(group), file.meta)):
                    yield tensors(item)


MAKERS: dict[str, Callable[[], Container]] = {
    "datasets, arrow tables": lambda: ArrowDataset("arrow"),
    "datasets, torch rows": lambda: ArrowDataset("torch"),
    "torch.save": TorchSave,
    "npz, compressed": Npz,
    "HDF5": lambda: Hdf5(compressed=False),
    "HDF5, gzip 4": lambda: Hdf5(compressed=True),
    "MDS": lambda: Mds(compressed=False),
    "MDS, zstd 3": lambda: Mds(compressed=True),
    "litdata": LitData,
}


def run(options: Options) -> Report:
    """Bytes and speeds of all containers."""
    positions = 1_000 if options.quick else 50_000
    of = small_world() if options.quick else world()
    data = counts_of(Teacher(SETS["r12"], 17, of), positions)
    meta = meta_of(_RECORD, len(of.unigram_V))
    items = list(items_of(to_batch(stored(data.rows()), meta)))
    containers: dict[str, Container] = {_OURS: Open(data, meta)}
    absent: list[str] = []
    for name, make in MAKERS.items():
        try:
            containers[name] = make()
        except ModuleNotFoundError as error:
            absent.append(f"{name}: skipped, {error.name} is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        rows, raw = _measure(Path(scratch), containers, items, options)
    table = Table(
        f"Sequences with records of 50 draws (r12, {positions:,} positions), "
        "read one by one as tensors",
        (
            "container",
            "B/position",
            "write, positions/s",
            "read, positions/s",
            "open reads x as fast",
        ),
        rows,
    )
    notes = [*absent, "The set is synthetic: 151,936 ids, twelve of them a position."]
    return Report("Other containers", [], [table], notes, raw)


def items_of(batch: Batch) -> Iterator[Item]:
    """The sequences of a batch as dictionaries."""
    for row in range(len(batch)):
        first, last = batch.tok_off[row], batch.tok_off[row + 1]
        low, high = batch.entry_off[first], batch.entry_off[last]
        item: dict[str, Any] = {
            "tok": batch.tok[first:last],
            "ref_lp": batch.ref_lp[first:last] if batch.ref_lp is not None else None,
            "lp": batch.lp[first:last] if batch.lp is not None else None,
            "ent": batch.ent[first:last] if batch.ent is not None else None,
            "off": batch.entry_off[first : last + 1] - low,
            "ids": batch.ids[low:high],
            "weights": batch.weight[low:high],
        }
        yield {name: value.numpy() for name, value in tensors(item).items()}


def _measure(
    scratch: Path, containers: dict[str, Container], items: list[Item], options: Options
) -> tuple[list[list[str]], dict[str, Any]]:
    counter = iter(range(10**9))

    def write(name: str) -> None:
        directory = scratch / f"{next(counter)}"
        directory.mkdir()
        containers[name].write(directory, items)

    def read(name: str) -> int:
        return sum(len(one["tok"]) for one in containers[name].read(scratch / name))

    for name, container in containers.items():
        (scratch / name).mkdir()
        container.write(scratch / name, items)
        _check(name, container.read(scratch / name), items)
    sizes = {name: _bytes(scratch / name, name) for name in containers}
    rounds = max(2, options.rounds // 2)
    wrote = interleave({n: lambda n=n: write(n) for n in containers}, rounds)
    found = interleave({n: lambda n=n: read(n) for n in containers}, rounds)
    positions = sum(len(item["tok"]) for item in items)
    rows = [
        [
            name,
            f"{sizes[name] / positions:.1f}",
            figure(positions / statistics.median(wrote[name])),
            figure(positions / statistics.median(found[name])),
            f"{statistics.median(ratios(found, name, _OURS)):.2f}",
        ]
        for name in containers
    ]
    return rows, {"write": wrote, "read": found, "bytes": sizes}


def _bytes(directory: Path, name: str) -> int:
    """Of what was written; the local copies that a reader of MDS makes are not counted."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    if name == "MDS, zstd 3":
        files = [path for path in files if path.suffix != ".mds"]
    return sum(path.stat().st_size for path in files)


def _check(name: str, found: Iterator[Tensors], items: list[Item]) -> None:
    """What comes back is what was kept."""
    for one, item in zip(found, items, strict=True):
        for column, value in tensors(item).items():
            if not torch.equal(one[column].to(value.dtype), value):
                raise AssertionError(f"{name}: column {column} came back changed")


if __name__ == "__main__":
    main(run, __doc__)
