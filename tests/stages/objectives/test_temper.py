"""Records read at another temperature; that expectations hold is in `test_proofs`."""

import numpy as np
import pytest
import torch

from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.taid import TAID
from stages.objectives.temper import Tempered, build_objective, retemper
from tests.stages.objectives.toy_records import (
    V,
    enumerate_positions,
    head_tail,
    make_records,
    multinomial_counts,
    softmax,
    top_k,
)

RNG = np.random.default_rng(8)
Z = 1.5 * RNG.standard_normal(V)
P, B = softmax(Z), softmax(RNG.standard_normal(V))
ORDER = [int(i) for i in np.argsort(-P)]


def test_a_record_that_holds_everything_becomes_that_of_the_other_temperature() -> None:
    before, _ = enumerate_positions(P, B, head_tail(P, ORDER, 0))
    expected, _ = enumerate_positions(softmax(Z / 2.0), B, head_tail(softmax(Z / 2.0), ORDER, 0))
    after = retemper(before, 0.5, normalised=False)
    for name in ("weight_E", "logp_E", "rest_T", "lp_T", "ref_lp_T", "ent_T"):
        torch.testing.assert_close(getattr(after, name), getattr(expected, name), msg=name)


@pytest.mark.parametrize("logp", [False, True])
def test_head_rest_and_token_are_exact_given_the_normaliser(logp: bool) -> None:
    before, _ = enumerate_positions(P, B, head_tail(P, ORDER[:3], 2, logp))
    lz = np.log((P**0.5).sum())
    after = retemper(
        type(before)(**{**vars(before), "lz_T": torch.full_like(before.rest_T, lz)}), 0.5, True
    )
    new_V = torch.from_numpy(softmax(Z / 2.0))
    on_head = before.exact_E
    torch.testing.assert_close(after.logp_E[on_head], new_V.log()[before.ids_E[on_head]])
    torch.testing.assert_close(after.rest_T, (1 - new_V[ORDER[:3]].sum()).expand(len(after)))
    torch.testing.assert_close(after.lp_T, new_V.log()[before.tok_T])
    assert bool(after.weight_E[~on_head].isnan().all()) != logp


def test_the_same_temperature_changes_nothing() -> None:
    before, _ = enumerate_positions(P, B, multinomial_counts(P, 3, True))
    same = type(before)(**{**vars(before), "lz_T": torch.zeros_like(before.rest_T)})
    after = retemper(same, 1.0, normalised=True)
    torch.testing.assert_close(after.weight_E, before.weight_E)
    torch.testing.assert_close(after.logp_E, before.logp_E)


def test_self_normalised_weights_sum_to_one() -> None:
    before, _ = enumerate_positions(P, B, multinomial_counts(P, 3, True))
    after = retemper(before, 0.6, normalised=False)
    torch.testing.assert_close(after.sum_entries(after.weight_E), torch.ones_like(after.rest_T))


def test_top_k_stays_renormalised() -> None:
    before, _ = enumerate_positions(P, B, top_k(P, 3))
    lz = float(np.log((P**0.5).sum()))
    with_lz = type(before)(**{**vars(before), "lz_T": torch.full_like(before.rest_T, lz)})
    after = retemper(with_lz, 0.5, normalised=True)
    torch.testing.assert_close(after.sum_entries(after.weight_E), torch.ones_like(after.rest_T))
    assert after.rest_T.min() > 0


def test_an_id_the_teacher_rules_out_stays_out() -> None:
    draw = head_tail(P, ORDER[:2], 0)[0]
    floored = type(draw)(1.0, [*draw.ids, 7], [*draw.weight, 0.0], [*draw.logp, -1000.0], 0.2, 3)
    records = make_records([floored], np.array([0]))
    after = retemper(records, 0.7, normalised=False)
    assert after.weight_E[2] < 1e-300
    assert bool(torch.isfinite(after.logp_E).all())


@pytest.mark.parametrize(
    ("temperature", "record", "built"),
    [
        (1.0, None, ReverseKL()),
        (0.7, None, ReverseKL(temperature=0.7)),
        (1.0, {"temperature": 1.0, "loss_temperature": 2.0}, ReverseKL()),
        (
            2.0,
            {"temperature": 1.0, "loss_temperature": 2.0},
            Tempered(ReverseKL(temperature=2.0), 1.0, normalised=True),
        ),
        (
            3.0,
            {"temperature": 1.0, "loss_temperature": 2.0},
            Tempered(ReverseKL(temperature=3.0), 1.0, normalised=False),
        ),
    ],
)
def test_what_is_built_for_a_record(temperature: float, record: dict | None, built: object) -> None:
    assert build_objective(ReverseKL(temperature=temperature), record) == built


def test_progress_reaches_the_objective_within() -> None:
    assert Tempered(TAID(), 2.0, normalised=True).at(0.5).objective == TAID().at(0.5)


def test_a_normaliser_that_is_not_there_is_named() -> None:
    records, _ = enumerate_positions(P, B, head_tail(P, ORDER[:3], 2))
    with pytest.raises(ValueError, match=r"no normaliser.*contract\.guarantee"):
        retemper(records, 0.5, normalised=True)
