"""Reading a set for training: shuffled, endless, resumable exactly, independent of world size.

    manifest -> order (arithmetic) -> row groups -> sequences of this rank -> `Batch` -> queue

The set of sequences in a step depends on set, seed and batch size only. A rank takes its slice of
it; how many ranks there are and how far ahead batches are made changes nothing. Memory is a few
decoded row groups and the batches in the queue, whatever the size of the set.

Where a set holds several draws per position, epoch e reads draw e mod copies: a second pass sees
fresh samples of the same teacher.

Row groups are permuted, and sequences inside each; sequences of different groups meet in a batch
only as neighbours. Writers therefore shuffle sequences over the set before they cut it into parts.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from storage.batch import Batch
from storage.codec import to_batch
from storage.errors import RESTORE, ConfigError, DamageError, DataError
from storage.files.place import Place
from storage.manifest import Manifest, SetMeta, read_manifest
from storage.order import Order
from storage.prefetch import Prefetch
from storage.rows import Rows
from storage.schema import OUTCOME
from storage.shard import PartFile

_OPEN_FILES = 256
_OPEN_GROUPS = 2048
"""Row groups of the open files: what their footers take up in memory. Opening a part for each row
group that is read, as with a few open files, doubles the time of reading small ones."""
_DECODED_GROUPS = 2
"""One step ends inside a group and the next one starts there."""

Keep = Literal["all", "correct"]


class Stream:
    """Batches of one rank, one per optimiser step, without end.

    Args:
        directory: A committed set of sequences or records.
        seed: Decides the order.
        batch_size: Sequences per step, over all ranks.
        rank, world_size: This process, and how many share a step: of B sequences, those from
            B * rank // world_size to B * (rank + 1) // world_size. More processes than sequences
            leave some with an empty batch.
        split: `train` or `holdout`.
        prefetch: Batches made ahead by a background thread.
        max_length: Responses are cut so that prompt plus response has at most this many tokens.
        keep: `correct` reads only sequences the verifier found right; None and `all` read all.

    Raises:
        DataError: not a committed set of sequences, damaged, or nothing in it to read.
        ConfigError: sizes that do not fit together.
    """

    def __init__(
        self,
        directory: Place,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        prefetch: int = 3,
        max_length: int | None = None,
        keep: Keep | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of {world_size} processes")
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        self.manifest = read_manifest(directory)
        self._groups = _Groups(directory, self.manifest, split, keep or "all")
        self._order = Order(self._groups.sizes, seed)
        if not self._order.total:
            which = "right " if keep == "correct" else ""
            raise DataError(f"{directory}: no {which}sequences in split {split!r}")
        self.meta = self._groups.meta
        """What the parts say about the set."""
        first, end = (batch_size * number // world_size for number in (rank, rank + 1))
        # Not a method: the thread that calls it must not keep this object alive.
        self._make = partial(
            _batch, self._groups, self._order, batch_size, first, end - first, max_length
        )
        self._identity: dict[str, Any] = {
            "manifest": self.manifest.digest,
            "seed": seed,
            "batch_size": batch_size,
            "split": split,
            "keep": keep or "all",
        }
        self._depth = prefetch
        self._step = 0
        self._ahead: Prefetch[Batch] | None = None

    @property
    def sequences(self) -> int:
        """Sequences in one epoch."""
        return self._order.total

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one pass over the data; rarely whole, since steps run over epoch borders."""
        return self._order.total / self._identity["batch_size"]

    @property
    def step(self) -> int:
        """Number of the next batch."""
        return self._step

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._ahead is None:
            self._ahead = Prefetch(self._make, self._step, self._depth)
        try:
            batch = self._ahead.get()
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state: batches handed out so far, and what they were taken from."""
        return {**self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks; costs no reading.

        Raises:
            DataError: the state is of another set or another order.
        """
        for name, mine in self._identity.items():
            if state.get(name) != mine:
                raise DataError(
                    f"cannot resume: the saved state has {name} {state.get(name)}, this run has "
                    f"{mine}. Resume with the settings and the set of the saved run, or start anew."
                )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop reading ahead; the next batch starts it again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._groups.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_split(directory: Place, split: str) -> Iterator[Batch]:
    """All sequences of a split in the order of the file, one row group at a time.

    Raises:
        DataError: as `Stream`; an empty split yields nothing.
    """
    groups = _Groups(directory, read_manifest(directory), split, "all")
    try:
        for group in range(len(groups.sizes)):
            yield to_batch(groups.rows(group), groups.meta)
    finally:
        groups.close()


