"""`softmax_kernels` in Triton: a chunk of logits is read twice and written once.

No speed is claimed: see `stages.objectives.softmax`. Imports triton, which only CUDA builds of
torch bring.

Shape letters: C rows of a chunk, V vocabulary.
"""

# Annotations of kernel arguments are for Triton's compiler.
# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Logits a program holds at a time."""


class TritonKernels:
    """One program per row reduces it; one per block of a row leaves the gradient."""

    def reduce(self, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        """logsumexp of each row, read once and carried; `logits_CV` is left as it is."""
        rows, width = logits_CV.shape
        log_z_C = logits_CV.new_empty(rows)
        block = min(BLOCK, triton.next_power_of_2(width))
        if rows:
            _reduce[(rows,)](logits_CV, log_z_C, width, logits_CV.stride(0), BLOCK=block)
        return log_z_C, log_z_C

    def scale(self, logits_CV: Tensor, carry_C: Tensor, factor_C: Tensor) -> Tensor:
        """exp(logit - logsumexp) times a factor per row, in place."""
        rows, width = logits_CV.shape
        block = min(BLOCK, triton.next_power_of_2(width))
        if rows:
            _scale[(rows, triton.cdiv(width, block))](
                logits_CV,
                carry_C,
                factor_C.contiguous(),
                width,
                logits_CV.stride(0),
                BLOCK=block,
            )
        return logits_CV


@triton.jit
def _reduce(logits, log_z, width, stride, BLOCK: tl.constexpr):
    """Each lane keeps its own largest value and its sum relative to that; joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    kind = logits.dtype.element_ty
    lane = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), kind)
    total = tl.zeros([BLOCK], kind)
    for start in range(0, width, BLOCK):
        at = start + lane
        z = tl.load(logits + row * stride + at, mask=at < width, other=float("-inf"))
        new = tl.maximum(largest, z)
        # A lane that has seen nothing but -inf: exp(-inf - 0) and not exp(-inf + inf).
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - base) + tl.exp(z - base)
        largest = new
    top = tl.max(largest, 0)
    joined = tl.sum(total * tl.exp(largest - top), 0)
    tl.store(log_z + row, top + tl.log(joined))


@triton.jit
def _scale(logits, log_z, factor, width, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + at
    z = tl.load(place, mask=at < width, other=float("-inf"))
    share = tl.exp(z - tl.load(log_z + row))
    tl.store(place, share * tl.load(factor + row), mask=at < width)
