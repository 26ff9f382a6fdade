"""The training loop.

One optimiser step = one global batch of `batch_size` sequences, in as many micro-batches as the
token budget asks for. Every micro-batch loss is divided by the positions of the *whole* step, so
how the step is cut changes nothing. Where positions have weights, the sum of the weights takes the
place of the number of positions; it is known at the end of the step, which then scales the
gradient. One forward pass; the logits never exist as a whole (`head_loss`). Parameters and
optimiser are float32; on bfloat16 the passes run under autocast.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.config.objectives import Drift
from stages.config.training import Training
from stages.job import Job
from stages.losses.head_loss import head_statistics
from stages.losses.position_loss import PositionLoss
from stages.models.model import lm_head, response_hidden
from stages.objectives.tensors import TorchRecords
from stages.progress import Progress
from stages.training import checkpoint, remote_checkpoint
from stages.training.distributed import current
from stages.training.drift import Guard, ratio_sums
from stages.training.metrics import METRICS, Line, Metrics, Window, describe
from stages.training.microbatches import BatchSource, cut
from stages.training.optim import (
    adamw,
    clip_gradients,
    progress,
    rate_at,
    scale_gradients,
    set_rate,
)
from stages.training.rounds import ONLY, Round, hand_on, take_over
from stages.weights.base import StudentView
from stages.weights.step import StepWeights, Weighting
from storage.batch import Batch
from storage.errors import DataError, EngineError
from storage.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One training run: everything a stage decides before the first step."""

    job: Job[Any]
    """Its `config` is a `Training`; metrics and checkpoints go to its `site`."""
    model: PreTrainedModel
    """Float32 weights, on the device it is trained on, sharded if there are several processes."""
    source: BatchSource
    """One batch per step; of several processes, each gets its own share."""
    steps: int
    """Optimiser steps; with 0 the model stays as it is."""
    loss: PositionLoss
    data: Manifest
    """Of the set that is read; a checkpoint belongs to its digest."""
    tokenizer_from: Path
    """Directory whose tokenizer files are saved with the model."""
    dtype: torch.dtype
    """Of the saved weights; with bfloat16 the passes run under autocast."""
    weighting: Weighting | None = None
    """How much each position counts; None: all the same."""
    limits: Drift | None = None
    """On the drift from the policy that wrote the data; None where that policy does not matter."""
    round: Round = ONLY
    """Which of the rounds that are one training."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Goes into the manifest beside what training itself records."""

    @property
    def name(self) -> str:
        """As shown in the log."""
        return self.job.name

    @property
    def config(self) -> Training:
        """Settings of the run."""
        return self.job.config

    @property
    def identity(self) -> Mapping[str, str]:
        """What a checkpoint must belong to."""
        return {"key": self.job.key, "data": self.data.digest}


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    steps: int
    last: Line
    """The last log line."""
    stopped: bool
    """Whether a drift limit ended it before its time."""
    drifted: bool
    """Whether drift was above a limit when it was last looked at."""


