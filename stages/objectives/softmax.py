"""The passes over a chunk of logits: one that reduces each row, one that leaves its gradient.

Between them an objective is differentiated at a few ids per row, so they cannot be one. `TORCH`
runs everywhere and is the default. `triton` (`softmax_triton`) reads the chunk twice and writes it
once where torch reads it five times and writes it three; it has been compared with torch
under Triton's interpreter only, and stays an option until it has been measured on a device.

Shape letters: C rows (positions) of a chunk, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from storage.errors import ConfigError

Name = Literal["torch", "triton"]


@dataclass(frozen=True)
class Reduced:
    """What the second pass needs of the first."""

    log_z_C: Tensor
    """logsumexp of each row."""
    carry_C: Tensor
    """Private to the implementation."""


class SoftmaxKernels(Protocol):
    """An implementation of both passes; each may overwrite the logits."""

    def reduce(self, logits_CV: Tensor) -> Reduced:
        """logsumexp of each row."""
        ...

    def scale(self, logits_CV: Tensor, reduced: Reduced, factor_C: Tensor) -> Tensor:
        """softmax times a factor per row, in the memory of the logits that were reduced."""
        ...


class TorchKernels:
    """In-place torch operations: no temporary of the size of the logits."""

    def reduce(self, logits_CV: Tensor) -> Reduced:
        """Leaves exp(logit - largest) in place of the logits."""
        largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
        sum_C = logits_CV.sub_(largest_C1).exp_().sum(dim=-1)
        return Reduced(largest_C1.squeeze(1) + sum_C.log(), sum_C)

    def scale(self, logits_CV: Tensor, reduced: Reduced, factor_C: Tensor) -> Tensor:
        """`logits_CV` as `reduce` left it."""
        return logits_CV.mul_((factor_C / reduced.carry_C)[:, None])


TORCH: SoftmaxKernels = TorchKernels()


def softmax_kernels(name: Name, device: torch.device) -> SoftmaxKernels:
    """The implementation called `name`.

    Raises:
        ConfigError: Triton is not installed, or the device is none it compiles for.
    """
    if name == "torch":
        return TORCH
    if device.type != "cuda":
        raise ConfigError(
            f'train.run.softmax = "triton" needs a CUDA device, not {device.type}: set it to '
            '"torch", or train on a GPU'
        )
    try:
        from stages.objectives.softmax_triton import TritonKernels
    except ImportError as error:
        raise ConfigError(
            'train.run.softmax = "triton", but Triton is not installed: install the CUDA build of '
            'torch, which brings it, or set it to "torch"'
        ) from error
    return TritonKernels()
