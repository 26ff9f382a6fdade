"""`Rows`: sequences as flat columns with offsets, the form in which stages hand data to storage.

Shape letters: N sequences, P prompt tokens, T positions, C draws per position, E entries, all over
the whole table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from storage.schema import COLUMNS, LEVELS, Array, Level

Offsets = NDArray[np.int64]

_LONG = 32
"""Mean length from which copying segment by segment beats an index for each value."""

_LENGTH_OF: dict[Level, str] = {
    "prompt": "prompt",
    "position": "tok",
    "candidate": "cand",
    "draw": "nu",
    "entry": "ids",
    "head": "hlp",
    "tail": "tlp",
}
"""The column that gives a level its lengths; the first of its level in the file."""


@dataclass(frozen=True)
class Rows:
    """A table of N sequences.

    Make one with `from_columns` or `from_sequences`: they check types and lengths. Arrays may be
    read-only views of a file.
    """

    columns: dict[str, Array]
    """Flat values by column name, in the order of the file."""
    offsets: dict[str, Offsets]
    """By level, [N+1]: values of sequence i are `offsets[i]:offsets[i+1]`. `prompt` and `position`
    are always there, the other levels where the table has such columns; only a table read with a
    selection of columns has no more than the levels it needs."""

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], offsets: Mapping[str, Any]) -> "Rows":
        """Rows from flat arrays.

        Args:
            columns: By name, as in `schema.COLUMNS`; values are converted to the column's type.
            offsets: `prompt` and `position`, each [N+1]. Offsets of the other levels follow from
                `nu`, `nh`, `nc` or the number of candidates, and that of draws, and are derived
                where not given.

        Raises:
            DataError: an unknown column, values its type cannot hold, or lengths that disagree.
        """
        unknown = [name for name in columns if name not in COLUMNS]
        if unknown:
            raise DataError(
                f"unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)} "
                "(storage/FORMAT.md)"
            )
        typed = {name: _typed(name, columns[name]) for name in COLUMNS if name in columns}
        given = {level: np.asarray(value, np.int64) for level, value in offsets.items()}
        rows = cls(typed, _all_offsets(typed, given))
        for name, values in typed.items():
            level = COLUMNS[name].level
            expected = len(rows) if level == "row" else int(rows.offsets[level][-1])
            if len(values) != expected:
                raise DataError(
                    f"column {name!r}: {len(values)} values, but {expected} at level {level!r}"
                )
        return rows

    @classmethod
    def from_sequences(cls, sequences: Iterable[Mapping[str, Any]]) -> "Rows":
        """Rows from one mapping per sequence: scalars for row columns, flat lists for the others.

        Raises:
            DataError: as `from_columns`, or sequences that do not have the same columns.
        """
        items = list(sequences)
        names = list(items[0]) if items else ["seq_id", "prompt", "tok"]
        for number, item in enumerate(items):
            if set(item) != set(names):
                odd = sorted(set(item) ^ set(names))
                raise DataError(
                    f"sequence {number} differs from sequence 0 in columns {', '.join(odd)}; "
                    "all sequences of a table have the same columns"
                )
        columns: dict[str, Any] = {}
        offsets: dict[str, Offsets] = {"prompt": _zeros(1), "position": _zeros(1)}
        order = list(COLUMNS)
        for name in sorted(names, key=lambda name: order.index(name) if name in order else -1):
            level = COLUMNS[name].level if name in COLUMNS else "row"
            if level == "row":
                columns[name] = [item[name] for item in items]
                continue
            lists = [_typed(name, np.asarray(item[name]).reshape(-1)) for item in items]
            columns[name] = np.concatenate(lists) if lists else np.zeros(0)
            lengths = np.array([len(values) for values in lists], np.int64)
            if level in _LENGTH_OF and name == _LENGTH_OF[level]:
                offsets[level] = offsets_of(lengths)
            elif np.any(lengths != np.diff(offsets[level])):
                number = int(np.argmax(lengths != np.diff(offsets[level])))
                raise DataError(
                    f"sequence {number}, column {name!r}: {lengths[number]} values, but "
                    f"{_LENGTH_OF[level]!r} has {np.diff(offsets[level])[number]}"
                )
        return cls.from_columns(columns, offsets)

    @classmethod
    def concat(cls, tables: Sequence["Rows"]) -> "Rows":
        """The sequences of all tables, one table after the other.

        Raises:
            DataError: no table, or tables of different columns.
        """
        if not tables:
            raise DataError("cannot concatenate an empty list of tables")
        if len(tables) == 1:
            return tables[0]
        first = tables[0]
        for table in tables[1:]:
            if table.columns.keys() != first.columns.keys():
                odd = sorted(table.columns.keys() ^ first.columns.keys())
                raise DataError(f"cannot concatenate: column {odd[0]!r} is not in every table")
        columns = {
            name: np.concatenate([table.columns[name] for table in tables])
            for name in first.columns
        }
        offsets = {
            level: offsets_of(np.concatenate([np.diff(table.offsets[level]) for table in tables]))
            for level in first.offsets
        }
        return cls(columns, offsets)

    def __len__(self) -> int:
        for value in self.offsets.values():
            return len(value) - 1
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    @property
    def tokens(self) -> int:
        """Number of positions T."""
        return int(self.offsets["position"][-1])

    def lengths(self, level: Level) -> Offsets:
        """Values per sequence at a level, [N]."""
        return np.diff(self.offsets[level])

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> "Rows":
        """The sequences at `indices`, in that order; always a copy."""
        wanted = np.asarray(indices, np.int64)
        lengths = {level: np.diff(value)[wanted] for level, value in self.offsets.items()}
        columns: dict[str, Array] = {}
        for name, values in self.columns.items():
            level = COLUMNS[name].level
            if level == "row":
                columns[name] = values[wanted]
            else:
                starts = self.offsets[level][wanted]
                columns[name] = join_segments(values, starts, lengths[level])
        return Rows(columns, {level: offsets_of(value) for level, value in lengths.items()})

    def slice(self, start: int, stop: int) -> "Rows":
        """Sequences `start` to `stop`, as views."""
        offsets = {level: value[start : stop + 1] for level, value in self.offsets.items()}
        columns: dict[str, Array] = {}
        for name, values in self.columns.items():
            level = COLUMNS[name].level
            low, high = (start, stop) if level == "row" else (offsets[level][0], offsets[level][-1])
            columns[name] = values[low:high]
        return Rows(columns, {level: value - value[0] for level, value in offsets.items()})

    def only(self, names: Sequence[str]) -> "Rows":
        """The table without its other columns, and without the levels they alone have."""
        columns = {name: values for name, values in self.columns.items() if name in names}
        levels = {COLUMNS[name].level for name in columns}
        return Rows(columns, {level: off for level, off in self.offsets.items() if level in levels})

    def sequence(self, index: int) -> dict[str, Any]:
        """One sequence as a dictionary of scalars and arrays; the inverse of `from_sequences`."""
        one = self.take([index])
        return {
            name: values[0].item() if COLUMNS[name].level == "row" else values
            for name, values in one.columns.items()
        }


def offsets_of(lengths: Sequence[int] | NDArray[np.integer[Any]]) -> Offsets:
    """[N+1] offsets from [N] lengths."""
    offsets = _zeros(len(lengths) + 1)
    np.cumsum(np.asarray(lengths, np.int64), out=offsets[1:])
    return offsets


def gather(offsets: Offsets, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Offsets]:
    """Flat positions of the segments at `indices`, and the offsets of the gathered result."""
    lengths = np.diff(offsets)[indices]
    gathered = offsets_of(lengths)
    shift = np.repeat(offsets[:-1][indices] - gathered[:-1], lengths)
    return np.arange(gathered[-1], dtype=np.int64) + shift, gathered


def join_segments(values: Array, start_N: NDArray[np.int64], length_N: NDArray[np.int64]) -> Array:
    """The values of N segments, one segment after the other; always a copy."""
    count = len(start_N)
    total = int(length_N.sum())
    if count and total >= _LONG * count:
        stops = (start_N + length_N).tolist()
        return np.concatenate([values[a:b] for a, b in zip(start_N.tolist(), stops, strict=True)])
    shift = np.repeat(start_N - (np.cumsum(length_N) - length_N), length_N)
    return values[np.arange(total, dtype=np.int64) + shift]


def _zeros(count: int) -> Offsets:
    return np.zeros(count, np.int64)


def _typed(name: str, values: Any) -> Array:
    """`values` as a flat array of the column's type; refuses integers the type would wrap."""
    dtype = COLUMNS[name].dtype
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"column {name!r}: expected a flat array, got shape {array.shape}")
    if array.dtype == dtype:
        return array
    if not array.size:
        return np.zeros(0, dtype)
    if dtype.kind in "iu":
        if array.dtype.kind not in "iub":
            raise DataError(f"column {name!r}: expected integers, got {array.dtype}")
        limits, low, high = np.iinfo(dtype), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            odd = low if low < limits.min else high
            raise DataError(f"column {name!r}: {odd} does not fit into {dtype}")
    with np.errstate(over="ignore"):  # `check_rows` names infinities when the part is written
        return array.astype(dtype)


