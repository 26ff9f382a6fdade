"""Every cell of the legality table, proved on a vocabulary of eight by summing over all outcomes.

The level is asked of the contract, never written down here; each level has one proof:

    exact, unbiased   expected value and expected gradient, over all draws of the record and all
                      realised tokens, equal those of the full loss
    lower_bound       never above the full loss, for any record and any student; the gradient is
                      that of the full loss over the coarsened distributions, record by record
    biased            the proof of `unbiased` fails
    refused           nothing to prove

A new row, kind or rule without a full loss or an enumeration to compare with fails here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.config.data import Sampling
from stages.config.record_kinds import stored_record
from stages.objectives.contract import COLUMNS, all_rows, guarantee, variants
from stages.objectives.objective import Objective, ObjectiveFunction
from stages.objectives.temper import build_objective
from stages.objectives.tensors import TorchRecords
from storage.errors import ConfigError
from tests.stages.objectives.full_losses import FULL, OPTIONS
from tests.stages.objectives.toy_records import (
    Draw,
    V,
    enumerate_positions,
    head_tail,
    multinomial_counts,
    sampled,
    softmax,
    systematic_counts,
    top_k,
)

RNG = np.random.default_rng(17)
Z_P, Z_Q, Z_B = (1.5 * RNG.standard_normal(V) for _ in range(3))
B = softmax(Z_B)
STUDENTS = [torch.from_numpy(3.0 * RNG.standard_normal(V)) for _ in range(20)]

READINGS: dict[str, dict[str, float | None]] = {
    "as recorded": {"recorded": 1.0, "loss": None, "wanted": 1.0},
    "recorded cold": {"recorded": 0.7, "loss": None, "wanted": 0.7},
    "second temperature": {"recorded": 1.0, "loss": 1.6, "wanted": 1.6},
    "sharper": {"recorded": 1.3, "loss": 0.8, "wanted": 0.8},
    "no normaliser": {"recorded": 1.0, "loss": None, "wanted": 1.6},
    "another normaliser": {"recorded": 1.0, "loss": 0.8, "wanted": 1.6},
}
"""Temperatures: of the record, its second one, and the objective's."""


def worlds(kind: str, p_V: np.ndarray) -> list[list[Draw]]:
    """Several records of a kind of one teacher, each with all of its outcomes."""
    order = [int(i) for i in np.argsort(-p_V)]
    watched = [order[0], order[1], order[6]]  # with an unlikely candidate
    name, _, logp = kind.partition("+")
    match name:
        case "sequences" | "sampled":
            return [sampled()]
        case "counts":
            return [multinomial_counts(p_V, 3, bool(logp)), systematic_counts(p_V, 5, bool(logp))]
        case "head_tail":
            plans = [(order[:3], 2), (watched, 1), (order, 0)]
            made = [head_tail(p_V, head, n, bool(logp)) for head, n in plans]
            # Where log p of drawn ids is kept, a sampler leaves a tail out only if there is none.
            by_chance = head_tail(p_V, order[:5], 1, floor=0.9)
            return made if logp else [*made, by_chance]
        case "top_k":
            return [top_k(p_V, k) for k in (1, 3, V)]
        case _:
            raise AssertionError(f"no enumeration for records of kind {kind}")


@dataclass(frozen=True)
class Cell:
    """One cell of the table under one reading of the temperatures."""

    row: str
    kind: str
    recorded: float
    loss: float | None
    wanted: float

    @property
    def objective(self) -> Objective:
        """The `[train.objective]` table."""
        row = next(one for one in variants() if one.label == self.row)
        options = {"temperature": self.wanted, **OPTIONS.get(self.row, {})}
        return Objective.model_validate(row.model_dump() | options)

    @property
    def meta(self) -> Mapping[str, object]:
        """Of the manifest of rollouts with such records."""
        sampling = {"sampling": Sampling().model_dump(), "full_support": True}
        if self.kind == "sequences":
            return sampling
        kind, _, logp = self.kind.partition("+")
        temperatures = {"temperature": self.recorded, "loss_temperature": self.loss}
        record = stored_record({"kind": kind, "logp": bool(logp), **temperatures})
        return {**sampling, "record": record.model_dump()}

    @property
    def function(self) -> ObjectiveFunction:
        """As training builds it."""
        record = self.meta.get("record")
        return build_objective(self.objective, record)  # pyright: ignore[reportArgumentType]

    @property
    def level(self) -> str:
        """What the contract says."""
        try:
            return guarantee(self.objective, self.meta).level
        except ConfigError:
            return "refused"

    def teacher(self, temperature: float) -> np.ndarray:
        """Its distribution."""
        return softmax(Z_P / temperature)

    def outcomes(self) -> list[tuple[list[Draw], TorchRecords, Tensor]]:
        """Per world: its draws, all positions (draw, token), and their probabilities."""
        p_V = self.teacher(self.recorded)
        out: list[tuple[list[Draw], TorchRecords, Tensor]] = []
        for draws in worlds(self.kind, p_V):
            records, chance_T = enumerate_positions(p_V, B, draws)
            if self.kind == "sequences":
                records = replace(records, lp_T=None, ent_T=None)
            if self.loss is not None:
                lz = float(np.log((p_V ** (self.recorded / self.loss)).sum()))
                records = replace(records, lz_T=torch.full_like(chance_T, lz))
            out.append((draws, records, chance_T))
        return out

    def full(self, logits_V: Tensor) -> tuple[float, Tensor]:
        """Value and gradient of the full loss."""
        logits_V = logits_V.clone().requires_grad_()
        logq_V = torch.log_softmax(logits_V / self.wanted, dim=0)
        p_V = torch.from_numpy(self.teacher(self.wanted))
        loss = FULL[self.row](logq_V, p_V, torch.from_numpy(B))
        return loss.item(), torch.autograd.grad(loss, logits_V)[0]

    def coarse(self, logits_V: Tensor, head: list[int]) -> tuple[float, Tensor]:
        """The same with everything outside `head` as one symbol."""
        logits_V = logits_V.clone().requires_grad_()
        logq_V = torch.log_softmax(logits_V / self.wanted, dim=0)
        p_V = torch.from_numpy(self.teacher(self.wanted))
        rest = [v for v in range(V) if v not in head]

        def coarsen(x_V: Tensor) -> Tensor:
            return torch.cat([x_V[head], x_V[rest].sum()[None]]) if rest else x_V[head]

        loss = FULL[self.row](coarsen(logq_V.exp()).log(), coarsen(p_V), torch.from_numpy(B))
        return loss.item(), torch.autograd.grad(loss, logits_V)[0]


