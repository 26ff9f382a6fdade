"""Teacher records as tensors, and the teacher's distribution as far as a record tells it.

A divergence of the form  constant + sum_v h(p_v, q_v)  with h(0, q) = 0 is a sum over ids that the
teacher gives mass to, and a record holds some of those. `Symbols` are what it knows: one per known
id, one for the rest. Two readings, chosen by what is stored at the position and never by the
outcome of a draw:

    Horvitz-Thompson   log p is stored for ids that were *drawn*. Each counts w / p times, and
                       E[w] = p makes the sum unbiased (Horvitz and Thompson 1952). Ids stored
                       without randomness count once.
    bucket             log p is stored for the head only. Everything else is one symbol, whose mass
                       is known on both sides. Coarsening lowers every f-divergence: a lower bound.

Both are `sum_s mass_s h(p_s, q_s) / p_s`. So objectives hand over h / p, a function of
log p - log q that stays finite where p underflows, and need not know which reading it is.

Shape letters: T positions (response tokens of a batch, concatenated), E entries (stored ids,
concatenated over positions; entry_off[t]:entry_off[t + 1] are those of position t), S = E + T
symbols (the entries, then one rest per position).
"""

from dataclasses import dataclass, fields, replace

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
    outcome_T: Tensor | None = None
    """int8: outcome of the sequence the position belongs to, as `storage.schema.OUTCOME`."""

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
            outcome_T=put(np.repeat(batch.outcome, np.diff(batch.tok_off))),
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
            outcome_T=cut(self.outcome_T),
        )

    def where(self, kept_T: Tensor) -> "TorchRecords":
        """The positions at which the bool `kept_T` is set, with their entries."""
        kept_E = kept_T[self.row_E]
        change: dict[str, Tensor | None] = {}
        for field in fields(self):
            value: Tensor | None = getattr(self, field.name)
            if value is not None and field.name != "entry_off":
                change[field.name] = value[kept_E if field.name.endswith("_E") else kept_T]
        counts_K = self.entry_off.diff()[kept_T.cpu()]
        change["entry_off"] = torch.cat([counts_K.new_zeros(1), counts_K.cumsum(0)])
        change["row_E"] = (kept_T.cumsum(0) - 1)[self.row_E[kept_E]]
        return replace(self, **change)

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

    def likeliest(self) -> Tensor:
        """Whether an entry is the likeliest id of its position's head, the first of several: [E].

        No entry of a position is where nothing is stored exactly.
        """
        ranked_TW = self.ranked(self.logp_E.where(self.exact_E, -torch.inf))[:, :1]
        found_E = torch.zeros_like(self.exact_E)
        found_E[ranked_TW[ranked_TW >= 0]] = True
        return found_E

    def ranked(self, score_E: Tensor) -> Tensor:
        """The entries of each position by falling score: int64 [T, W], -1 behind the last one.

        Entries that score -inf are left out; of equal ones the first comes first. W is the largest
        number of entries that a position is left with.
        """
        by_score_E = score_E.argsort(descending=True, stable=True)
        order_E = by_score_E[self.row_E[by_score_E].argsort(stable=True)]
        counts_T = self.sum_entries((score_E > -torch.inf).long())
        start_T = self.entry_off[:-1].to(order_E.device)
        place_W = torch.arange(int(counts_T.max()) if len(counts_T) else 0, device=order_E.device)
        index_TW = (start_T[:, None] + place_W).clamp_max(max(0, len(order_E) - 1))
        return order_E[index_TW].where(place_W < counts_T[:, None], -1)

    def known_symbols(self, logq_E: Tensor) -> "Symbols":
        """All ids with a stored log p; where none of them was drawn, the rest of the mass too."""
        known_E = ~self.logp_E.isnan()
        drawn_T = self.sum_entries((known_E & ~self.exact_E).to(logq_E.dtype)) > 0
        mass_E = torch.where(self.exact_E, self.logp_E.exp(), self.weight_E)
        return self._symbols(logq_E, known_E, mass_E, torch.where(drawn_T, 0.0, self.rest_T))

    def head_symbols(self, logq_E: Tensor) -> "Symbols":
        """The ids stored without randomness, and the rest of the mass."""
        return self._symbols(logq_E, self.exact_E, self.logp_E.exp(), self.rest_T)

    def _symbols(self, logq_E: Tensor, used_E: Tensor, mass_E: Tensor, rest_T: Tensor) -> "Symbols":
        """The used entries, then one symbol per position for everything outside the head.

        The student's mass there is computed in float64. Below the rounding error of the log-softmax
        it is noise, so it is floored but keeps its gradient: a student without a tail can still
        learn one.
        """
        outside_T = 1.0 - self.sum_entries(torch.where(self.exact_E, logq_E.double().exp(), 0.0))
        floored_T = outside_T.clamp_min(8.0 * torch.finfo(logq_E.dtype).eps)
        logq_T = (outside_T + (floored_T - outside_T).detach()).log().to(logq_E.dtype)
        logp_T = self.rest_T.clamp_min(torch.finfo(logq_E.dtype).tiny).log()
        return Symbols(
            mass_S=torch.cat([torch.where(used_E, mass_E, 0.0), rest_T]),
            logp_S=torch.cat([torch.where(used_E, self.logp_E, 0.0), logp_T]),
            logq_S=torch.cat([logq_E, logq_T]),
            row_S=torch.cat([self.row_E, torch.arange(len(self), device=logq_E.device)]),
            positions=len(self),
        )


@dataclass(frozen=True)
class Symbols:
    """Known symbols of T positions; those without mass are present and count nothing."""

    mass_S: Tensor
    """Teacher mass a symbol stands for; an unbiased estimate of its probability where drawn."""
    logp_S: Tensor
    """Teacher log-probability; finite everywhere."""
    logq_S: Tensor
    """Student log-probability; carries the gradient."""
    row_S: Tensor
    positions: int

    def sum(self, values_S: Tensor) -> Tensor:
        """Sum over the symbols of each position: [S] -> [T]."""
        return values_S.new_zeros(self.positions).index_add(0, self.row_S, values_S)

    def softmax(self, scores_S: Tensor) -> tuple[Tensor, Tensor]:
        """Shares exp(score) / Z within each position [S], and log Z [T]; -inf counts nothing."""
        top_T = scores_S.new_full((self.positions,), -torch.inf)
        top_T = top_T.scatter_reduce(0, self.row_S, scores_S, "amax")
        parts_S = (scores_S - top_T[self.row_S]).exp()
        z_T = self.sum(parts_S)
        return parts_S / z_T[self.row_S], top_T + z_T.log()


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory; views of a file are read-only and are copied."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
