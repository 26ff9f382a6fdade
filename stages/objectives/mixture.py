"""Weighted sums of objectives, with weights that may change over training.

Forward then reverse KL is the mixture of both with weights that swap half-way.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.objectives.tensors import ObjectiveFunction, Terms, TorchRecords

Weight = float | Sequence[tuple[float, float]]
"""A number, or points (progress, weight) by rising progress."""


def weight_at(weight: Weight, progress: float) -> float:
    """Value at `progress` of straight lines between points, level before and after them.

    Of two points at the same progress, the second holds from there on.
    """
    if isinstance(weight, int | float):
        return float(weight)
    after = bisect_right([x for x, _ in weight], progress)
    if after == 0:
        return weight[0][1]
    if after == len(weight):
        return weight[-1][1]
    (x0, y0), (x1, y1) = weight[after - 1], weight[after]
    return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


@dataclass(frozen=True)
class Part:
    """One objective of a mixture."""

    name: str
    """Prefix of its statistics."""
    objective: ObjectiveFunction
    weight: Weight = 1.0


@dataclass(frozen=True)
class Mixture:
    """The weighted sum of its parts."""

    temperature: float
    parts: tuple[Part, ...]
    progress: float = 0.0

    def at(self, progress: float) -> "Mixture":
        """With the weights, and the parts, of this share of training."""
        parts = tuple(replace(p, objective=p.objective.at(progress)) for p in self.parts)
        return replace(self, parts=parts, progress=progress)

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; each part's value and statistics are logged, whatever its weight."""
        loss_T = torch.zeros_like(logq_T)
        stats: dict[str, Tensor] = {}
        for part in self.parts:
            terms = part.objective(logq_E, logq_T, records)
            loss_T = loss_T + weight_at(part.weight, self.progress) * terms.loss_T
            stats[part.name] = terms.loss_T.detach()
            stats |= {f"{part.name}_{name}": value for name, value in terms.stats.items()}
        return Terms(loss_T, stats)
