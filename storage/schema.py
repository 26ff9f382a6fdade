"""Columns of the open layout: names, element types, and levels.

A part is a table with one row per sequence. The *level* of a column is what it has one value per:

    row        one value per sequence
    prompt     one per prompt token
    position   one per response token
    candidate  k per response token, k constant in the set, or `nc` of them at each position
    draw       one per response token and draw; `copies` draws per position, constant in the set
    entry      one per stored id: at each position `nh` of the head, then `nu - nh` of each draw
    head       one per id of the head, `nh` of them at each position
    tail       one per id outside the head, `nu - nh` of each draw at each position

Columns above row level are flat lists: the entries of all positions of a sequence follow each other
and `nu` and `nh` say where one position ends. One level of lists reads twice as fast as two.
`FORMAT.md` is the full specification; columns are named and described in this module only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from storage.kinds import KINDS

FORMAT_VERSION: Final = 1
ROW_GROUP: Final = 32
"""Sequences per row group: the unit of random access, about 1 MB on disk."""
MANTISSA_BITS: Final = 15
"""Mantissa bits kept of a stored float32; relative error at most 2**-16."""

FINISH: Final[dict[str, int]] = {"stop": 0, "length": 1}
"""Codes of the `finish` column: the end token was drawn or a stop string completed, or the length
limit was hit."""
OUTCOME: Final[dict[str, int]] = {"unknown": -1, "wrong": 0, "right": 1, "unparsed": 2, "cut": 3}
"""Codes of the `outcome` column: what the verifier said (docs/verifiers.md). Sets made before there
were `unparsed` and `cut` have `wrong` in their place: all three are judged, and not right."""
NOT_RIGHT: Final = tuple(OUTCOME[name] for name in ("wrong", "unparsed", "cut"))
"""Codes of responses that were judged and are not right."""

Level = Literal["row", "prompt", "position", "candidate", "draw", "entry", "head", "tail"]
SetKind = Literal["sequences", "records"]
Array = NDArray[Any]

LEVELS: Final[tuple[Level, ...]] = (
    "prompt",
    "position",
    "candidate",
    "draw",
    "entry",
    "head",
    "tail",
)
"""Levels of list columns, in the order of the file."""


@dataclass(frozen=True)
class Column:
    """One column: its name, its level and the type of its elements."""

    name: str
    level: Level
    dtype: np.dtype[Any]
    vocabulary: bool = False
    """Values are token ids and must be below the vocabulary size."""

    @property
    def split_bytes(self) -> bool:
        """Whether BYTE_STREAM_SPLIT is used; DuckDB cannot read it on float16."""
        return self.level != "row" and self.dtype != np.float16


def _column(name: str, level: Level, dtype: str, vocabulary: bool = False) -> Column:
    return Column(name, level, np.dtype(dtype), vocabulary)


COLUMNS: Final[dict[str, Column]] = {
    column.name: column
    for column in (
        _column("seq_id", "row", "int64"),
        _column("prompt_id", "row", "int64"),
        _column("sample", "row", "int32"),
        _column("finish", "row", "uint8"),
        _column("outcome", "row", "int8"),
        _column("prompt", "prompt", "uint32", vocabulary=True),
        _column("tok", "position", "uint32", vocabulary=True),
        _column("ref_lp", "position", "float32"),
        _column("nc", "position", "uint8"),
        _column("cand", "candidate", "uint32", vocabulary=True),
        _column("lp", "position", "float32"),
        _column("ent", "position", "float16"),
        _column("lz", "position", "float32"),
        _column("nu", "draw", "uint8"),
        _column("nh", "position", "uint8"),
        _column("rest", "position", "float32"),
        _column("ids", "entry", "uint32", vocabulary=True),
        _column("cnt", "entry", "uint8"),
        _column("hlp", "head", "float16"),
        _column("tlp", "tail", "float16"),
    )
}
"""Every column there is, in the order of the file."""

_BASE: Final[tuple[str, ...]] = (
    "seq_id",
    "prompt_id",
    "sample",
    "finish",
    "outcome",
    "prompt",
    "tok",
)

COUNT_STREAMS: Final = ("cs0", "cs1", "cs2")
BUCKET_STREAMS: Final = ("bk0", "bk1", "bk2", "bk3", "bk4", "bk5", "bk6")
EXTRA_BITS: Final = "raw"
PACKED_HALVES: Final = {"hlp": ("hlp_lo", "hlp_hi"), "tlp": ("tlp_lo", "tlp_hi")}
"""Columns of bytes of the packed layout; low and high byte of a float16 by name of the column."""
BLOBS: Final = (
    *COUNT_STREAMS,
    *BUCKET_STREAMS,
    EXTRA_BITS,
    *PACKED_HALVES["hlp"],
    *PACKED_HALVES["tlp"],
)
"""Every column of bytes there is, in the order of the file."""
Blobs = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Columns of bytes by name: those of all sequences, and [N+1] where each sequence starts."""


def replaced_columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the open layout that the packed one replaces."""
    gone = ("nu", "ids", "cnt") if KINDS[record["kind"]].counts else ("ids",)
    return (*gone, *PACKED_HALVES)


def blob_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of bytes of the packed layout, in the order of the file, behind all others."""
    present = column_names("records", record, 0, reference=False)
    halves = [half for name, pair in PACKED_HALVES.items() if name in present for half in pair]
    counts = COUNT_STREAMS if KINDS[record["kind"]].counts else ()
    return (*counts, *BUCKET_STREAMS, EXTRA_BITS, *halves)


def column_names(
    kind: SetKind,
    record: Mapping[str, Any] | None,
    candidates: int,
    reference: bool,
    varying: bool = False,
) -> tuple[str, ...]:
    """Names of the columns of a part, in the order of the file.

    Args:
        kind: `sequences` (no teacher) or `records`.
        record: Record parameters of records, None for sequences; `kind` is one of `KINDS`.
        candidates: Most candidate ids per position; stored in sequence sets only.
        reference: Whether `ref_lp` is present; a text corpus was not sampled from anything.
        varying: Whether `nc` is present: positions differ in their number of candidates.
    """
    present: set[str] = set(_BASE)
    if reference:
        present.add("ref_lp")
    if record is None:
        if kind == "sequences" and candidates:
            present.update(("nc", "cand") if varying else ("cand",))
    else:
        record_kind = KINDS[record["kind"]]
        present.update(("lp", "ent"), record_kind.columns)
        if record_kind.drawn and record.get("logp", False):
            present.add("tlp")
        if record.get("loss_temperature") is not None:
            present.add("lz")
    return tuple(name for name in COLUMNS if name in present)
