"""Draw docs/figures/estimators.svg: the error of three estimators of the reverse-KL gradient.

    python -m tools.tour_figure

Nothing is sampled but the contexts: for each, the gradient is enumerated over every realised token.
"""

from pathlib import Path

import torch
from torch import Tensor

from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from stages.reporting.charts import curves

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "estimators.svg"
VOCABULARY, CONTEXTS, POSITIONS = 64, 200, 256
FORMS = {"bucketed": "bucket", "residual_only": "residual", "corrected": "corrected (both)"}
STORED = (1, 2, 3, 4, 6, 8, 12, 16)


def distributions(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher log p and pi_ref's log b of random contexts, [N, V] each.

    The student has moved a little away from pi_ref; the teacher is surer than either.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        shape = (CONTEXTS, VOCABULARY)
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    reference = 2.5 * normal()
    student, teacher = reference + 0.2 * normal(), 1.5 * reference + 0.5 * normal()
    return student, teacher.log_softmax(-1), reference.log_softmax(-1)


def gradients(form: str, stored: int, z_NV: Tensor, logp_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """[N, V, V]: in each context and for each realised token, the gradient by the student's logits.

    The record keeps pi_ref's `stored` likeliest ids exactly, as candidates do.
    """
    count, width = z_NV.shape
    ids_NK = logb_NV.topk(stored).indices
    rest_N = 1.0 - logp_NV.gather(1, ids_NK).exp().sum(1)
    positions = count * width  # every token of every context is realised once
    ids_TK = ids_NK.repeat_interleave(width, 0)
    tok_T = torch.arange(width).repeat(count)
    context_T = torch.arange(count).repeat_interleave(width)
    logp_TK = logp_NV[context_T].gather(1, ids_TK)
    records = TorchRecords(
        entry_off=torch.arange(positions + 1) * stored,
        tok_T=tok_T,
        row_E=torch.arange(positions).repeat_interleave(stored),
        ids_E=ids_TK.reshape(-1),
        weight_E=logp_TK.exp().reshape(-1),
        logp_E=logp_TK.reshape(-1),
        exact_E=torch.ones(positions * stored, dtype=torch.bool),
        rest_T=rest_N[context_T],
        lp_T=logp_NV[context_T, tok_T],
        ref_lp_T=logb_NV[context_T, tok_T],
        ent_T=None,
    )
    z_TV = z_NV[context_T].clone().requires_grad_()
    logq_TV = z_TV.log_softmax(-1)
    logq_E = logq_TV.gather(1, ids_TK).reshape(-1)
    logq_T = logq_TV.gather(1, tok_T[:, None])[:, 0]
    loss_T = ReverseKL(form=form)(logq_E, logq_T, records).loss_T  # type: ignore[arg-type]
    return torch.autograd.grad(loss_T.sum(), z_TV)[0].view(count, width, width)


def relative_error(form: str, stored: int, seed: int = 0) -> float:
    """Root mean square error of a mean over `POSITIONS` positions, over the true gradient."""
    z_NV, logp_NV, logb_NV = distributions(seed)
    leaf = z_NV.clone().requires_grad_()
    logq_NV = leaf.log_softmax(-1)
    true_NV = torch.autograd.grad((logq_NV.exp() * (logq_NV - logp_NV)).sum(), leaf)[0]
    each_NVV, b_NV1 = gradients(form, stored, z_NV, logp_NV, logb_NV), logb_NV.exp()[:, :, None]
    mean_NV = (b_NV1 * each_NVV).sum(1)
    bias_N = (mean_NV - true_NV).square().sum(1)
    variance_N = (b_NV1 * (each_NVV - mean_NV[:, None]).square()).sum((1, 2))
    error = (bias_N + variance_N / POSITIONS).mean() / true_NV.square().sum(1).mean()
    return float(error.sqrt())


def main() -> None:
    """Compute the errors and write the figure."""
    values = {
        name: [(float(k), 100.0 * relative_error(form, k)) for k in STORED]
        for form, name in FORMS.items()
    }
    title = f"error of a gradient from {POSITIONS} positions, %, over the ids stored at each"
    FIGURE.parent.mkdir(exist_ok=True)
    svg = curves(title, values)
    FIGURE.write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n")


if __name__ == "__main__":
    main()
