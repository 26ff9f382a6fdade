"""What a model says at every held-out position, kept for the report's token inspector.

Shape letters: N sequences, T positions over all of them, K likeliest ids. Imports no torch.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from storage.files.place import Place
from storage.files.write import create_once
from storage.rows import Offsets, gather, offsets_of

POSITIONS = "positions.npz"
"""In an `evaluate` set: values at the positions of held-out sequences."""
LIKELIEST = 5
"""Ids of the model that are kept of every position."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PositionValues:
    """A model at T positions."""

    logq_T: Floats
    """Log-probability of the realised token."""
    entropy_T: Floats
    ids_TK: NDArray[np.integer]
    """The model's likeliest ids, by descending probability."""
    logq_TK: Floats
    """Their log-probabilities."""
    reverse_kl_T: Floats | None = None
    """KL(model, teacher) with everything outside the head as one symbol: a lower bound."""
    forward_kl_T: Floats | None = None
    """KL(teacher, model), as the record of the position estimates it."""

    def take(self, at_T: NDArray[np.int64]) -> "PositionValues":
        """The positions at `at_T`, in that order."""
        return PositionValues(**{name: values[at_T] for name, values in self.arrays().items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The values there are, by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    @classmethod
    def concat(cls, parts: "Sequence[PositionValues]") -> "PositionValues":
        """All positions, one part after the other; at least one part, all with the same values."""
        names = parts[0].arrays()
        return cls(**{n: np.concatenate([part.arrays()[n] for part in parts]) for n in names})


@dataclass(frozen=True)
class HeldOutValues:
    """A model at the positions of N sequences."""

    seq_id_N: NDArray[np.int64]
    tok_off: Offsets
    """[N+1]"""
    values: PositionValues

    def of(self, seq_id_N: NDArray[np.int64]) -> PositionValues | None:
        """The values of other sequences, in their order; None where one is not here."""
        order = np.argsort(self.seq_id_N)
        place = np.searchsorted(self.seq_id_N[order], seq_id_N)
        if (place >= len(order)).any() or (self.seq_id_N[order][place] != seq_id_N).any():
            return None
        at_T, _ = gather(self.tok_off, order[place])
        return self.values.take(at_T)


class Collector:
    """Collects the values of sequences while they are scored, up to a number of tokens."""

    def __init__(self, tokens: int = 2**16) -> None:
        self._left = tokens
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], PositionValues]] = []

    @property
    def full(self) -> bool:
        """Whether no more are kept."""
        return self._left <= 0

    def add(self, seq_id_N: NDArray[np.int64], tok_off: Offsets, values: PositionValues) -> None:
        """Add the positions of whole sequences."""
        if not self.full:
            self._parts.append((seq_id_N, np.diff(tok_off), values))
            self._left -= int(tok_off[-1])

    def result(self) -> HeldOutValues | None:
        """Everything collected; None if that is nothing."""
        if not self._parts:
            return None
        ids_N = np.concatenate([ids for ids, _, _ in self._parts])
        offsets = offsets_of(np.concatenate([lengths for _, lengths, _ in self._parts]))
        values = PositionValues.concat([values for _, _, values in self._parts])
        return HeldOutValues(ids_N, offsets, values)


@dataclass
class Seen:
    """What passes over held-out data saw beside their figures."""

    positions: Collector = field(default_factory=Collector)
    calibration: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By what was read: bins that are not empty, with `count`, `confidence` and `truth`."""


def write_positions(path: Place, found: HeldOutValues) -> None:
    """Write the file atomically; an existing one is kept.

    Logarithms and divergences are float16, ids uint32.

    Raises:
        RetryError: a write failed.
    """
    arrays: dict[str, NDArray[Any]] = {"seq_id": found.seq_id_N, "tok_off": found.tok_off}
    limit = float(np.finfo(np.float16).max)
    for name, values in found.values.arrays().items():
        floating = values.dtype.kind == "f"
        arrays[name] = (
            np.clip(values, -limit, limit).astype(np.float16)
            if floating
            else values.astype(np.uint32)
        )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    create_once(path, buffer.getvalue())


def read_positions(path: Place) -> HeldOutValues:
    """What `write_positions` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays: Mapping[str, NDArray[Any]] = {name: file[name] for name in file.files}
        named = {name: arrays[name] for name in arrays if name not in ("seq_id", "tok_off")}
        floats = {n: v.astype(np.float32) if v.dtype == np.float16 else v for n, v in named.items()}
        return HeldOutValues(arrays["seq_id"], arrays["tok_off"], PositionValues(**floats))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged ({error}). Delete it and run `evaluate` again to make it again."
        ) from error
