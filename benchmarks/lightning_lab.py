"""What the students of docs/repro-lightning.md are made of: a pi_ref, a teacher, records, an exam.

All students of a lab start at one pi_ref and answer one exam. Offline ones read records of one
stock of rollouts, which is made once: step k of batch size B reads the sequences from k B on, and
begins again where the stock ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.enumerated import Enumerated, log_probs
from benchmarks.students import ROWS_PER_CHUNK, Exam, responses, train
from stages.attribution.cross_teacher import Estimator
from stages.config.record_kinds import HeadTail, Record, Sampled
from stages.config.records import Residualize
from stages.config.training import Student
from stages.losses.head_loss import RecordLoss
from stages.losses.position_loss import PositionLoss
from stages.models.facts import model_facts
from stages.models.model import load_model
from stages.objectives.lightning import Lightning
from stages.objectives.reverse_kl import ReverseKL
from stages.training.drift import ratio_sums, summary
from storage.batch import Batch
from storage.rows import Rows

DRAWN = 512
"""Responses drawn at a time."""
STOCK = 60
"""Batches of that many in the stock: half of what 120 steps of 512 sequences read."""


@dataclass(frozen=True)
class Spec:
    """One student."""

    name: str
    batch_size: int = 64
    rate: float = 3e-4
    live: bool = False
    loss: Literal["lightning", "published", "reverse_kl", "corrected"] = "lightning"
    """`lightning` and `corrected` (reverse KL) read the drawn token, the others sum it out."""
    clip: float = 10.0
    scores: Literal["own", "residualized", "shifted"] = "own"
    """The teacher's; or corrected by the stage `residualize`; or by its overall mean alone."""
    marks: tuple[int, ...] = ()
    """Steps at which the exam is taken, besides the last."""


