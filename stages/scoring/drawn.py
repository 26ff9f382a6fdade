"""What a sampler returns, and what the CPU and the GPU do alike.

Shape letters: R rows (positions), M copies (independent draws), C candidates, E entries over all
rows, H entries of the heads over all rows, S drawn entries over all rows and copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.record_kinds import Record
from storage.codec import round_mantissa
from storage.errors import EngineError

Array = NDArray[Any]

REST_BITS = 11
"""Explicit mantissa bits kept of `rest`: log p of the head, in float16, is no more precise."""


class BadRow(EngineError):
    """A row of logits that no record can be made of."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


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


def power_ratio(record: Record) -> float:
    """The record's temperature over the loss temperature; 0 where there is none."""
    return record.temperature / record.loss_temperature if record.loss_temperature else 0.0


def check_rows(lse_R: Array, lp_R: Array) -> None:
    """Refuse rows no record can be made of.

    Args:
        lse_R: Log of the normaliser, not finite where the row held NaN, +inf or nothing but -inf.
        lp_R: Log p of the realised token.

    Raises:
        BadRow: for the first such row.
    """
    bad = np.flatnonzero(~np.isfinite(lse_R) | (lp_R == -np.inf))
    if not len(bad):
        return
    if not np.isfinite(lse_R[bad[0]]):
        raise BadRow(int(bad[0]), "the logits hold NaN or +inf, or nothing but -inf")
    raise BadRow(int(bad[0]), "the realised token has logit -inf, that is probability zero")
