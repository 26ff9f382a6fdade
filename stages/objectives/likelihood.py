"""Objectives that raise the student's likelihood of given tokens.

Shape letters as in `records`: T positions, E entries.
"""

from dataclasses import dataclass

from torch import Tensor

from stages.objectives.tensors import Constant, Terms, TorchRecords, required


@dataclass(frozen=True)
class CrossEntropy(Constant):
    """-log q of the realised token: supervised fine-tuning; looks at no teacher."""

    temperature: float = 1.0

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_E` is not used."""
        return Terms(-logq_T, {})


@dataclass(frozen=True)
class ForwardKL(Constant):
    """KL(p || q) from unbiased weights: sum_i w_i (-log q_i) - H(p).

    The gradient is linear in w, so E[w] = p makes it unbiased (arXiv 2503.16870, section on random
    sampling knowledge distillation). The teacher's entropy is a constant of the position, stored
    with the record; without it the value would be a cross-entropy. Estimating it from w instead
    would bias the logged value upwards, since E[sum w log w] > sum p log p.
    """

    temperature: float = 1.0

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; a single position may be negative, its expectation is not."""
        ent_T = required(records.ent_T, "ent", "forward_kl")
        cross_T = records.sum_entries(-records.weight_E * logq_E)
        return Terms(cross_T - ent_T, {"cross_entropy": cross_T.detach()})
