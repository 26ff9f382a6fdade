"""The two passes over a chunk of logits: one reduces each row, one leaves its gradient.

An objective is differentiated at a few ids per row between the two, so they cannot be one pass.
`TORCH` runs everywhere and is the default. `triton` (`softmax_triton`) reads the chunk twice and
writes it once, where torch reads it five times and writes it three times. It has been compared with
torch under Triton's interpreter only, and stays an option until it has been measured on a GPU.

Shape letters: C rows (positions) of a chunk, V vocabulary.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from storage.errors import ConfigError

Name = Literal["torch", "triton"]


class SoftmaxKernels(Protocol):
    """An implementation of both passes; each may overwrite the logits."""

    def reduce(self, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        """logsumexp of each row [C], and a tensor [C] that `scale` asks for."""
        ...

    def scale(self, logits_CV: Tensor, carry_C: Tensor, factor_C: Tensor) -> Tensor:
        """Softmax times a factor per row, in place of the logits as `reduce` left them.

        Args:
            logits_CV: What `reduce` was given.
            carry_C: The second tensor that `reduce` returned.
            factor_C: One factor per row.
        """
        ...


class TorchKernels:
    """In-place torch operations: no temporary tensor has the size of the logits."""

    def reduce(self, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        """Leaves exp(logit - largest) in place of the logits; carries the sums of its rows."""
        largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
        sum_C = logits_CV.sub_(largest_C1).exp_().sum(dim=-1)
        return largest_C1.squeeze(1) + sum_C.log(), sum_C

    def scale(self, logits_CV: Tensor, carry_C: Tensor, factor_C: Tensor) -> Tensor:
        """Each row times factor / sum."""
        return logits_CV.mul_((factor_C / carry_C)[:, None])


TORCH: SoftmaxKernels = TorchKernels()


def softmax_kernels(name: Name, device: torch.device) -> SoftmaxKernels:
    """The implementation called `name`.

    Raises:
        ConfigError: Triton is not installed, or cannot compile for the device.
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
