"""Acceptance from records, summed over every draw and every realised token of one context."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.config.data import Sampling
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled, TopK
from stages.evaluation.acceptance import Acceptance, acceptance_estimator
from tests.stages.objectives import toy_records as toy

_RNG = np.random.default_rng(0)
P, Q, B = (toy.softmax(2 * _RNG.standard_normal(toy.V)) for _ in range(3))
OVERLAP = float(np.minimum(P, Q).sum())
LIKELY = [int(i) for i in np.argsort(-P)]


def estimator(record: Record, sampling: Sampling | None) -> Acceptance:
    """That of a set of rollouts, or of a text that nobody drew."""
    meta: dict[str, Any] = {"record": record.described()}
    if sampling is not None:
        full = sampling.top_p == 1
        meta |= {"sampling": sampling.model_dump(), "full_support": full}
    found = acceptance_estimator(meta, 1.0)
    assert found is not None
    return found


def expectation(one: Acceptance, draws: list[toy.Draw]) -> float:
    """The mean over all outcomes, each with its chance."""
    records, chance_T = toy.enumerate_positions(P, B, draws)
    logq_V: NDArray[np.float64] = np.log(Q)
    logq_E, logq_T = (torch.from_numpy(logq_V)[ids] for ids in (records.ids_E, records.tok_T))
    return float(chance_T @ one(logq_E, logq_T, records))


@pytest.mark.parametrize(
    ("record", "draws", "form"),
    [
        (HeadTail(), toy.head_tail(P, [0, 3], 0), "realised"),
        (HeadTail(logp=True), toy.head_tail(P, LIKELY[:4], 2, logp=True), "drawn"),
        (Counts(), toy.multinomial_counts(P, 2), "realised"),
        (Counts(logp=True), toy.multinomial_counts(P, 2, logp=True), "drawn"),
        (TopK(k=2), toy.top_k(P, 2), "realised"),
        (Sampled(), toy.sampled(), "realised"),
    ],
    ids=["head_tail", "head_tail+logp", "counts", "counts+logp", "top_k", "sampled"],
)
def test_its_mean_is_one_minus_tvd(record: Record, draws: list[toy.Draw], form: str) -> None:
    one = estimator(record, Sampling())
    assert (one.form, one.level) == (form, "unbiased")
    assert expectation(one, draws) == pytest.approx(OVERLAP, rel=1e-9)


@pytest.mark.parametrize("sampling", [None, Sampling(top_p=0.9)], ids=["text", "truncated"])
def test_without_a_known_draw_it_is_a_bound(sampling: Sampling | None) -> None:
    one = estimator(HeadTail(), sampling)
    assert (one.form, one.level) == ("bucket", "upper_bound")
    assert OVERLAP < expectation(one, toy.head_tail(P, [0, 3], 0)) < 1


def test_sets_without_a_teacher_have_none() -> None:
    assert acceptance_estimator({"sampling": Sampling().model_dump()}, 1.0) is None