def train(task: Task, work: Path) -> RunOutcome:
    """Run `task` to its end, from the checkpoint in `work` if there is one.

    Raises:
        DataError: the checkpoint is of another run, the state that the round before has handed on
            is damaged, or a batch has no position to train on.
        EngineError: loss or gradient is not finite; the weights are as before that step.
        RetryError: a checkpoint cannot be written.
    """
    config, model, group = task.config, task.model, current()
    optimiser = adamw(model, config)
    window, guard = Window(), Guard(task.name, task.limits)
    tensors = checkpoint.tensors_of(model, optimiser)
    step, stopped = 0, False
    if left := checkpoint.load(work, task.identity, tensors, group):
        step = left["step"]
        task.source.load_state_dict(left["source"])
        window.add_states([state["window"] for state in left["own"]], model.device)
        guard.add_states([state["guard"] for state in left["own"]], model.device)
        log.info("%s: continuing after step %d of %d", task.name, step, task.steps)
    elif task.round.before is not None:
        take_over(task.round.before, tensors, group)
    first, total = task.round.span(task.steps)
    if task.round.of > 1:
        log.info("%s: %s", task.name, task.round.described(task.steps))
    told = Progress(task.name, task.steps, "steps", done=step)
    with Metrics(task.job.site / METRICS, step, group.first) as metrics, told:
        while step < task.steps and not stopped:
            batch = window.waiting(task.source.__next__)
            rate = rate_at(first + step, total, config)

            # -------------------------------------------------------------- one optimiser step
            loss = task.loss.at(progress(first + step, total))
            mean = _forward_backward(task, loss, step, batch, window, guard)
            norm = clip_gradients(model.parameters(), config.grad_clip)
            _require_finite(task, loss, step, batch, mean, norm)
            set_rate(optimiser, rate)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            told.advance()

            # -------------------------------------------------------------- once in a while
            stopped = guard.must_stop(step, group)
            if step % config.run.log_every == 0 or step == task.steps or stopped:
                line = {
                    "step": step,
                    **window.flush(group),
                    "grad_norm": norm.item(),
                    "rate": rate,
                }
                metrics.write(line)
                told.say(describe(line, task.steps))
            # A run that is to stop here must not resume behind this point.
            if step % config.run.checkpoint_every == 0 and not stopped:
                shared = {"step": step, "source": dict(task.source.state_dict())}
                own = {"window": window.state_dict(), "guard": guard.state_dict()}
                checkpoint.save(work, task.identity, tensors, shared, own, group)
                if group.first:
                    remote_checkpoint.send_checkpoint(task.job, work)
        if task.round.hands_on:
            hand_on(task.job.site, task.identity, tensors, step, group)
        return RunOutcome(step, metrics.last, stopped, guard.above)


def _forward_backward(
    task: Task, loss: PositionLoss, step: int, batch: Batch, window: Window, guard: Guard
) -> Tensor:
    """Accumulate the gradient of the mean loss over the positions of the step.

    Every process runs as many passes as the one with the most micro-batches.

    Args:
        task: What is trained.
        loss: What to minimise in this step.
        step: Number of the step, from 0.
        batch: The share of this process in the step.
        window, guard: Collect the statistics.

    Returns:
        The share of this process in the mean loss.
    """
    model, group, device = task.model, current(), task.model.device
    pairs = cut(batch, task.config.run.tokens_per_microbatch)
    parts = [part for part, _ in pairs]
    shares = group.all_gather((batch.tokens, len(parts)))
    tokens, passes = sum(share[0] for share in shares), max(share[1] for share in shares)
    if tokens == 0:
        raise DataError(
            f"{task.name}: sequences {_some(_ids(batch))} have no response token left "
            "to train on. Raise `max_length` above the length of the prompts."
        )
    # Which positions have the highest entropy, say, is known once the student has read them all:
    # with several micro-batches in a pass of its own, else from the hidden states of the only one.
    weights = None
    if task.weighting is not None:
        weights = StepWeights(task.weighting, step, batch, pairs)
        if not task.weighting.compares_student:
            weights.compare([None] * len(parts), group)
        elif passes > 1:
            weights.compare(_read_student(task, loss, parts, passes), group)
    total = torch.zeros((), device=device)
    for number, part in enumerate(parts):
        records = TorchRecords.from_batch(part, device)
        weight_T = None
        with _autocast(task):
            hidden_TD = group.unsharded(model, partial(response_hidden, model, part))
            if weights is not None:
                student = None
                if not weights.compared or weights.weighting.reads_student_alone:
                    student = _student(task, loss, hidden_TD, records)
                if not weights.compared:
                    weights.compare([student], group)
                exact = torch.promote_types(hidden_TD.dtype, torch.float32)
                weight_T = torch.from_numpy(weights.of(number, student)).to(device, exact)
            share, stats = loss(hidden_TD, lm_head(model), part, records, weight_T, tokens)
        share.backward()
        total += share.detach()
        drift = None
        if task.limits is not None and records.ref_lp_T is not None:
            kept_T = slice(None) if weight_T is None else weight_T != 0
            lp_T = None if records.lp_T is None else records.lp_T[kept_T]
            drift = ratio_sums(stats["logq"], records.ref_lp_T[kept_T], lp_T)
        window.add(stats, drift, len(part.prompt) + len(part.tok), weight_T)
        guard.add(drift)
    for _ in range(passes - len(parts)):
        nothing = group.zero_loss(model)
        if weights is not None and not weights.compared:
            weights.compare([], group)
        nothing.backward()
    if weights is not None:
        sum_w = weights.total(task.name, group)
        if weights.weighting.normalise == "weights":
            scale_gradients(model.parameters(), tokens / sum_w)
            total *= tokens / sum_w
    return total


