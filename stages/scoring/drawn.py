"""What samplers of records take and return on a CPU.

Shape letters: R rows (positions), V vocabulary, W >= V width of a row with its padding, M copies
(independent draws), E entries over all rows, H entries of the heads over all rows, S drawn entries
over all rows and copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.codec import round_mantissa
from storage.errors import EngineError

Array = NDArray[Any]

REST_BITS = 11
"""Explicit mantissa bits kept of `rest`: log p of the head, in float16, is no more precise."""

LOG_FLOOR = -1000.0
"""Stored as log p of an id the teacher rules out (logit -inf): large, but finite."""


class BadRow(EngineError):
    """A row of logits that no record can be made of."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


class LogitRows(NamedTuple):
    """What every numba kernel takes first: rows of logits, and room for what every record has."""

    z_RW: Any
    """[R, W] float32 logits, rows contiguous."""
    V: int
    """Only the first V columns of a row are looked at."""
    scale: Any
    """One over the record's temperature, float32."""
    ratio: Any
    """The record's temperature over the loss temperature, float32; 0 where there is none."""
    lse_R: Any
    """Receives log sum exp(scale * z), float64: log p of an id is scale * z - lse. NaN for a row
    that holds NaN, +inf or nothing but -inf; nothing else is written for it."""
    ent_R: Any
    """Receives the entropy, in nats."""
    lz_R: Any
    """Receives log sum p^ratio; never touched where `ratio` is 0."""

    def log_p(self, row_E: Any, ids_E: Any) -> Any:
        """[E] log p of an id in a row, float64; once `lse_R` is known."""
        return self.z_RW[row_E, ids_E].astype(np.float64) * self.scale - self.lse_R[row_E]

    def stored_log_p(self, row_E: Any, ids_E: Any) -> Any:
        """The same as it is stored: float32, and finite."""
        return np.maximum(self.log_p(row_E, ids_E), LOG_FLOOR).astype(np.float32)


@dataclass(frozen=True)
class Records:
    """Records of R positions, entries of all positions one after the other.

    The entries of a position are its head, then what was drawn for copy 0, for copy 1, and so on.
    """

    lp_R: Array
    """Log p of the realised token, float32, nats."""
    ent_R: Array
    """Entropy, float32, nats."""
    lz_R: Array | None = None
    """Log sum p^(record temperature / loss temperature), float32."""
    nu_RM: Array | None = None
    """[R, M] entries of each copy, the head included."""
    nh_R: Array | None = None
    """Entries of the head."""
    rest_R: Array | None = None
    """Teacher mass outside the head, float32."""
    ids_E: Array | None = None
    cnt_E: Array | None = None
    """How often each id was drawn."""
    hlp_H: Array | None = None
    """Log p of the head, float32."""
    tlp_S: Array | None = None
    """Log p of what was drawn, float32."""

    def columns(self) -> dict[str, Array]:
        """The columns present, under their names in storage."""
        named = {
            "lp": self.lp_R,
            "ent": self.ent_R,
            "lz": self.lz_R,
            "nu": None if self.nu_RM is None else self.nu_RM.ravel(),
            "nh": self.nh_R,
            "rest": None if self.rest_R is None else round_mantissa(self.rest_R, REST_BITS),
            "ids": self.ids_E,
            "cnt": self.cnt_E,
            "hlp": self.hlp_H,
            "tlp": self.tlp_S,
        }
        return {name: value for name, value in named.items() if value is not None}


def concat(blocks: Sequence[Records]) -> Records:
    """The positions of all blocks, one block after the other; at least one block."""
    if len(blocks) == 1:
        return blocks[0]
    names = [name for name, value in vars(blocks[0]).items() if value is not None]
    parts: dict[str, Any] = {
        name: np.concatenate([getattr(block, name) for block in blocks]) for name in names
    }
    return Records(**parts)


def used(count_R: Array) -> tuple[Array, Array]:
    """Row and slot of every entry: the first count[r] slots of row r."""
    row_E = np.repeat(np.arange(len(count_R)), count_R)
    first_R = np.cumsum(count_R) - count_R
    return row_E, np.arange(len(row_E)) - first_R[row_E]
