"""What travels between the scoring stage and vLLM's workers: one request out, one answer back.

Both are flat bytes, whatever their length, so that no log-probability ever becomes a Python object
and nothing depends on how vLLM serialises arrays between its processes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.scoring.score import Positions

Array = NDArray[Any]

_SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Request:
    """Response positions 0..T of one sequence, to be recorded."""

    prompt: int
    """Tokens before the response."""
    positions: Positions
    record: str
    """`Record` as JSON: text, so that requests can be compared and parsed once."""
    seed: int

    def to_kwargs(self) -> dict[str, Any]:
        """Plain values, as vLLM passes them on."""
        return {
            "prompt": self.prompt,
            "seq_id": int(self.positions.seq_T[0]),
            "tok": self.positions.tok_T.astype(np.int64).tobytes(),
            "cand": self.positions.cand_TC.astype(np.int64).tobytes(),
            "record": self.record,
            "seed": self.seed & _SEED_MASK,
        }

    @classmethod
    def from_kwargs(cls, value: Mapping[str, Any]) -> "Request":
        """The inverse of `to_kwargs`."""
        tok_T = np.frombuffer(value["tok"], np.int64)
        T = len(tok_T)
        positions = Positions(
            tok_T=tok_T,
            cand_TC=np.frombuffer(value["cand"], np.int64).reshape(T, -1),
            seq_T=np.full(T, value["seq_id"]),
            index_T=np.arange(T),
        )
        return cls(value["prompt"], positions, value["record"], value["seed"])


@dataclass(frozen=True)
class Answer:
    """Columns of the records of positions `first`..T, or what went wrong."""

    first: int
    """Positions before were not computed: vLLM took them from its prefix cache."""
    columns: dict[str, Array]
    error: str = ""

    def to_bytes(self) -> Array:
        """[bytes] uint8: length of the header, header, columns."""
        spec = [(name, value.dtype.str, len(value)) for name, value in self.columns.items()]
        header = json.dumps([self.first, self.error, spec]).encode()
        parts = [len(header).to_bytes(8, "little"), header]
        parts += [value.tobytes() for value in self.columns.values()]
        return np.frombuffer(bytearray(b"".join(parts)), np.uint8)

    @classmethod
    def from_bytes(cls, data: Array) -> "Answer":
        """The inverse of `to_bytes`; columns are views of `data`."""
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        first, error, spec = json.loads(data[8:start].tobytes())
        columns: dict[str, Array] = {}
        for name, dtype, length in spec:
            stop = start + length * np.dtype(dtype).itemsize
            columns[name] = np.frombuffer(data[start:stop].tobytes(), dtype)
            start = stop
        return cls(first, columns, error)
