"""The training loop.

One optimiser step = one global batch of `batch_size` sequences, in as many micro-batches as the
token budget asks for. Every micro-batch loss is divided by the positions of the *whole* step, so
how the step is cut changes nothing. One forward pass; the logits never exist as a whole
(`head_loss`). Weights and optimiser are float32; on bfloat16 the passes run under autocast.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.config import Drift, Training
from stages.models.model import Head, lm_head, response_hidden
from stages.objectives.full_teacher import FullTeacher, full_forward_kl
from stages.objectives.head_loss import head_loss
from stages.objectives.softmax import softmax_kernels
from stages.objectives.tensors import ObjectiveFunction, TorchRecords
from stages.training import checkpoint, reshard, sharded_checkpoint
from stages.training.drift import Guard, ratio_sums
from stages.training.group import ALONE, Group
from stages.training.metrics import METRICS, Line, Metrics, describe
from stages.training.microbatches import Source, cut
from stages.training.optim import adamw, clip_gradients, progress, rate_at, set_rate
from stages.training.window import Window
from storage.batch import Batch
from storage.errors import DataError, EngineError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One training run, ready to go."""

    name: str
    """As shown in the log."""
    identity: Mapping[str, str]
    """`key` of the set being made and digest of the `data`: what a checkpoint must belong to."""
    directory: Path
    """Where `metrics.jsonl` goes."""
    model: PreTrainedModel
    """Float32 weights, on `device`."""
    source: Source
    objective: ObjectiveFunction
    teacher: FullTeacher | None
    """Read whole in place of the records of `source`, by forward KL."""
    config: Training
    steps: int
    limits: Drift | None
    """On the drift from the policy that wrote the data; None where that policy does not matter."""
    device: torch.device
    dtype: torch.dtype
    """float32, or bfloat16 for autocast."""
    group: Group = ALONE
    """The processes that share each step; `source` gives this one its share."""
    saved: Callable[[Path], None] = lambda work: None
    """Told of every checkpoint written into `work`, in the first process."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    last: Line
    """The last log line."""
    stopped: bool
    """Whether the drift limit ended it before its time."""


def train(task: Task, work: Path) -> Outcome:
    """Run `task` to its end, from the checkpoint in `work` if there is one.

    Raises:
        DataError: the checkpoint is of another run, or a batch has no position to train on.
        EngineError: loss or gradient is not finite; the weights are as before that step.
        RetryError: a checkpoint cannot be written.
    """
    config, model, group = task.config, task.model, task.group
    optimiser = adamw(model, config)
    window, guard = Window(), Guard(task.name, task.limits)
    step = _resume(task, work, optimiser, window, guard)
    stopped = False
    with Metrics(task.directory / METRICS, step, group.first) as metrics:
        while step < task.steps and not stopped:
            batch = window.waiting(task.source.__next__)
            rate = rate_at(step, task.steps, config)

            # -------------------------------------------------------------- one optimiser step
            now = replace(task, objective=task.objective.at(progress(step, task.steps)))
            loss = _forward_backward(now, batch, window, guard)
            norm = clip_gradients(model.parameters(), config.grad_clip)
            _require_finite(now, step, batch, loss, norm)
            set_rate(optimiser, rate)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1

            # -------------------------------------------------------------- once in a while
            stopped = guard.judge(step, group.gather)
            if step % config.run.log_every == 0 or step == task.steps or stopped:
                line = {
                    "step": step,
                    **window.flush(group.gather),
                    "grad_norm": norm.item(),
                    "rate": rate,
                }
                metrics.write(line)
                log.info("%s: %s", task.name, describe(line, task.steps))
            # A run that is to stop here must not resume behind this point.
            if step % config.run.checkpoint_every == 0 and not stopped:
                _save(task, work, optimiser, window, guard, step)
        return Outcome(step, metrics.last, stopped)


def _forward_backward(task: Task, batch: Batch, window: Window, guard: Guard) -> Tensor:
    """Accumulate the gradient of the mean loss over the positions of the step.

    Every process goes as often through the model as the one with the most micro-batches.

    Args:
        task: What is trained.
        batch: The share of this process in the step.
        window, guard: Take in the statistics.

    Returns:
        The share of this process in the mean loss.
    """
    parts = cut(batch, task.config.run.tokens_per_microbatch)
    shares = task.group.gather((batch.tokens, len(parts)))
    tokens, passes = sum(share[0] for share in shares), max(share[1] for share in shares)
    if tokens == 0:
        raise DataError(
            f"{task.name}: sequences {_some(_ids(task, batch))} have no response token left "
            "to train on. Raise `max_length` above the length of the prompts."
        )
    total = torch.zeros((), device=task.device)
    for part in parts:
        records = TorchRecords.from_batch(part, task.device)
        forward = partial(_forward, task, part, records, tokens)
        loss, stats = task.group.whole(task.model, forward)
        loss.backward()
        total += loss.detach()
        drift = None
        if task.limits is not None and records.ref_lp_T is not None:
            drift = ratio_sums(stats["logq"], records.ref_lp_T)
        window.add(stats, drift, len(part.prompt) + len(part.tok))
        guard.add(drift)
    for _ in range(passes - len(parts)):
        task.group.idle(task.model).backward()
    return total


def _forward(
    task: Task, part: Batch, records: TorchRecords, tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `_loss`, from the token ids on."""
    with torch.autocast(task.device.type, torch.bfloat16, task.dtype == torch.bfloat16):
        hidden_TD = response_hidden(task.model, part)
        return _loss(task, hidden_TD, lm_head(task.model), part, records, tokens)


