"""The exact noise of the gradient, held against every outcome of the product's own objective."""

import numpy as np
import torch

from benchmarks.candidates import Policies, _log_softmax, _Student
from benchmarks.sources import Block
from stages.config.record_kinds import HeadTail
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.temper import build_objective
from tests.stages.objectives.toy_records import V, enumerate_positions, head_tail


def test_the_noise_is_the_variance_over_realised_tokens() -> None:
    rng = np.random.default_rng(3)
    z_RV = rng.standard_normal((3, V)).astype(np.float32)
    logp_RV, logb_RV, logq_RV = (_log_softmax(z_V[None]) for z_V in 2.0 * z_RV)
    head = [0, 3, 5]
    head_RV = np.isin(np.arange(V), head)[None]
    none = np.zeros((1, 0), np.int64)
    both = Policies(Block(z_RV[:1], np.zeros(1, np.int64), none), logp_RV, logb_RV)
    student = _Student.of(logq_RV, both)
    p_V = np.exp(logp_RV[0])
    found = student.noise(head_RV, np.array([p_V[~head_RV[0]].sum()]))

    # One tail suffices: the objective reads the head and the realised token alone.
    records, chance_T = enumerate_positions(p_V, np.exp(logb_RV[0]), head_tail(p_V, head, 0))
    function = build_objective(ReverseKL(), HeadTail().described())
    logits_V = torch.from_numpy(logq_RV[0]).requires_grad_()
    logq_V = torch.log_softmax(logits_V, dim=0)
    loss_T = function(logq_V[records.ids_E], logq_V[records.tok_T], records).loss_T
    grad_TV = torch.stack([torch.autograd.grad(x, logits_V, retain_graph=True)[0] for x in loss_T])
    mean_V = chance_T @ grad_TV
    variance = chance_T @ (grad_TV - mean_V).square().sum(1)
    np.testing.assert_allclose(found[0], variance.item(), rtol=1e-9)
    np.testing.assert_allclose(student.signal_R[0], mean_V.square().sum().item(), rtol=1e-9)
