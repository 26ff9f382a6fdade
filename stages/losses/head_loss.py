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
Positions of weight zero are left out before any of this.

Numerics: the matmuls run in the type of the forward pass (bfloat16 under autocast), everything
between logits and dlogits is float32 (float64 for float64 models), and the gradient of the head is
accumulated in float32 whatever the type of its weight.

Shape letters: T positions of the batch, C positions of a chunk, E entries, D hidden size,
V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.models.model import Head
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch


@dataclass(frozen=True)
class RecordLoss:
    """The position loss of an objective that reads stored records."""

    objective: ObjectiveFunction
    rows_per_chunk: int
    """Positions whose logits exist at the same time; does not change the result."""

    @property
    def temperature(self) -> float:
        """The objective's."""
        return self.objective.temperature

    def at(self, progress: float) -> "RecordLoss":
        """With the objective of this share of training."""
        return replace(self, objective=self.objective.at(progress))

    def __call__(
        self,
        hidden_TD: Tensor,
        head: Head,
        part: Batch,
        records: TorchRecords,
        weight_T: Tensor | None,
        normaliser: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`head_loss` of the objective; `part` is not read."""
        return head_loss(
            hidden_TD,
            head,
            records,
            self.objective,
            rows_per_chunk=self.rows_per_chunk,
            normaliser=normaliser,
            weight_T=weight_T,
        )


def head_loss(
    hidden_TD: Tensor,
    head: Head,
    records: TorchRecords,
    objective: ObjectiveFunction,
    *,
    rows_per_chunk: int,
    normaliser: float | Tensor,
    weight_T: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the objective over positions, divided by `normaliser`, and statistics.

    Args:
        hidden_TD: Final hidden states, one step before each realised token.
        head: The language model head; gradients reach its weight and bias if they ask for them.
        records: Teacher records of the same T positions.
        objective: What to minimise.
        rows_per_chunk: Positions whose logits exist at the same time; does not change the result.
        normaliser: Valid tokens of the whole optimiser step, over all micro-batches and devices,
            so that summing the losses of micro-batches gives the mean over its tokens.
        weight_T: Factor on the loss of each position, held constant; None weighs all 1. No logits
            are computed at positions of weight zero.

    Returns:
        The scalar loss, and detached statistics of the K positions whose weight is not zero, [K]
        each: `loss` (before the weight) and `logq` (student log-probability of the realised token
        at the objective's temperature) besides the objective's own.

    Raises:
        ValueError: hidden states and records differ in number of positions.
    """
    _check_rows(hidden_TD, records)
    if weight_T is not None:
        kept_T = weight_T != 0
        hidden_TD, records, weight_T = hidden_TD[kept_T], records.where(kept_T), weight_T[kept_T]
    gradients = _Gradients.wanted(hidden_TD, head)
    with torch.no_grad():
        run = _Pass(hidden_TD.detach(), head, records, objective.temperature, rows_per_chunk)
        total, stats = run.loss(objective, weight_T, gradients)
    loss = _WithGradients.apply(total, hidden_TD, head.weight, head.bias, gradients)
    return loss / normaliser, stats


@dataclass(frozen=True)
class HeadStatistics:
    """The student's distribution at T stored positions; nothing carries a gradient."""

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
    likely_TK: Tensor
    """int64: the K likeliest ids, by descending probability."""
    likely_logq_TK: Tensor
    """Their log-probabilities."""


@torch.no_grad()
def head_statistics(
    hidden_TD: Tensor,
    head: Head,
    records: TorchRecords,
    *,
    rows_per_chunk: int,
    temperature: float = 1.0,
    likeliest: int = 1,
) -> HeadStatistics:
    """The student's distribution at stored ids, its mode and its entropy.

    Arguments as above; `likeliest` is K, how many of its likeliest ids are given.
    """
    _check_rows(hidden_TD, records)
    parts: list[tuple[Tensor, ...]] = []
    for chunk, _, logits_CV in _Pass(
        hidden_TD, head, records, temperature, rows_per_chunk
    ).chunks():
        top_C = logits_CV.argmax(dim=-1)
        likely_CK = logits_CV.topk(min(likeliest, logits_CV.shape[1]), dim=-1).indices
        softmax = _Softmax(logits_CV, chunk)
        q_CV = softmax.probabilities()
        best_C = q_CV.gather(1, top_C[:, None]).squeeze(1)
        entropy_C = torch.special.entr(q_CV).sum(dim=-1)
        logq_CK = q_CV.gather(1, likely_CK).log()
        values = (softmax.logq_E, softmax.logq_C, top_C, best_C, entropy_C, likely_CK, logq_CK)
        parts.append(values)
    if not parts:
        none = hidden_TD.new_zeros(0, dtype=torch.float32)
        none_TK = none.new_zeros(0, likeliest)
        return HeadStatistics(none, none, none.long(), none, none, none_TK.long(), none_TK)
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

    def add(
        self, dlogits_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor, positions: slice
    ) -> None:
        """Take in one chunk; products run in the type of `weight_VD`."""
        if self.bias_V is not None:
            self.bias_V += dlogits_CV.sum(dim=0)
        dlogits_CV = dlogits_CV.to(weight_VD.dtype)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            if self.hidden_TD is not None:
                self.hidden_TD[positions] = dlogits_CV @ weight_VD
            if self.weight_VD is None:
                return
            if weight_VD.dtype == self.weight_VD.dtype:
                self.weight_VD.addmm_(dlogits_CV.T, hidden_CD)
            else:
                self.weight_VD += dlogits_CV.T @ hidden_CD


class _Pass:
    """One walk over the chunks of a batch, with everything that is the same for all of them."""

    def __init__(
        self,
        hidden_TD: Tensor,
        head: Head,
        records: TorchRecords,
        temperature: float,
        rows_per_chunk: int,
    ) -> None:
        kind = hidden_TD.device.type
        autocast = torch.is_autocast_enabled(kind)
        compute = torch.get_autocast_dtype(kind) if autocast else hidden_TD.dtype
        self.head = replace(head, weight=head.weight.detach().to(compute))
        if head.bias is not None:
            bias_V = head.bias.detach().to(self.head.accumulate)
            self.head = replace(self.head, bias=bias_V)
        self.hidden_TD, self.records, self.temperature = hidden_TD, records, temperature
        self.rows_per_chunk = rows_per_chunk

    def chunks(self) -> Iterator[tuple[TorchRecords, Tensor, Tensor]]:
        """Per chunk: records, hidden states and final logits, which share their memory."""
        weight_VD, dtype = self.head.weight, self.head.accumulate
        longest = min(self.rows_per_chunk, len(self.records))
        buffer_CV = weight_VD.new_empty((longest, len(weight_VD)), dtype=dtype)
        for start in range(0, len(self.records), self.rows_per_chunk):
            stop = min(start + self.rows_per_chunk, len(self.records))
            hidden_CD = self.hidden_TD[start:stop].to(weight_VD.dtype)
            with torch.autocast(hidden_CD.device.type, enabled=False):
                logits_CV = self.head.logits(hidden_CD, buffer_CV[: stop - start])
            if self.temperature != 1.0:
                logits_CV.div_(self.temperature)
            yield self.records.rows(start, stop), hidden_CD, logits_CV

    def loss(
        self,
        objective: ObjectiveFunction,
        weight_T: Tensor | None,
        gradients: _Gradients,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss and the statistics of all positions; adds into `gradients`."""
        total = self.hidden_TD.new_zeros((), dtype=self.head.accumulate)
        stats: list[dict[str, Tensor]] = []
        start = 0
        for chunk, hidden_CD, logits_CV in self.chunks():
            positions = slice(start, start + len(chunk))
            start += len(chunk)
            slope_CV = self._slope(logits_CV) if gradients else None
            softmax = _Softmax(logits_CV, chunk)
            with torch.enable_grad():
                leaf_E = softmax.logq_E.detach().requires_grad_()
                leaf_C = softmax.logq_C.detach().requires_grad_()
                terms = objective(leaf_E, leaf_C, chunk)
                loss_C = terms.loss_T
                if weight_T is not None:
                    loss_C = loss_C * weight_T[positions]
                grad_E, grad_C = torch.autograd.grad(
                    loss_C.sum(), (leaf_E, leaf_C), allow_unused=True, materialize_grads=True
                )
            total += loss_C.detach().sum()
            stats.append({"loss": terms.loss_T.detach(), "logq": softmax.logq_C, **terms.stats})
            if not gradients:
                continue
            inner = self.head.scale / self.temperature
            dlogits_CV = softmax.backward(grad_E * inner, grad_C * inner)
            if slope_CV is not None:
                dlogits_CV.mul_(slope_CV)
            gradients.add(dlogits_CV, hidden_CD, self.head.weight, positions)
        if not stats:
            none = total.new_zeros(0)
            return total, {"loss": none, "logq": none}
        return total, {name: torch.cat([part[name] for part in stats]) for name in stats[0]}

    def _slope(self, logits_CV: Tensor) -> Tensor | None:
        """Derivative of the softcap at finished logits: 1 - tanh^2; None without a softcap."""
        if self.head.softcap is None:
            return None
        return 1.0 - (logits_CV * (self.temperature / self.head.softcap)).square_()


class _Softmax:
    """Log-probabilities at the ids of a chunk, and what their derivatives need of the rest.

    In-place throughout: `logits_CV` holds the logits, then their exponentials, then a gradient.
    """

    def __init__(self, logits_CV: Tensor, chunk: TorchRecords) -> None:
        self._chunk = chunk
        flat, width = logits_CV.view(-1), logits_CV.shape[1]
        self._at_E = chunk.row_E * width + chunk.ids_E
        self._at_C = torch.arange(len(chunk), device=flat.device) * width + chunk.tok_T
        z_E, z_C = flat[self._at_E], flat[self._at_C]
        largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
        self._exp_CV = logits_CV.sub_(largest_C1).exp_()
        self._sum_C = self._exp_CV.sum(dim=-1)
        log_z_C = largest_C1.squeeze(1) + self._sum_C.log()
        self.logq_E, self.logq_C = z_E - log_z_C[chunk.row_E], z_C - log_z_C

    def probabilities(self) -> Tensor:
        """The whole distribution [C, V], in place of the exponentials."""
        return self._exp_CV.mul_((1.0 / self._sum_C)[:, None])

    def backward(self, grad_E: Tensor, grad_C: Tensor) -> Tensor:
        """Derivatives by the logits from those by logq, in place of the exponentials.

        Ids are distinct within a position, so each of the two additions touches a cell once and the
        result does not depend on the order a device works in.
        """
        mass_C = self._chunk.sum_entries(grad_E) + grad_C
        dlogits_CV = self._exp_CV.mul_((-mass_C / self._sum_C)[:, None])
        flat = dlogits_CV.view(-1)
        flat.index_add_(0, self._at_E, grad_E)
        flat.index_add_(0, self._at_C, grad_C)
        return dlogits_CV


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