@dataclass
class Lab:
    """See above.

    Args:
        policy: Directory of pi_ref.
        teacher: Directory of the teacher that scores.
        prompts: The set of records whose prompts are answered.
        config: Of all students; a spec overrides some of it.
        exam: Of all students.
        seed: Of the rollouts.
        dtype: Of the teacher.
        drawn, stock: Responses drawn at a time, and how often that is done for the stock.
        record: Of students that read more of the teacher than the realised token.
    """

    policy: Path
    teacher: Path
    prompts: Path
    config: Student
    exam: Exam
    seed: int
    dtype: str = "float32"
    drawn: int = DRAWN
    stock: int = STOCK
    record: Record = field(default_factory=lambda: HeadTail(tau=0.023, candidates=4))
    records: list[Batch] = field(default_factory=list[Batch])
    """The stock as far as it was made."""

    @cached_property
    def reference(self) -> PreTrainedModel:
        """Pi_ref, which is not trained."""
        return load_model(self.policy, "float32", "cpu").requires_grad_(False)

    @cached_property
    def scoring(self) -> PreTrainedModel:
        """The teacher."""
        return load_model(self.teacher, self.dtype, "cpu").requires_grad_(False)

    def start(self) -> PreTrainedModel:
        """A student before its first step."""
        return load_model(self.policy, "float32", "cpu")

    def fresh(
        self, model: PreTrainedModel, seed: int, count: int, record: Record | None = None
    ) -> Iterator[Batch]:
        """Endless batches of `count` responses of a model, scored by the teacher."""
        return responses(
            self.prompts,
            model,
            self.scoring,
            self.policy,
            batch_size=count,
            seed=seed,
            record=record or Sampled(),
        )

    def rollouts(self, steps: int, batch_size: int) -> list[Batch]:
        """The stock, as far as so many steps read it."""
        needed = min(self.stock, -(-steps * batch_size // self.drawn))
        while len(self.records) < needed:
            self.records.append(next(self._source))
        return self.records[:needed]

    @cached_property
    def _source(self) -> Iterator[Batch]:
        return self.fresh(self.reference, 1000 + self.seed, self.drawn)

    @cached_property
    def mean_gap(self) -> float:
        """Mean of log pi_ref - log p over drawn tokens: an estimate of their KL, nats per token."""
        stock = self.rollouts(self.config.steps or 1, 64)
        gaps = [batch.ref_lp - batch.lp for batch in stock]  # pyright: ignore
        return float(np.concatenate(gaps).mean())

    def batches(self, spec: Spec, student: PreTrainedModel) -> Iterator[Batch]:
        """What a student reads, step by step."""
        if spec.live:
            record = self.record if spec.loss == "corrected" else None
            return self.fresh(student, self.seed, spec.batch_size, record)
        steps = self.config.steps or 0
        if spec.loss == "corrected":
            fresh = self.fresh(self.reference, 1000 + self.seed, self.drawn, self.record)
            needed = -(-steps * spec.batch_size // self.drawn)
            return cut((next(fresh) for _ in range(needed)), spec.batch_size)
        stock = self.rollouts(steps, spec.batch_size)
        if spec.scores == "residualized":
            stock = residualized(stock, self.seed, model_facts(self.policy).vocab_size)
        elif spec.scores == "shifted" and spec.loss == "lightning":
            gap = np.float32(self.mean_gap)
            stock = [replace(batch, lp=batch.lp + gap) for batch in stock]  # pyright: ignore
        return cut(chain.from_iterable(repeat(stock)), spec.batch_size)

    def loss(self, spec: Spec) -> PositionLoss:
        """What a student minimises."""
        if spec.loss == "lightning":
            return RecordLoss(Lightning(clip=spec.clip), ROWS_PER_CHUNK)
        if spec.loss == "corrected":
            return RecordLoss(ReverseKL(), ROWS_PER_CHUNK)
        shift = self.mean_gap if spec.scores == "shifted" else 0.0
        return Enumerated(self.reference, self.scoring, spec.loss, spec.clip, shift)

    def settings(self, spec: Spec) -> Student:
        """Of the optimiser."""
        change = {"learning_rate": spec.rate, "batch_size": spec.batch_size}
        return self.config.model_copy(update=change)

    def run(self, spec: Spec) -> Mapping[str, Any]:
        """Train one student.

        Returns:
            `accuracy` by step, and `drift` from pi_ref at the end.
        """
        student, config = self.start(), self.settings(spec)
        batches, loss = self.batches(spec, student), self.loss(spec)
        accuracy = {
            str(step): self.exam.accuracy(student)
            for step in train(student, batches, loss, config)
            if step in (*spec.marks, config.steps)
        }
        return {"accuracy": accuracy, "drift": self.drift(student)}

    @torch.no_grad()
    def drift(self, student: PreTrainedModel) -> float:
        """KL(pi_ref || student), nats per token, on the first rollouts of the stock."""
        batch = self.rollouts(1, self.drawn)[0]
        logq_T = log_probs(student, batch).gather(1, torch.from_numpy(batch.tok)[:, None])[:, 0]
        assert batch.ref_lp is not None, "rollouts know how they were drawn"
        sums = ratio_sums(logq_T, torch.from_numpy(batch.ref_lp)).tolist()
        return summary(*sums)["drift"]


def residualized(stock: Sequence[Batch], seed: int, vocab_size: int) -> list[Batch]:
    """The stock with the scores that the stage `residualize` would give it."""
    tables = [_rows(batch) for batch in stock]
    length = sum(batch.tokens for batch in stock) / sum(map(len, stock))
    estimator = Estimator(Residualize(), seed, vocab_size, length)
    for rows in tables:
        estimator.add(rows)
    correction = estimator.correction()
    return [
        replace(batch, lp=(rows["lp"] - correction.recurring(rows)).astype(np.float32))
        for batch, rows in zip(stock, tables, strict=True)
    ]


def _rows(batch: Batch) -> Rows:
    """What `residualize` reads of a set."""
    columns = {
        "seq_id": batch.seq_id,
        "prompt_id": batch.prompt_id,
        "prompt": batch.prompt,
        "tok": batch.tok,
        "ref_lp": batch.ref_lp,
        "lp": batch.lp,
    }
    return Rows.from_columns(columns, {"prompt": batch.prompt_off, "position": batch.tok_off})


def cut(stock: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Batches of `size` sequences out of larger ones, which hold a whole number of them."""
    for batch in stock:
        if len(batch) % size:
            raise ValueError(f"{len(batch)} sequences are no whole number of batches of {size}")
        for first in range(0, len(batch), size):
            yield batch.select(range(first, first + size))


@torch.no_grad()
def divergence(rows: Sequence[Batch], first: PreTrainedModel, second: PreTrainedModel) -> float:
    """KL(first || second) at the contexts of some rollouts, nats per token, tokens summed out."""
    total = 0.0
    for batch in rows:
        logp_TV, logr_TV = log_probs(first, batch), log_probs(second, batch)
        total += float((logp_TV.exp() * (logp_TV - logr_TV)).sum())
    return total / sum(batch.tokens for batch in rows)
