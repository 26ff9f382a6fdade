"""The language model head and the loss in one pass, a chunk of positions at a time.

With a vocabulary of 150 thousand, the logits of one micro-batch are larger than the model. They
are not needed at once: every objective reads log-probabilities at a few ids per position, so for
each chunk of positions

    logits  = head(hidden)                       the only matmul with [chunk, V] output
    logq    = logits - logsumexp(logits)         at the ids the records name, nowhere else
    g       = d loss / d logq                    by autograd, on tensors of the size of the records
    dlogits = scatter(g) - softmax(logits) * sum(g over the position)

and two more matmuls turn dlogits into the gradients of hidden states and head. All of that happens
in the forward pass; the backward pass scales what is there. Memory: one chunk of logits, plus the
gradients. A [T, V] tensor never exists, and nothing of the size of a chunk is made beside the
logits: logits, their exponentials and dlogits follow each other in one buffer, which all chunks
share. (Fresh memory of that size costs a CPU as much in page faults as the exponential does.)

Numerics: the matmuls run in the type of the forward pass (bfloat16 under autocast), everything
between logits and dlogits is float32 (float64 for float64 models), and the gradient of the head is
accumulated in float32 whatever the type of its weight.

Shape letters: T positions of the batch, C positions of a chunk, E entries, D hidden size,
V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.models.model import Head
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.softmax import TORCH, Reduced, SoftmaxKernels
from stages.objectives.tensors import TorchRecords


def head_loss(
    hidden_TD: Tensor,
    head: Head,
    records: TorchRecords,
    objective: ObjectiveFunction,
    *,
    rows_per_chunk: int,
    normaliser: float | Tensor,
    kernels: SoftmaxKernels = TORCH,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the objective over positions, divided by `normaliser`, and statistics.

    Args:
        hidden_TD: Final hidden states, one step before each realised token.
        head: The language model head; gradients reach its weight and bias if they ask for them.
        records: Teacher records of the same T positions.
        objective: What to minimise.
        rows_per_chunk: Positions whose logits exist at the same time; does not change the result.
        normaliser: Valid tokens of the whole optimiser step, over all micro-batches and devices,
            so that summing the losses of micro-batches gives the mean over its tokens.
        kernels: Implementation of the passes over the logits.

    Returns:
        The scalar loss, and detached [T] tensors: `loss` and `logq` (student log-probability of the
        realised token at the objective's temperature) besides the objective's own.

    Raises:
        ValueError: hidden states and records differ in number of positions.
    """
    _check_rows(hidden_TD, records)
    gradients = _Gradients.wanted(hidden_TD, head)
    with torch.no_grad():
        run = _Pass(hidden_TD.detach(), head, records, objective.temperature)
        total, stats = run.loss(objective, rows_per_chunk, gradients, kernels)
    loss = _WithGradients.apply(total, hidden_TD, head.weight, head.bias, gradients)
    return loss / normaliser, stats


@dataclass(frozen=True)
class HeadStatistics:
    """What evaluation asks of a student at stored positions; nothing carries a gradient."""

    logq_E: Tensor
    """Log-probability of each stored id."""
    logq_T: Tensor
    """Log-probability of the realised token."""
    top_T: Tensor
    """int64: the likeliest id."""
    confidence_T: Tensor
    """Probability of the likeliest id."""
    entropy_T: Tensor
    """Entropy in nats."""


@torch.no_grad()
def head_statistics(
    hidden_TD: Tensor,
    head: Head,
    records: TorchRecords,
    *,
    rows_per_chunk: int,
    temperature: float = 1.0,
) -> HeadStatistics:
    """The student's distribution at stored ids, its mode and its entropy; arguments as above."""
    _check_rows(hidden_TD, records)
    parts: list[tuple[Tensor, ...]] = []
    run = _Pass(hidden_TD, head, records, temperature)
    for chunk, _, logits_CV, _ in run.chunks(rows_per_chunk):
        top_C = logits_CV.argmax(dim=-1)
        softmax = _Softmax.of(logits_CV, chunk)
        q_CV = softmax.probabilities()
        best_C = q_CV.gather(1, top_C[:, None]).squeeze(1)
        entropy_C = torch.special.entr(q_CV).sum(dim=-1)
        parts.append((softmax.logq_E, softmax.logq_C, top_C, best_C, entropy_C))
    if not parts:
        none = hidden_TD.new_zeros(0, dtype=torch.float32)
        return HeadStatistics(none, none, none.long(), none, none)
    return HeadStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


# ---------------------------------------------------------------------------------------------
# One pass over the chunks


