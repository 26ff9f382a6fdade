"""Bias, noise and drift of the sampled-token objective's gradient while a student trains on it.

At some steps of a student four expected gradients are taken at its weights, the token summed out in
each, so that only contexts are sampled:

    published   the objective on rollouts of pi_ref: what training follows on average
    same        the objective on rollouts of the student itself: live training
    contexts    reverse KL on rollouts of pi_ref
    live        reverse KL on rollouts of the student: what all of them are meant to follow

From `published` to `contexts` only the weight of a token changes, from `contexts` to `live` only
who wrote the contexts. Beside them stands the gradient that a step really takes, of drawn tokens:
its mean is `published`, and its noise is compared with that.

The bound is that of arXiv 2604.13010, theorem 3.5, in its own units (sums over the tokens of a
response):

    || same - published || <= G sigma_A sqrt(chi2)

with G a bound on || grad log q(a) ||, sigma_A^2 = E[(sum |A|)^2] on rollouts of pi_ref, and chi2
of whole responses. G is taken to be the largest norm among some hundred tokens, and chi2 its lower
bound exp(KL(student || pi_ref)) - 1 (Jensen), so the true bound lies above the figure shown.

Shape letters: N chunks, P parameters, T positions, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import huber_loss
from transformers import PreTrainedModel

from benchmarks.enumerated import log_probs, published, reverse_kl
from benchmarks.gradients import Estimate, compare, distance, noise, norm
from benchmarks.lightning_lab import Lab, Spec, cut
from benchmarks.students import train
from stages.models.model import lm_head, response_hidden
from stages.training.drift import ratio_sums, summary
from storage.batch import Batch

RARE = 0.01
"""A token below this probability of the student is one it hardly draws any more."""

Figure = float | Estimate


@dataclass(frozen=True)
class Chunk:
    """Responses of pi_ref, with both distributions that do not change while a student trains."""

    batch: Batch
    logb_TV: Tensor
    logp_TV: Tensor


@dataclass
class Held:
    """Rollouts that gradients are taken on: `chunks` of `per_chunk` responses."""

    lab: Lab
    chunks: int = 16
    per_chunk: int = 64

    def __post_init__(self) -> None:
        batches = self._rollouts(self.lab.reference, 5000 + self.lab.seed)
        self.offline = [
            Chunk(one, log_probs(self.lab.reference, one), log_probs(self.lab.scoring, one))
            for one in batches
        ]

    def live(self, student: PreTrainedModel, step: int) -> list[Batch]:
        """Fresh ones of the student."""
        return list(self._rollouts(student, 6000 + self.lab.seed + step))

    def _rollouts(self, model: PreTrainedModel, seed: int) -> Iterator[Batch]:
        return islice(cut(self.lab.fresh(model, seed, self.lab.drawn), self.per_chunk), self.chunks)


def follow(held: Held, spec: Spec, marks: Sequence[int]) -> Iterator[tuple[int, dict[str, Figure]]]:
    """Train a student offline; figures at the steps `marks`, and `accuracy` at the last of them."""
    lab = held.lab
    student = lab.start()
    steps = train(student, lab.batches(spec, student), lab.loss(spec), lab.settings(spec))
    for step in steps:
        if step not in marks:
            continue
        figures = measure(held, student, step, spec.clip)
        if step == max(marks):
            figures["accuracy"] = lab.exam.accuracy(student)
        yield step, figures
        if step == max(marks):
            return


def measure(held: Held, student: PreTrainedModel, step: int, clip: float) -> dict[str, Figure]:
    """All figures at the student's weights."""
    student.requires_grad_(True)
    fresh = held.live(student, step)
    ours = [_offline(student, chunk, clip) for chunk in held.offline]
    theirs = [_live(student, held.lab.scoring, batch, clip) for batch in fresh]
    drawn, expected, contexts = (torch.stack(side) for side in zip(*ours, strict=True))
    same, live = (torch.stack(side) for side in zip(*theirs, strict=True))
    token, _ = compare(expected, contexts, same_sequences=True)
    visited, _ = compare(contexts, live)
    whole, apart = compare(expected, live)
    length = sum(c.batch.tokens for c in held.offline) / (held.chunks * held.per_chunk)
    gap = distance(same, expected)
    return {
        "cosine": whole,
        "difference": apart,
        "cosine_token": token,
        "cosine_contexts": visited,
        "length_published": norm(expected),
        "length_live": norm(live),
        "noise_drawn": noise(drawn, held.per_chunk),
        "noise_expected": noise(expected, held.per_chunk),
        "gap": Estimate(gap.value * length, gap.error * length),
        **_drift(held, student, clip),
        **_bound(held, student, fresh, clip),
    }


# ---------------------------------------------------------------------------------------------
# Gradients


