"""Rows of logits on a GPU, and the inverse of their distribution functions, in plain torch.

Shape letters: R rows, V vocabulary, B blocks of S ids, N draws, K ids of a row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.scoring.drawn import LOG_FLOOR, Array
from stages.scoring.sampler_kernels import BLOCK


@dataclass(frozen=True)
class TorchRows:
    """Rows of logits, and what all kinds of records need of them."""

    z_RV: Tensor
    d_RV: Tensor
    """Tempered logits less the largest one of the row."""
    top_R1: Tensor
    e_RBS: Tensor
    """exp(d) in blocks, the last one filled up with zeros."""
    Z_R: Tensor
    """Sum of e, float64."""

    @classmethod
    def of(cls, z_RV: Tensor, temperature: float) -> "TorchRows":
        """Of [R, V] float32 logits without padding."""
        tempered_RV = z_RV if temperature == 1.0 else z_RV / temperature
        top_R1 = tempered_RV.amax(dim=1, keepdim=True)
        d_RV = tempered_RV - top_R1
        e_RV = torch.nn.functional.pad(d_RV.exp(), (0, -d_RV.shape[1] % BLOCK))
        e_RBS = e_RV.view(len(e_RV), -1, BLOCK)
        return cls(z_RV, d_RV, top_R1, e_RBS, e_RBS.sum(dim=(1, 2), dtype=torch.float64))

    def log_p(self, ids_RK: Tensor) -> Array:
        """[R, K] log p of these ids as it is stored."""
        d_RK = self.d_RV.gather(1, ids_RK).double()
        return to_numpy((d_RK - self.Z_R.log()[:, None]).clamp(min=LOG_FLOOR), np.float32)


def to_numpy(tensor: Tensor, dtype: type) -> Array:
    """A tensor of any device as an array of `dtype`."""
    return tensor.cpu().numpy().astype(dtype)


@dataclass(frozen=True)
class Inverse:
    """The distribution function of every row, ready to be inverted; see `sampler_kernels`."""

    e_RBS: Tensor
    cdf_RB: Tensor
    last_R1: Tensor
    """The last block with any mass."""

    @classmethod
    def of(cls, e_RBS: Tensor) -> "Inverse":
        """Of exp(logits) in blocks, up to a factor for each row."""
        cdf_RB = e_RBS.sum(-1, dtype=torch.float64).cumsum(1)
        last_R1 = (e_RBS.sum(-1) > 0).long().cumsum(1).argmax(1, keepdim=True)
        return cls(e_RBS, cdf_RB, last_R1)

    def __call__(self, threshold_RN: Tensor) -> Tensor:
        """Ids [R, N] with C(i-1) <= threshold < C(i), C the running sum of e."""
        b_RN = torch.searchsorted(self.cdf_RB, threshold_RN, right=True).minimum(self.last_R1)
        base_RN = torch.nn.functional.pad(self.cdf_RB, (1, 0)).gather(1, b_RN)
        e_RNS = self.e_RBS.gather(1, b_RN[:, :, None].expand(-1, -1, BLOCK))
        cdf_RNS = e_RNS.double().cumsum(-1) + base_RN[:, :, None]
        inside_RN = (cdf_RNS <= threshold_RN[:, :, None]).sum(-1)
        last_RN = (e_RNS > 0).long().cumsum(-1).argmax(-1)
        return b_RN * BLOCK + inside_RN.minimum(last_RN)