def _autocast(task: Task) -> torch.autocast:
    return torch.autocast(
        task.model.device.type, torch.bfloat16, enabled=task.dtype == torch.bfloat16
    )


@torch.no_grad()
def _read_student(
    task: Task, loss: PositionLoss, parts: list[Batch], passes: int
) -> list[StudentView]:
    """The student's distribution at all positions of this process: a forward pass of its own."""
    model, group = task.model, current()

    def read(part: Batch) -> StudentView:
        records = TorchRecords.from_batch(part, model.device)
        return _student(task, loss, response_hidden(model, part), records)

    with _autocast(task):
        found = [group.unsharded(model, partial(read, part)) for part in parts]
        for _ in range(passes - len(parts)):
            group.zero_loss(model)
    return found


def _student(
    task: Task, loss: PositionLoss, hidden_TD: Tensor, records: TorchRecords
) -> StudentView:
    """What weights may read of the student."""
    found = head_statistics(
        hidden_TD.detach(),
        lm_head(task.model),
        records,
        rows_per_chunk=task.config.run.rows_per_chunk,
        temperature=loss.temperature,
    )
    columns = (found.logq_E, found.logq_T, found.confidence_T, found.entropy_T)
    return StudentView(*(column.cpu().numpy() for column in columns))


def _require_finite(
    task: Task, loss: PositionLoss, step: int, batch: Batch, mean: Tensor, norm: Tensor
) -> None:
    """Stop before the optimiser corrupts the weights; all processes raise the same error."""
    if all(current().all_gather(bool(torch.isfinite(mean) & torch.isfinite(norm)))):
        return
    guilty = _not_finite_alone(replace(task, weighting=None), loss, batch)
    which = (
        f"caused by sequences {_some(guilty)}"
        if guilty
        else f"though no sequence of {_some(_ids(batch))} causes it alone"
    )
    whole = sum(current().all_gather(mean.item()))
    raise EngineError(
        f"{task.name}: step {step + 1}: loss {whole:g}, gradient norm {norm.item():g}, "
        f"{which}. The step was not taken. Check these sequences in the data; if they are "
        "right, lower `learning_rate`, warm up longer, or train in float32."
    )


def _not_finite_alone(task: Task, loss: PositionLoss, batch: Batch) -> list[int]:
    """Ids of the sequences of the step whose own loss or gradient is not finite."""
    guilty: list[int] = []
    for rank, count in enumerate(current().all_gather(len(batch))):
        for index in range(count):
            one = batch.select([index] if rank == current().rank else [])
            if not any(current().all_gather(one.tokens)):
                continue
            task.model.zero_grad(set_to_none=True)
            mean = _forward_backward(task, loss, 0, one, Window(), Guard(task.name, None))
            norm = clip_gradients(task.model.parameters(), 1.0)
            if not all(current().all_gather(bool(torch.isfinite(mean) & torch.isfinite(norm)))):
                guilty += _ids(one)
    return guilty


def _ids(batch: Batch) -> list[int]:
    """Ids of the sequences in the shares of all processes."""
    return [name for share in current().all_gather(batch.seq_id.tolist()) for name in share]


def _some(items: list[int]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return f"{shown} and {len(items) - 8} more" if len(items) > 8 else shown
