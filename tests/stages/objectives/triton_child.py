"""Compares the Triton kernels with torch; run with TRITON_INTERPRET=1, on a CPU.

Triton reads that variable when it is imported, hence a process of its own.
"""

import torch

from stages.objectives.head_loss import head_loss
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.softmax import TORCH
from stages.objectives.softmax_triton import BLOCK, TritonKernels
from tests.stages.objectives.test_head_loss import leaves, make_model, make_records

RULED_OUT = -torch.inf


def rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Ordinary, huge, flat, peaked and partly ruled out logits."""
    generator = torch.Generator().manual_seed(width)
    logits_CV = torch.randn((6, width), generator=generator, dtype=dtype)
    logits_CV[1] *= 1000
    logits_CV[2] = 0.25
    logits_CV[3, width // 2] += 200
    logits_CV[4, : width - 1] = RULED_OUT
    logits_CV[5, ::2] = RULED_OUT
    logits_CV[5, width - 1] = 1.0
    return logits_CV


def same_rows(width: int, dtype: torch.dtype) -> None:
    """Reduction and gradient of every row."""
    factor_C = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], dtype=dtype)
    found: list[torch.Tensor] = []
    for kernels in (TORCH, TritonKernels()):
        logits_CV = rows(width, dtype)
        log_z_C, carry_C = kernels.reduce(logits_CV)
        out_CV = kernels.scale(logits_CV, carry_C, factor_C)
        assert out_CV.data_ptr() == logits_CV.data_ptr(), "in place"
        found += [log_z_C, out_CV]
    atol, rtol = (2e-6, 3e-5) if dtype == torch.float32 else (1e-12, 1e-12)
    torch.testing.assert_close(found[2], found[0], atol=atol, rtol=rtol)
    torch.testing.assert_close(found[3], found[1], atol=atol, rtol=rtol)


def same_loss(softcap: float | None) -> None:
    """The whole of head and loss, with all of its gradients."""
    hidden_TD, head = make_model(3, softcap, 0.5)
    found: list[list[torch.Tensor]] = []
    for kernels in (TORCH, TritonKernels()):
        loss, stats = head_loss(
            hidden_TD,
            head,
            make_records(4),
            ReverseKL(),
            rows_per_chunk=4,
            normaliser=7.0,
            kernels=kernels,
        )
        grads = torch.autograd.grad(loss, leaves(hidden_TD, head))
        found.append([loss.detach(), stats["logq"], *grads])
    torch.testing.assert_close(found[1], found[0])


def main() -> None:
    """All comparisons."""
    for dtype in (torch.float32, torch.float64):
        for width in (1, 2, 13, BLOCK, BLOCK + 1, 2 * BLOCK + 77):
            same_rows(width, dtype)
    for softcap in (None, 2.0):
        same_loss(softcap)
    assert TritonKernels().reduce(torch.zeros(0, 5))[0].shape == (0,)


if __name__ == "__main__":
    main()
