"""Teacher records as tensors, and what an objective takes and returns.

Shape letters: T positions (response tokens of a batch, concatenated), E entries (stored ids,
concatenated over positions; entry_off[t]:entry_off[t + 1] are those of position t).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from storage.batch import Batch


@dataclass(frozen=True)
class TorchRecords:
    """Teacher records of T positions on one device; the torch side of `storage.batch.Batch`."""

    entry_off: Tensor
    """int64 [T + 1], kept on the host: chunk borders are read without waiting for the device."""
    tok_T: Tensor
    """int64: the realised token."""
    row_E: Tensor
    """int64: the position an entry belongs to."""
    ids_E: Tensor
    """int64: the stored id; distinct within a position."""
    weight_E: Tensor
    """float: unbiased estimate of the teacher's probability of the id; sums to 1 per position."""
    logp_E: Tensor
    """float: teacher log-probability where it is stored, NaN elsewhere."""
    exact_E: Tensor
    """bool: whether the id was chosen without randomness; its `logp_E` is then stored."""
    rest_T: Tensor
    """float: teacher mass outside the exact ids; 1 where nothing is exact."""
    lp_T: Tensor | None
    """float: teacher log-probability of the realised token; None without a teacher."""
    ref_lp_T: Tensor | None
    """float: log-probability with which the realised token was drawn; None if not drawn."""
    ent_T: Tensor | None
    """float: entropy of the teacher, in nats; None without a teacher."""
    lz_T: Tensor | None = None
    """float: log sum_v p_v^(T_record / T_loss), which normalises the teacher at the second
    temperature of the record; None where it has none."""

    def __len__(self) -> int:
        return self.tok_T.shape[0]

    @classmethod
    def from_batch(cls, batch: Batch, device: torch.device | str = "cpu") -> "TorchRecords":
        """Copy the per-position part of `batch` to `device`."""

        def put(array: np.ndarray) -> Tensor:
            return _tensor(array).to(device, non_blocking=True)

        def put_if(array: np.ndarray | None) -> Tensor | None:
            return None if array is None else put(array)

        counts = np.diff(batch.entry_off)
        return cls(
            entry_off=_tensor(batch.entry_off),
            tok_T=put(batch.tok),
            row_E=put(np.repeat(np.arange(len(counts), dtype=np.int64), counts)),
            ids_E=put(batch.ids),
            weight_E=put(batch.weight),
            logp_E=put(batch.logp),
            exact_E=put(batch.exact),
            rest_T=put(batch.rest),
            lp_T=put_if(batch.lp),
            ref_lp_T=put_if(batch.ref_lp),
            ent_T=put_if(batch.ent),
            lz_T=put_if(batch.lz),
        )

    def rows(self, start: int, stop: int) -> "TorchRecords":
        """Positions start:stop as views; `row_E` and `entry_off` count from `start`."""
        first, last = int(self.entry_off[start]), int(self.entry_off[stop])
        cut_E, cut_T = slice(first, last), slice(start, stop)

        def cut(values_T: Tensor | None) -> Tensor | None:
            return None if values_T is None else values_T[cut_T]

        return replace(
            self,
            entry_off=self.entry_off[start : stop + 1] - first,
            tok_T=self.tok_T[cut_T],
            row_E=self.row_E[cut_E] - start,
            ids_E=self.ids_E[cut_E],
            weight_E=self.weight_E[cut_E],
            logp_E=self.logp_E[cut_E],
            exact_E=self.exact_E[cut_E],
            rest_T=self.rest_T[cut_T],
            lp_T=cut(self.lp_T),
            ref_lp_T=cut(self.ref_lp_T),
            ent_T=cut(self.ent_T),
            lz_T=cut(self.lz_T),
        )

    def sum_entries(self, values_E: Tensor) -> Tensor:
        """Sum of an entry quantity over each position: [E] -> [T], differentiable."""
        return values_E.new_zeros(len(self)).index_add(0, self.row_E, values_E)

    def weight_of(self, ids_T: Tensor) -> Tensor:
        """Unbiased estimate of the teacher's probability of one id per position, [T].

        Unbiased for any choice of id that does not look at the draw: `weight_E` is, id by id, and
        an id that was not drawn estimates 0.
        """
        match_E = self.ids_E == ids_T[self.row_E]
        return self.sum_entries(torch.where(match_E, self.weight_E, 0.0))

    def covers_token(self) -> Tensor:
        """Whether the realised token is among the exact ids of its position: bool [T]."""
        match_E = self.exact_E & (self.ids_E == self.tok_T[self.row_E])
        return self.sum_entries(match_E.to(torch.int32)) > 0


@dataclass(frozen=True)
class Terms:
    """What an objective makes of some positions."""

    loss_T: Tensor
    """Loss per position: its *value* is what is logged, its gradient is what is trained on."""
    stats: Mapping[str, Tensor]
    """Detached [T] tensors, for the log."""


class ObjectiveFunction(Protocol):
    """A pure function of the student's log-probabilities at stored ids."""

    @property
    def temperature(self) -> float:
        """What the student's logits were divided by before the log-softmax."""
        ...

    def at(self, progress: float) -> "ObjectiveFunction":
        """The objective at a share of training between 0 (first step) and 1 (last step)."""
        ...

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms from log q at the entries' ids [E] and at the realised tokens [T]."""
        ...


class Constant:
    """An objective that is the same throughout training."""

    def at(self, progress: float) -> Self:
        """Itself, whatever the progress."""
        return self


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory; views of a file are read-only and are copied."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def required(values_T: Tensor | None, column: str, objective: str) -> Tensor:
    """`values_T`, of which the contract has already made sure that it is there.

    Raises:
        ValueError: it is not; the caller has bypassed `contract.guarantee`.
    """
    if values_T is None:
        raise ValueError(
            f"{objective} needs the column `{column}`, which these records do not have; "
            "check the configuration with `stages.objectives.contract.guarantee` first"
        )
    return values_T