def _batch(
    groups: "_Groups",
    order: Order,
    batch_size: int,
    first: int,
    share: int,
    max_length: int | None,
    step: int,
) -> Batch:
    """Sequences `first` to `first + share` of a step; called by one thread at a time."""
    if not share:
        return to_batch(groups.rows(0).take(np.zeros(0, np.int64)), groups.meta)
    spans = order.spans(step * batch_size + first, share)
    batches = [
        to_batch(
            Rows.concat([groups.rows(span.group).take(span.rows) for span in same]),
            groups.meta,
            draw,
        )
        for draw, same in groupby(spans, lambda span: span.epoch % groups.meta.copies)
    ]
    batch = Batch.concat(batches)
    return batch if max_length is None else batch.truncate(max_length)


class _Groups:
    """The row groups of one split by running number; a few open files and decoded groups."""

    def __init__(self, directory: Place, manifest: Manifest, split: str, keep: Keep) -> None:
        if manifest.kind not in ("sequences", "records"):
            raise DataError(f"{directory}: holds {manifest.kind}, not sequences or records")
        self._directory = directory
        self._keep = keep
        self._parts = [part for part in manifest.parts if part.split == split]
        self._first = np.cumsum([0, *(len(part.row_groups) for part in self._parts)])
        self._files: OrderedDict[int, PartFile] = OrderedDict()
        self._open_groups = 0
        self._decoded: OrderedDict[int, Rows] = OrderedDict()
        sizes = [group.rows for part in self._parts for group in part.row_groups]
        self.sizes = np.array(sizes, np.int64)
        if keep == "correct":
            right = [
                int(_right(self._read(group, ["outcome"])).sum()) for group in range(len(sizes))
            ]
            self.sizes = np.array(right, np.int64)

    @cached_property
    def meta(self) -> SetMeta:
        """From the footer of the first part; first asked for before any thread starts."""
        return self._file(0).meta

    def rows(self, group: int) -> Rows:
        """The kept sequences of one row group."""
        if group not in self._decoded:
            rows = self._read(group)
            if self._keep == "correct":
                rows = rows.take(np.flatnonzero(_right(rows)))
            self._decoded[group] = rows
            if len(self._decoded) > _DECODED_GROUPS:
                self._decoded.popitem(last=False)
        return self._decoded[group]

    def close(self) -> None:
        """Close all files and forget decoded groups; reading again opens them again."""
        while self._files:
            self._files.popitem()[1].close()
        self._open_groups = 0
        self._decoded.clear()

    def _read(self, group: int, columns: Sequence[str] | None = None) -> Rows:
        number = int(np.searchsorted(self._first, group, side="right")) - 1
        return self._file(number).read(group - int(self._first[number]), columns)

    def _file(self, number: int) -> PartFile:
        if number not in self._files:
            part = self._parts[number]
            path = self._directory / part.file
            file = PartFile(path, part.bytes)
            if file.row_groups != part.row_groups:
                file.close()
                raise DamageError(
                    path,
                    f"{path}: not the file the manifest lists (its row groups differ). {RESTORE}",
                )
            self._files[number] = file
            self._open_groups += len(file.row_groups)
            while len(self._files) > 1 and (
                len(self._files) > _OPEN_FILES or self._open_groups > _OPEN_GROUPS
            ):
                oldest = self._files.popitem(last=False)[1]
                self._open_groups -= len(oldest.row_groups)
                oldest.close()
        self._files.move_to_end(number)
        return self._files[number]


def _right(rows: Rows) -> NDArray[np.bool_]:
    return rows["outcome"] == OUTCOME["right"]
