"""Teacher records read at another temperature than they were made at.

A record made at temperature T_r holds log p. At temperature T the teacher is p' = p^s / Z with
s = T_r / T and Z = sum_v p_v^s, so stored log-probabilities become s log p - log Z and everything
downstream is as if the record had been made at T:

    head, realised token   exact, given log Z
    drawn ids              w / p times p': unbiased, given log Z; needs log p of the drawn ids
    top k                  renormalised over the k, as at the recorded temperature
    rest                   1 - the head's new mass; exact up to the rounding of stored log p
    entropy                sum of w / p times -p' log p' over the entries: unbiased, given log Z

log Z is exact where the record keeps it (`lz`). Otherwise it is the logarithm of the same sum over
entries, which makes weights sum to one and everything consistent but biased.

The probability with which the realised token was drawn is that of another policy and stays.
Where log p of drawn ids is absent, weights and entropy at T are unknown: they become NaN, and the
contract keeps objectives away that would read them.

Shape letters as in `tensors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from stages.objectives.objective import Objective, ObjectiveFunction, Terms
from stages.objectives.tensors import TorchRecords


@dataclass(frozen=True)
class Tempered:
    """An objective that reads records made at another temperature."""

    objective: ObjectiveFunction
    recorded: float
    """Temperature T_r of the record."""
    normalised: bool
    """Whether the record keeps log Z for the objective's temperature."""

    @property
    def temperature(self) -> float:
        """The objective's."""
        return self.objective.temperature

    def at(self, progress: float) -> "Tempered":
        """The objective's own, under the same reading."""
        return replace(self, objective=self.objective.at(progress))

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """The objective's own terms, on the records as they are at its temperature."""
        exponent = self.recorded / self.temperature
        return self.objective(logq_E, logq_T, retemper(records, exponent, self.normalised))


def build_objective(
    objective: Objective, record: Mapping[str, object] | None = None
) -> ObjectiveFunction:
    """The function that `objective` is on records; `contract.guarantee` says what it is on which.

    Args:
        objective: The table.
        record: `record` object of the data's manifest: at which temperatures it can be read. None
            where there is no teacher to read.
    """
    recorded = float(cast(float, (record or {}).get("temperature", objective.temperature)))
    if recorded == objective.temperature:
        return objective
    kept = (record or {}).get("loss_temperature")
    return Tempered(objective, recorded, normalised=kept == objective.temperature)


def retemper(records: TorchRecords, exponent: float, normalised: bool) -> TorchRecords:
    """`records` at the temperature T_r / exponent.

    Args:
        records: As stored.
        exponent: Recorded temperature over the wanted one.
        normalised: Take log Z from `records.lz_T`; otherwise estimate it.

    Raises:
        ValueError: log Z is to be taken from records without it.
    """
    if normalised and records.lz_T is None:
        raise ValueError(
            "these records keep no normaliser for a second temperature (`lz`); check the "
            "configuration with `stages.objectives.contract.guarantee` first"
        )
    # w / p: 1 on the head; finite, since what is drawn has mass.
    ratio_E = torch.where(records.exact_E, 1.0, records.weight_E / records.logp_E.exp())
    raw_E = exponent * records.logp_E
    lz_T = records.lz_T if normalised else records.sum_entries(ratio_E * raw_E.exp()).log()
    assert lz_T is not None
    logp_E = raw_E - lz_T[records.row_E]
    mass_E = ratio_E * logp_E.exp()
    head_T = records.sum_entries(torch.where(records.exact_E, mass_E, 0.0).double())
    drawn_T = records.sum_entries((~records.exact_E).to(mass_E.dtype)) > 0
    weight_T = torch.where(drawn_T, 1.0, head_T.to(mass_E.dtype))
    return replace(
        records,
        weight_E=mass_E / weight_T[records.row_E],
        logp_E=logp_E,
        rest_T=(1.0 - head_T).clamp_min(0.0).to(records.rest_T.dtype),
        lp_T=None if records.lp_T is None else exponent * records.lp_T - lz_T,
        ent_T=records.sum_entries(-mass_E * logp_E),
        lz_T=None,
    )
