"""Other containers for the same sequences, each used the way its documentation shows.

A sequence is a dictionary of flat arrays: tokens, three numbers per position, and the record as
offsets, ids and weights. Every container writes all of them and reads them back one by one as
tensors. Libraries are imported when a container is made: they are no dependency of the project.
"""

import importlib
import importlib.util
import io
import json
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Item = Mapping[str, NDArray[Any]]
Tensors = Mapping[str, torch.Tensor]

DTYPES = {
    "tok": np.dtype(np.int32),
    "ref_lp": np.dtype(np.float32),
    "lp": np.dtype(np.float32),
    "ent": np.dtype(np.float32),
    "off": np.dtype(np.int32),
    "ids": np.dtype(np.int32),
    "weights": np.dtype(np.float32),
}


class Container(Protocol):
    """A way to keep sequences in a directory."""

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """Keep them."""
        ...

    def read(self, directory: Path) -> Iterator[Tensors]:
        """All of them, in order."""
        ...


def tensors(item: Mapping[str, Any]) -> Tensors:
    """Arrays as tensors; read-only ones are copied."""
    return {
        name: torch.from_numpy(np.require(item[name], dtype, ["C", "W"]))
        for name, dtype in DTYPES.items()
    }


class TorchSave:
    """`torch.save`, one file per sequence."""

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """One file each."""
        for index, item in enumerate(items):
            torch.save(dict(tensors(item)), directory / f"{index:06d}.pt")

    def read(self, directory: Path) -> Iterator[Tensors]:
        """In the order of the names."""
        for path in sorted(directory.glob("*.pt")):
            yield torch.load(path, weights_only=True)


class Hdf5:
    """One HDF5 file: a flat data set per array, and where each sequence ends.

    Args:
        compressed: gzip level 4 over shuffled bytes, in chunks of 64 Ki values.
    """

    def __init__(self, compressed: bool) -> None:
        self._h5py = importlib.import_module("h5py")
        self._options: dict[str, Any] = {}
        if compressed:
            self._options = {"compression": "gzip", "compression_opts": 4, "shuffle": True}

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """All sequences, one after the other."""
        with self._h5py.File(directory / "data.h5", "w") as file:
            for name in DTYPES:
                flat = np.concatenate([item[name] for item in items])
                chunks = (min(len(flat), 65_536),) if self._options else None
                file.create_dataset(name, data=flat, chunks=chunks, **self._options)
                ends = np.cumsum([0, *(len(item[name]) for item in items)])
                file.create_dataset(f"{name}.ends", data=ends)

    def read(self, directory: Path) -> Iterator[Tensors]:
        """Slice after slice."""
        with self._h5py.File(directory / "data.h5", "r") as file:
            ends = {name: file[f"{name}.ends"][:] for name in DTYPES}
            for index in range(len(ends["tok"]) - 1):
                yield tensors({n: file[n][ends[n][index] : ends[n][index + 1]] for n in DTYPES})


class ArrowDataset:
    """A `datasets.Dataset` saved to disk, read in one of its formats.

    Args:
        form: `torch` hands out tensors row by row; `arrow` gives tables of 32 rows.
    """

    def __init__(self, form: str) -> None:
        self._datasets = importlib.import_module("datasets")
        self._form = form

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """Lists in Arrow's file format, uncompressed as the library writes them."""
        self._datasets.disable_progress_bars()
        kinds = {np.dtype(np.int32): "int32", np.dtype(np.float32): "float32"}
        features = self._datasets.Features(
            {n: self._datasets.List(self._datasets.Value(kinds[d])) for n, d in DTYPES.items()}
        )
        columns = {name: [item[name] for item in items] for name in DTYPES}
        data = self._datasets.Dataset.from_dict(columns, features=features)
        data.save_to_disk(str(directory / "data"))

    def read(self, directory: Path) -> Iterator[Tensors]:
        """Rows as tensors."""
        data = self._datasets.load_from_disk(str(directory / "data"))
        if self._form == "torch":
            yield from data.with_format("torch")
            return
        for table in data.with_format("arrow").iter(batch_size=32):
            columns = {name: table[name].combine_chunks() for name in DTYPES}
            for row in range(table.num_rows):
                yield tensors({n: c[row].values.to_numpy() for n, c in columns.items()})


class Mds:
    """MosaicML Streaming's MDS shards.

    Args:
        compressed: zstd level 3; shards are decompressed to a local copy first, as `Stream` does.
    """

    def __init__(self, compressed: bool) -> None:
        # The package's own __init__ loads its vision data sets and with them torchvision, which has
        # no CPU build on the ordinary index. Nothing of that is needed for the shards.
        if "streaming" not in sys.modules:
            spec = importlib.util.find_spec("streaming")
            if spec is None:
                raise ModuleNotFoundError("No module named 'streaming'", name="streaming")
            package = types.ModuleType("streaming")
            package.__path__ = list(spec.submodule_search_locations or ())
            sys.modules["streaming"] = package
        self._mds = importlib.import_module("streaming.base.format.mds")
        self._codec = importlib.import_module("streaming.base.compression")
        self._compression = "zstd:3" if compressed else None

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """One array per column."""
        columns = {name: f"ndarray:{dtype}" for name, dtype in DTYPES.items()}
        with self._mds.MDSWriter(
            out=str(directory), columns=columns, compression=self._compression
        ) as out:
            for item in items:
                out.write(dict(item))

    def read(self, directory: Path) -> Iterator[Tensors]:
        """Shard after shard."""
        index = json.loads((directory / "index.json").read_text())
        for shard in index["shards"]:
            if self._compression:
                packed = (directory / shard["zip_data"]["basename"]).read_bytes()
                raw = self._codec.decompress(self._compression, packed)
                (directory / shard["raw_data"]["basename"]).write_bytes(raw)
            reader = self._mds.MDSReader.from_json(str(directory), None, shard)
            for row in range(reader.size):
                yield tensors(reader[row])


class LitData:
    """litdata's chunks, one tensor per array."""

    def __init__(self) -> None:
        logging.getLogger("litdata").setLevel(logging.ERROR)
        self._writer = importlib.import_module("litdata.streaming.writer")
        self._dataset = importlib.import_module("litdata.streaming.dataset")

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """Chunks of 64 MB."""
        writer = self._writer.BinaryWriter(str(directory), chunk_bytes="64MB")
        for index, item in enumerate(items):
            writer.add_item(index, dict(tensors(item)))
        writer.done()
        writer.merge()

    def read(self, directory: Path) -> Iterator[Tensors]:
        """Through its streaming data set, in this process."""
        yield from self._dataset.StreamingDataset(str(directory))


class Npz:
    """NumPy's own archive, one compressed file per sequence."""

    def write(self, directory: Path, items: Sequence[Item]) -> None:
        """One file each."""
        for index, item in enumerate(items):
            arrays: dict[str, Any] = dict(item)
            np.savez_compressed(directory / f"{index:06d}.npz", **arrays)

    def read(self, directory: Path) -> Iterator[Tensors]:
        """In the order of the names."""
        for path in sorted(directory.glob("*.npz")):
            with np.load(io.BytesIO(path.read_bytes())) as archive:
                yield tensors(archive)