def _all_offsets(columns: Mapping[str, Array], given: Mapping[str, Offsets]) -> dict[str, Offsets]:
    """Offsets of every level the columns use, in the order of `LEVELS`."""
    for level in ("prompt", "position"):
        if level not in given:
            raise DataError(f"offsets of level {level!r} are missing")
    position = given["position"]
    total = int(position[-1])
    used = {COLUMNS[name].level for name in columns}
    offsets: dict[str, Offsets] = {}
    for level in LEVELS:
        if level in given:
            offsets[level] = given[level]
        elif level == "draw" and level in used:
            offsets[level] = position * (len(columns["nu"]) // total if total else 0)
        elif level in used:
            offsets[level] = offsets_of(values_per_position(level, columns, total))[position]
    for level, value in offsets.items():
        if len(value) != len(position) or value[0] != 0 or np.any(np.diff(value) < 0):
            raise DataError(
                f"offsets of level {level!r} must have {len(position)} entries, start at 0 and "
                "never fall"
            )
    return offsets


def values_per_position(level: Level, columns: Mapping[str, Array], total: int) -> Offsets:
    """How many values each of `total` positions has at a level below `position`: [T].

    Raises:
        DataError: `nu`, `nh` or `nc` is missing or of a length that does not fit.
    """
    if level == "candidate":
        return _candidates_per_position(columns, total)
    needed = "nh" if level == "head" else "nu"
    if needed not in columns:
        raise DataError(f"column {needed!r} is missing: it says how many {level} values each has")
    nu, nh = columns.get("nu", _zeros(total)), columns.get("nh", _zeros(total))
    copies = len(nu) // total if total else 1
    for name, values, expected in (("nu", nu, total * max(copies, 1)), ("nh", nh, total)):
        if len(values) != expected:
            raise DataError(f"column {name!r}: {len(values)} values for {total} positions")
    head_T = nh.astype(np.int64)
    if level == "head":
        return head_T
    drawn_T = nu.reshape(total, copies).sum(axis=1, dtype=np.int64) - copies * head_T
    return drawn_T if level == "tail" else head_T + drawn_T


def _candidates_per_position(columns: Mapping[str, Array], total: int) -> Offsets:
    kept = len(columns["cand"])
    if "nc" not in columns:
        return np.full(total, kept // total if total else 0, np.int64)
    nc_T = columns["nc"].astype(np.int64)
    if len(nc_T) != total or int(nc_T.sum()) != kept:
        raise DataError(
            f"column 'nc': {len(nc_T)} values for {total} positions, which add up to "
            f"{int(nc_T.sum())} candidates where 'cand' has {kept}"
        )
    return nc_T


def find_row(offsets: Offsets, flat: int) -> int:
    """Index of the sequence that holds flat value number `flat`."""
    return int(np.searchsorted(offsets, flat, side="right")) - 1