@dataclass
class _Gradients:
    """Accumulators for the gradients of the summed loss; None where nobody asks for one."""

    hidden_TD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def wanted(cls, hidden_TD: Tensor, head: Head) -> "_Gradients":
        """Zeros for everything autograd would ask a gradient of, the head's in full precision."""

        def zeros(like: Tensor | None, exact: bool) -> Tensor | None:
            if like is None or not (like.requires_grad and torch.is_grad_enabled()):
                return None
            dtype = torch.promote_types(like.dtype, torch.float32) if exact else like.dtype
            return torch.zeros_like(like, dtype=dtype, requires_grad=False)

        return cls(zeros(hidden_TD, False), zeros(head.weight, True), zeros(head.bias, True))

    def __bool__(self) -> bool:
        return any(grad is not None for grad in (self.hidden_TD, self.weight_VD, self.bias_V))


class _Pass:
    """One walk over the chunks of a batch, with everything that is the same for all of them."""

    def __init__(
        self, hidden_TD: Tensor, head: Head, records: TorchRecords, temperature: float
    ) -> None:
        kind = hidden_TD.device.type
        autocast = torch.is_autocast_enabled(kind)
        self.compute = torch.get_autocast_dtype(kind) if autocast else hidden_TD.dtype
        self.accumulate = torch.promote_types(self.compute, torch.float32)
        self.hidden_TD, self.head, self.records = hidden_TD, head, records
        self.temperature = temperature
        self.weight_VD = head.weight.detach().to(self.compute)
        self.bias_V = None if head.bias is None else head.bias.detach().to(self.accumulate)
        self._buffer: Tensor | None = None

    def chunks(
        self, rows_per_chunk: int
    ) -> Iterator[tuple[TorchRecords, Tensor, Tensor, Tensor | None]]:
        """Per chunk: records, hidden states, final logits, and the slope of the softcap."""
        for start in range(0, len(self.records), rows_per_chunk):
            stop = min(start + rows_per_chunk, len(self.records))
            hidden_CD = self.hidden_TD[start:stop].to(self.compute)
            logits_CV, slope_CV = self._finish(self._linear(hidden_CD))
            yield self.records.rows(start, stop), hidden_CD, logits_CV, slope_CV

    def _linear(self, hidden_CD: Tensor) -> Tensor:
        """Products of 16-bit types leave a GPU unrounded; a CPU rounds them to 16 bits."""
        with torch.autocast(hidden_CD.device.type, enabled=False):
            if self.compute == self.accumulate:
                logits_CV = self._room(len(hidden_CD))
                torch.mm(hidden_CD, self.weight_VD.T, out=logits_CV)
            elif hidden_CD.is_cuda:
                logits_CV = torch.mm(hidden_CD, self.weight_VD.T, out_dtype=self.accumulate)
            else:
                logits_CV = self._room(len(hidden_CD))
                logits_CV.copy_(torch.mm(hidden_CD, self.weight_VD.T))
        return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V)

    def _room(self, rows: int) -> Tensor:
        """Memory for the logits of a chunk, the same for all; the first chunk is the longest."""
        if self._buffer is None:
            shape = (rows, self.weight_VD.shape[0])
            self._buffer = self.weight_VD.new_empty(shape, dtype=self.accumulate)
        return self._buffer[:rows]

    def _finish(self, logits_CV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale, softcap and temperature, in that order and in place."""
        slope_CV = None
        if self.head.scale != 1.0:
            logits_CV.mul_(self.head.scale)
        if self.head.softcap is not None:
            logits_CV.div_(self.head.softcap).tanh_()
            slope_CV = 1.0 - logits_CV.square()
            logits_CV.mul_(self.head.softcap)
        if self.temperature != 1.0:
            logits_CV.div_(self.temperature)
        return logits_CV, slope_CV

    def loss(
        self,
        objective: ObjectiveFunction,
        rows_per_chunk: int,
        gradients: _Gradients,
        kernels: SoftmaxKernels,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss and the statistics of all positions; adds into `gradients`."""
        total = self.hidden_TD.new_zeros((), dtype=self.accumulate)
        stats: list[dict[str, Tensor]] = []
        start = 0
        for chunk, hidden_CD, logits_CV, slope_CV in self.chunks(rows_per_chunk):
            softmax = _Softmax.of(logits_CV, chunk, kernels)
            logq_E, logq_C = softmax.logq_E, softmax.logq_C
            loss_C, grad_E, grad_C, own = _differentiate(objective, logq_E, logq_C, chunk)
            total += loss_C.sum()
            stats.append({"loss": loss_C, "logq": logq_C, **own})
            if gradients:
                inner = self.head.scale / self.temperature
                dlogits_CV = softmax.backward(grad_E * inner, grad_C * inner)
                if slope_CV is not None:
                    dlogits_CV.mul_(slope_CV)
                self._into_head(gradients, dlogits_CV, hidden_CD, start)
            start += len(chunk)
        return total, _concatenate(stats)

    def _into_head(
        self, gradients: _Gradients, dlogits_CV: Tensor, hidden_CD: Tensor, start: int
    ) -> None:
        """Add one chunk to the gradients of hidden states and head."""
        if gradients.bias_V is not None:
            gradients.bias_V += dlogits_CV.sum(dim=0)
        dlogits_CV = dlogits_CV.to(self.compute)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            if gradients.hidden_TD is not None:
                gradients.hidden_TD[start : start + len(hidden_CD)] = dlogits_CV @ self.weight_VD
            if gradients.weight_VD is None:
                return
            if self.compute == gradients.weight_VD.dtype:
                gradients.weight_VD.addmm_(dlogits_CV.T, hidden_CD)
            else:
                gradients.weight_VD += dlogits_CV.T @ hidden_CD


@dataclass(frozen=True)
class _Softmax:
    """Log-probabilities at the ids of a chunk, and what their derivatives need of the rest."""

    chunk: TorchRecords
    kernels: SoftmaxKernels
    logits_CV: Tensor
    """As `kernels.reduce` left them."""
    reduced: Reduced
    logq_E: Tensor
    """At the entries."""
    logq_C: Tensor
    """At the realised tokens."""
    at_E: Tensor
    """Places of the entries in the flattened logits."""
    at_C: Tensor
    """Places of the realised tokens."""

    @classmethod
    def of(
        cls, logits_CV: Tensor, chunk: TorchRecords, kernels: SoftmaxKernels = TORCH
    ) -> "_Softmax":
        """Reads the ids, then overwrites `logits_CV`."""
        flat, width = logits_CV.view(-1), logits_CV.shape[1]
        at_E = chunk.row_E * width + chunk.ids_E
        at_C = torch.arange(len(chunk), device=flat.device) * width + chunk.tok_T
        z_E, z_C = flat[at_E], flat[at_C]
        reduced = kernels.reduce(logits_CV)
        logq_E, logq_C = z_E - reduced.log_z_C[chunk.row_E], z_C - reduced.log_z_C
        return cls(chunk, kernels, logits_CV, reduced, logq_E, logq_C, at_E, at_C)

    def probabilities(self) -> Tensor:
        """The whole distribution [C, V]; overwrites the logits."""
        ones_C = torch.ones_like(self.reduced.log_z_C)
        return self.kernels.scale(self.logits_CV, self.reduced, ones_C)

    def backward(self, grad_E: Tensor, grad_C: Tensor) -> Tensor:
        """Derivatives by the logits from those by logq; overwrites the logits.

        Ids are distinct within a position, so each of the two additions touches a cell once and the
        result does not depend on the order a device works in.
        """
        mass_C = self.chunk.sum_entries(grad_E) + grad_C
        dlogits_CV = self.kernels.scale(self.logits_CV, self.reduced, -mass_C)
        flat = dlogits_CV.view(-1)
        flat.index_add_(0, self.at_E, grad_E)
        flat.index_add_(0, self.at_C, grad_C)
        return dlogits_CV


def _differentiate(
    objective: ObjectiveFunction, logq_E: Tensor, logq_C: Tensor, chunk: TorchRecords
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Loss per position, its derivatives by both arguments, and the objective's statistics."""
    with torch.enable_grad():
        leaf_E, leaf_C = logq_E.detach().requires_grad_(), logq_C.detach().requires_grad_()
        terms = objective(leaf_E, leaf_C, chunk)
        grad_E, grad_C = torch.autograd.grad(
            terms.loss_T.sum(), (leaf_E, leaf_C), allow_unused=True, materialize_grads=True
        )
    return terms.loss_T.detach(), grad_E, grad_C, dict(terms.stats)


def _concatenate(stats: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if not stats:
        return {}
    return {name: torch.cat([part[name] for part in stats]) for name in stats[0]}


def _check_rows(hidden_TD: Tensor, records: TorchRecords) -> None:
    if hidden_TD.shape[0] != len(records):
        raise ValueError(
            f"{hidden_TD.shape[0]} hidden states for {len(records)} positions: both must come from "
            "the same batch, in its order"
        )


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients are already known."""

    @staticmethod
    def forward(
        ctx: Any,
        total: Tensor,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        gradients: _Gradients,
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden_TD, weight_VD, bias_V)]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale by the incoming gradient, in place: the head's is as large as the head."""
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("backward through head_loss a second time: call head_loss again")
        ctx.gradients = None
        found = (gradients.hidden_TD, gradients.weight_VD, gradients.bias_V)
        scaled = (
            None if grad is None else grad.mul_(grad_outputs[0]).to(dtype)
            for grad, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return (None, *scaled, None)