def _offline(student: PreTrainedModel, chunk: Chunk, clip: float) -> list[Tensor]:
    """[P] of the drawn tokens, of the objective's expectation, and of reverse KL."""
    hidden_TD = response_hidden(student, chunk.batch)
    logq_TV = lm_head(student).logits(hidden_TD).log_softmax(-1)
    at_T1 = torch.from_numpy(chunk.batch.tok)[:, None]
    return _gradients(
        student,
        [
            huber_loss(logq_TV.gather(1, at_T1), chunk.logp_TV.gather(1, at_T1), delta=clip),
            published(chunk.logb_TV, chunk.logp_TV, logq_TV, clip).mean(),
            reverse_kl(chunk.logp_TV, logq_TV).mean(),
        ],
    )


def _live(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, clip: float
) -> list[Tensor]:
    """[P] of the objective and of reverse KL, both on the student's own responses."""
    logq_TV = lm_head(student).logits(response_hidden(student, batch)).log_softmax(-1)
    logp_TV = log_probs(teacher, batch)
    return _gradients(
        student,
        [
            published(logq_TV.detach(), logp_TV, logq_TV, clip).mean(),
            reverse_kl(logp_TV, logq_TV).mean(),
        ],
    )


def _gradients(student: PreTrainedModel, losses: Sequence[Tensor]) -> list[Tensor]:
    weights = list(student.parameters())
    found: list[Tensor] = []
    for loss in losses:
        parts = torch.autograd.grad(loss, weights, retain_graph=loss is not losses[-1])
        found.append(torch.cat([part.flatten() for part in parts]))
    return found


# ---------------------------------------------------------------------------------------------
# Drift and the bound


@torch.no_grad()
def _drift(held: Held, student: PreTrainedModel, clip: float) -> dict[str, float]:
    """Of tokens; and what share of the objective's pull is on tokens the student hardly draws."""
    log_w: list[Tensor] = []
    rare, every = 0.0, 0.0
    for chunk in held.offline:
        logq_TV = log_probs(student, chunk.batch)
        at_T1 = torch.from_numpy(chunk.batch.tok)[:, None]
        log_w.append((logq_TV - chunk.logb_TV).gather(1, at_T1)[:, 0])
        pull_TV = chunk.logb_TV.exp() * (chunk.logp_TV - logq_TV).clamp(-clip, clip).abs()
        rare += float(pull_TV[logq_TV < math.log(RARE)].sum())
        every += float(pull_TV.sum())
    log_w_T = torch.cat(log_w)
    sums = summary(*ratio_sums(log_w_T, torch.zeros_like(log_w_T)).tolist())
    return {
        "drift": sums["drift"],
        "weight": sums["drift_mean"],
        "weight_sd": sums["drift_sd"],
        "rare": rare / every,
    }


def _bound(
    held: Held, student: PreTrainedModel, fresh: Sequence[Batch], clip: float
) -> dict[str, float]:
    """Of whole responses: weights, KL both ways, and what the theorem makes of them."""
    pulls: list[float] = []
    log_w: list[float] = []
    with torch.no_grad():
        for chunk in held.offline:
            at_T1 = torch.from_numpy(chunk.batch.tok)[:, None]
            logq_T, logb_T, logp_T = (
                log_TV.gather(1, at_T1)[:, 0].numpy()
                for log_TV in (log_probs(student, chunk.batch), chunk.logb_TV, chunk.logp_TV)
            )
            pulls += _by_response(chunk.batch, np.abs(np.clip(logp_T - logq_T, -clip, clip)))
            log_w += _by_response(chunk.batch, logq_T - logb_T)
        away: list[float] = []
        for batch in fresh:
            at_T1 = torch.from_numpy(batch.tok)[:, None]
            logb_T = log_probs(held.lab.reference, batch).gather(1, at_T1)[:, 0].numpy()
            assert batch.ref_lp is not None, "rollouts know how they were drawn"
            away += _by_response(batch, batch.ref_lp - logb_T)
    sequence_kl = fmean(away)
    chi2 = float(np.expm1(max(0.0, sequence_kl)))
    sigma = math.sqrt(fmean(pull * pull for pull in pulls))
    largest = _largest(student, held.offline[0].batch)
    return {
        "sequence_drift": -fmean(log_w),
        "sequence_kl": sequence_kl,
        "chi2_sampled": float(np.expm1(2.0 * np.array(log_w)).mean()),
        "chi2_least": chi2,
        "sigma": sigma,
        "G": largest,
        "bound": largest * sigma * math.sqrt(chi2),
    }


def _by_response(batch: Batch, values_T: NDArray[Any]) -> list[float]:
    return [float(values_T[start:stop].sum()) for start, stop in pairwise(batch.tok_off.tolist())]


def _largest(student: PreTrainedModel, batch: Batch, responses: int = 6) -> float:
    """Largest norm of the gradient of a drawn token's log-probability."""
    norms: list[float] = []
    for index in range(min(responses, len(batch))):
        one = batch.select([index])
        logq_TV = lm_head(student).logits(response_hidden(student, one)).log_softmax(-1)
        logq_T = logq_TV.gather(1, torch.from_numpy(one.tok)[:, None])[:, 0]
        for t in range(one.tokens):
            parts = torch.autograd.grad(logq_T[t], list(student.parameters()), retain_graph=True)
            norms.append(math.sqrt(sum(float(part.square().sum()) for part in parts)))
    return max(norms)
