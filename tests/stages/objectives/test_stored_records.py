"""Objectives on records as the scorer draws them, the format stores them and the reader decodes.

`test_proofs` enumerates records written by hand; here the sampler, the rounding to float16 and the
decoder are in between. The teacher is one row over a vocabulary of 300, scored again and again with
uniforms spread evenly over [0, 1): the mean over positions is the expectation over draws, up to the
grid. Levels are asked of the contract, as there.
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.config.data import Sampling
from stages.config.record_kinds import Counts, HeadTail, Record, TopK
from stages.objectives.contract import guarantee
from stages.objectives.objective import Objective
from stages.objectives.temper import build_objective
from stages.objectives.tensors import TorchRecords
from stages.scoring.sampler import on_cpu
from storage.codec import stored, to_batch
from storage.errors import ConfigError
from storage.manifest import SetMeta
from storage.rows import Rows
from storage.schema import COLUMNS
from tests.stages.objectives.full_losses import FULL, OPTIONS

V, POSITIONS = 300, 3000
RNG = np.random.default_rng(31)
Z_P = (-1.3 * np.log(np.arange(V) + 2.0) + 0.6 * RNG.standard_normal(V)).astype(np.float32)
Z_Q = torch.from_numpy(Z_P + RNG.standard_normal(V)).double()
CANDIDATES = np.array([0, 3, 40, 200])

RECORDS = {
    "head_tail": HeadTail(tau=0.02),
    "head_tail+logp": HeadTail(tau=0.02, logp=True),
    "head_tail+logp, two temperatures": HeadTail(tau=0.02, logp=True, loss_temperature=1.5),
    "head_tail, two temperatures": HeadTail(tau=0.02, loss_temperature=1.5),
    "head_tail+logp, second copy": HeadTail(tau=0.02, logp=True, copies=2),
    "counts": Counts(),
    "counts+logp": Counts(logp=True),
    "counts+logp, cold": Counts(logp=True, temperature=0.7),
    "top_k": TopK(k=20),
}
NAMES = ("forward_kl", "ghost_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")


def read_back(record: Record) -> TorchRecords:
    """All positions, through the sampler and the format; of several draws, the last."""
    u_R = (np.arange(POSITIONS) + 0.5) / POSITIONS
    columns_of_u = [(u_R + m / 3) % 1.0 for m in range(record.uniforms)]
    u_RU = np.stack([*columns_of_u], axis=1) if columns_of_u else np.empty((POSITIONS, 0))
    tok_R = RNG.integers(0, V, POSITIONS)
    made = on_cpu(
        np.tile(Z_P, (POSITIONS, 1)),
        V,
        tok_R,
        np.tile(CANDIDATES if record.forced else CANDIDATES[:0], (POSITIONS, 1)),
        u_RU,
        record,
    )
    columns = {
        "seq_id": np.zeros(1, np.int64),
        "prompt_id": np.zeros(1, np.int64),
        "sample": np.zeros(1, np.int32),
        "finish": np.zeros(1, np.uint8),
        "outcome": np.zeros(1, np.int8),
        "prompt": np.zeros(1, np.uint32),
        "tok": tok_R,
        "ref_lp": np.full(POSITIONS, -np.log(V)),
        **made.columns(),
    }
    typed = {name: value.astype(COLUMNS[name].dtype) for name, value in columns.items()}
    offsets = {"prompt": np.array([0, 1]), "position": np.array([0, POSITIONS])}
    meta = SetMeta("test", "k", "records", V, record=record.described())
    rows = stored(Rows.from_columns(typed, offsets))
    return TorchRecords.from_batch(to_batch(rows, meta, draw=getattr(record, "copies", 1) - 1))


def mean_loss(table: Objective, record: Record, records: TorchRecords) -> tuple[float, Tensor]:
    """Mean over positions, and its gradient by the student's logits, in float32 as in training."""
    function = build_objective(table, record.model_dump())
    logits_V = Z_Q.clone().requires_grad_()
    logq_V = torch.log_softmax(logits_V / function.temperature, dim=0).float()
    terms = function(logq_V[records.ids_E], logq_V[records.tok_T], records)
    loss = terms.loss_T.double().mean()
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


def full_loss(name: str, temperature: float) -> tuple[float, Tensor]:
    logits_V = Z_Q.clone().requires_grad_()
    logq_V = torch.log_softmax(logits_V / temperature, dim=0)
    p_V = torch.softmax(torch.from_numpy(Z_P).double() / temperature, dim=0)
    loss = FULL[name](logq_V, p_V, p_V)
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


def level_of(table: Objective, meta: Mapping[str, object]) -> str:
    try:
        return guarantee(table, meta).level
    except ConfigError:
        return "refused"


@pytest.mark.parametrize("kind", RECORDS)
def test_stored_records_give_what_the_contract_says(kind: str) -> None:
    record = RECORDS[kind]
    records = read_back(record)
    meta = {
        "record": record.model_dump(),
        "sampling": Sampling().model_dump(),
        "full_support": True,
    }
    for temperature in {record.temperature, record.loss_temperature or record.temperature}:
        seen = 0
        for name in NAMES:
            table = Objective.model_validate(
                {"name": name, "temperature": temperature, **OPTIONS.get(name, {})}
            )
            level = level_of(table, meta)
            if level == "refused":
                continue
            value, grad_V = full_loss(name, temperature)
            found, found_V = mean_loss(table, record, records)
            if level == "unbiased":
                assert found == pytest.approx(value, abs=2e-3), (name, temperature)
                error = (found_V - grad_V).norm() / grad_V.norm()
                assert error < 0.02, (name, temperature)
            elif level == "lower_bound":
                assert found < value, (name, temperature)
            else:
                assert (found_V - grad_V).norm() / grad_V.norm() > 0.1, (name, temperature)
            seen += 1
        assert seen