def _loss(
    task: Task, hidden_TD: Tensor, head: Head, part: Batch, records: TorchRecords, tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share of one micro-batch in the mean loss over `tokens` positions, and its statistics."""
    rows = task.config.run.rows_per_chunk
    if task.teacher is None:
        return head_loss(
            hidden_TD,
            head,
            records,
            task.objective,
            rows_per_chunk=rows,
            normaliser=tokens,
            kernels=softmax_kernels(task.config.run.softmax, task.device),
        )
    return full_forward_kl(
        hidden_TD,
        head,
        part,
        task.teacher,
        temperature=task.objective.temperature,
        rows_per_chunk=rows,
        normaliser=tokens,
    )


def _require_finite(task: Task, step: int, batch: Batch, loss: Tensor, norm: Tensor) -> None:
    """Stop before the optimiser spoils the weights; all processes come to the same end."""
    if all(task.group.gather(bool(torch.isfinite(loss) & torch.isfinite(norm)))):
        return
    guilty = _not_finite_alone(task, batch)
    which = (
        f"caused by sequences {_some(guilty)}"
        if guilty
        else f"though no sequence of {_some(_ids(task, batch))} is at fault alone"
    )
    mean = sum(task.group.gather(loss.item()))
    raise EngineError(
        f"{task.name}: step {step + 1}: loss {mean:g}, gradient norm {norm.item():g}, "
        f"{which}. The step was not taken. Look at these sequences in the data; if nothing is "
        "wrong with them, lower `learning_rate`, warm up longer, or train in float32."
    )


def _not_finite_alone(task: Task, batch: Batch) -> list[int]:
    """Ids of the sequences of the step whose own loss or gradient is not finite."""
    guilty: list[int] = []
    for rank, count in enumerate(task.group.gather(len(batch))):
        for index in range(count):
            one = batch.select([index] if rank == task.group.rank else [])
            if not any(task.group.gather(one.tokens)):
                continue
            task.model.zero_grad(set_to_none=True)
            loss = _forward_backward(task, one, Window(), Guard(task.name, None))
            norm = clip_gradients(task.model.parameters(), 1.0)
            if not all(task.group.gather(bool(torch.isfinite(loss) & torch.isfinite(norm)))):
                guilty += _ids(task, one)
    return guilty


def _ids(task: Task, batch: Batch) -> list[int]:
    """Ids of the sequences in the shares of all processes."""
    return [name for share in task.group.gather(batch.seq_id.tolist()) for name in share]


def _some(items: list[int]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return f"{shown} and {len(items) - 8} more" if len(items) > 8 else shown


def _save(
    task: Task,
    work: Path,
    optimiser: torch.optim.Optimizer,
    window: Window,
    guard: Guard,
    step: int,
) -> None:
    state = checkpoint.capture(task.model, optimiser) | {
        "step": step,
        "source": dict(task.source.state_dict()),
        "window": window.state_dict(),
        "guard": guard.state_dict(),
    }
    if task.group.size == 1:
        checkpoint.save(work, task.identity, state)
    else:
        sharded_checkpoint.save(work, task.identity, state, task.group)
    if task.group.first:
        task.saved(work)


def _resume(
    task: Task, work: Path, optimiser: torch.optim.Optimizer, window: Window, guard: Guard
) -> int:
    """Put everything back as it was at the checkpoint; returns the steps already made."""
    if task.group.size == 1:
        state = checkpoint.load(work, task.identity)
    else:
        left = sharded_checkpoint.newest(work, task.identity, task.group)
        state = left and left.taken(task.group, reshard.places(task.model, optimiser))
    if state is None:
        return 0
    checkpoint.restore(state, task.model, optimiser)
    task.source.load_state_dict(state["source"])
    window.load_state_dict(state["window"], task.device)
    guard.load_state_dict(state["guard"], task.device)
    log.info("%s: continuing after step %d of %d", task.name, state["step"], task.steps)
    return state["step"]