def evaluate(
    function: ObjectiveFunction, records: TorchRecords, chance_T: Tensor, logits_V: Tensor
) -> tuple[float, Tensor]:
    """Expected loss and its gradient by the student's logits."""
    logits_V = logits_V.clone().requires_grad_()
    logq_V = torch.log_softmax(logits_V / function.temperature, dim=0)
    terms = function(logq_V[records.ids_E], logq_V[records.tok_T], records)
    loss = (chance_T * terms.loss_T).sum()
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


CELLS = {
    f"{row}-{kind}-{name}": Cell(row, kind, **reading)  # pyright: ignore[reportArgumentType]
    for row in all_rows()
    for kind in COLUMNS
    for name, reading in READINGS.items()
}
LEVELS = {name: cell.level for name, cell in CELLS.items()}


def at_level(*levels: str) -> list[str]:
    return [name for name, level in LEVELS.items() if level in levels]


@pytest.mark.parametrize("name", at_level("exact", "unbiased"))
def test_expectation_is_the_full_loss(name: str) -> None:
    cell = CELLS[name]
    # A student far from the teacher and one near it; TVD has no derivative at the teacher itself.
    for logits_V in (torch.from_numpy(Z_Q), torch.from_numpy(Z_P + 0.01 * Z_B)):
        value, grad_V = cell.full(logits_V)
        for _, records, chance_T in cell.outcomes():
            found, found_V = evaluate(cell.function, records, chance_T, logits_V)
            assert found == pytest.approx(value, abs=1e-10)
            torch.testing.assert_close(found_V, grad_V, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", at_level("lower_bound"))
def test_bound_holds_for_every_record_and_student(name: str) -> None:
    cell = CELLS[name]
    for draws, records, _ in cell.outcomes():
        for logits_V in STUDENTS:
            value, _ = cell.full(logits_V)
            logq_V = torch.log_softmax(logits_V / cell.wanted, dim=0)
            terms = cell.function(logq_V[records.ids_E], logq_V[records.tok_T], records)
            assert terms.loss_T.max().item() <= value + 1e-10
        for index, draw in enumerate(draws):
            one_T = torch.zeros(len(records), dtype=torch.float64)
            one_T[index * V] = 1.0
            value, grad_V = cell.coarse(STUDENTS[0], draw.ids[: draw.head])
            found, found_V = evaluate(cell.function, records, one_T, STUDENTS[0])
            assert found == pytest.approx(value, abs=1e-9)
            torch.testing.assert_close(found_V, grad_V, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", at_level("biased"))
def test_what_is_called_biased_is(name: str) -> None:
    """In some world: where all of the vocabulary is exact, little can go wrong."""
    cell = CELLS[name]
    value, grad_V = cell.full(torch.from_numpy(Z_Q))
    errors: list[float] = []
    for _, records, chance_T in cell.outcomes():
        found, found_V = evaluate(cell.function, records, chance_T, torch.from_numpy(Z_Q))
        errors += [abs(found - value), float((found_V - grad_V).norm())]
    assert max(errors) > 1e-3


def test_every_level_has_cells_and_every_kind_an_enumeration() -> None:
    assert set(LEVELS.values()) == {"exact", "unbiased", "lower_bound", "biased", "refused"}
    assert all(worlds(kind, softmax(Z_P)) for kind in COLUMNS)
    assert set(FULL) == set(all_rows())
