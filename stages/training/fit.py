"""From a loaded model and a source of batches to a finished set: what all training stages share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config import Drift, Training
from stages.job import Job
from stages.models.model import lm_head
from stages.objectives.full_teacher import FullTeacher
from stages.objectives.tensors import ObjectiveFunction
from stages.training import checkpoint, remote_checkpoint
from stages.training.group import current
from stages.training.loop import Outcome, Task, train
from stages.training.metrics import METRICS, Line
from stages.training.microbatches import Source
from stages.training.output import model_manifest, write_model
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest
from storage.stream import Keep, Stream

_TIMES = ("tokens_per_second", "waiting")


@dataclass(frozen=True)
class Ingredients:
    """What a stage brings to the common loop."""

    model: PreTrainedModel
    """Float32, on the device it is trained on."""
    source: Source
    steps: int
    """Optimiser steps; none leaves the model as it starts."""
    objective: ObjectiveFunction
    """Reads the records of the source, unless there is a `teacher`."""
    data: Manifest
    """Of the set that is read; its digest binds the checkpoints."""
    tokenizer_from: Path
    """Directory whose tokenizer files the model is saved with."""
    dtype: torch.dtype
    """Of the saved weights; bfloat16 also trains under autocast."""
    teacher: FullTeacher | None = None
    """Of which the whole distribution is read: forward KL at the objective's temperature."""
    limits: Drift | None = None
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Goes into the manifest beside what training itself has to say."""


def data_stream(job: Job[Any], directory: Place, keep: Keep | None = None) -> Stream:
    """The training split of the set in `directory`, in the order `job.seed` gives.

    Of every step, the share of this process.
    """
    config: Training = job.config
    group = current()
    return Stream(
        directory,
        seed=job.seed,
        batch_size=config.batch_size,
        rank=group.rank,
        world_size=group.size,
        prefetch=config.run.prefetch,
        max_length=config.max_length,
        keep=keep,
    )


def fit(job: Job[Any], made_of: Ingredients) -> Manifest:
    """Train, write the model into `job.directory`, and describe it; resumable at any point.

    Of several processes the first one holds the workspace and writes model and manifest; the
    others are handed the same manifest.

    Raises:
        DataError, EngineError, RetryError: as `loop.train` and `output.write_model`.
    """
    config: Training = job.config
    model, group = made_of.model, current()
    _check_vocabulary(model, made_of.data)
    torch.manual_seed(job.seed + group.rank)
    model.train()
    if config.run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    task = Task(
        name=job.name,
        identity={"key": job.key, "data": made_of.data.digest},
        directory=job.site,
        model=model,
        source=made_of.source,
        objective=made_of.objective,
        teacher=made_of.teacher,
        config=config,
        steps=made_of.steps,
        limits=made_of.limits,
        device=model.device,
        dtype=made_of.dtype,
        group=group,
        saved=partial(remote_checkpoint.send_checkpoint, job),
    )
    manifest: Manifest | None = None
    with checkpoint.workspace(job.site, group) as work:
        if group.first:
            remote_checkpoint.fetch_checkpoint(job, work)
        group.share(None)
        outcome = train(task, work)
        whole = group.export(model, made_of.dtype)
        if whole is not None:
            files = write_model(whole, job.site, made_of.tokenizer_from, made_of.dtype, work)
            manifest = model_manifest(
                job,
                [*files, METRICS],
                {**made_of.meta, **_story(task, outcome)},
                made_of.data.teacher,
            )
            manifest = remote_checkpoint.send_model(job, manifest)
            checkpoint.discard(work)
        made = group.share(manifest)
    assert made is not None, "the first process has the whole model"
    return made


def _check_vocabulary(model: PreTrainedModel, data: Manifest) -> None:
    """Every id in the data must have a row in the head; equal tokenizers do not quite say that."""
    rows, needed = lm_head(model).weight.shape[0], data.meta.get("vocab_size")
    if needed is not None and int(needed) > rows:
        raise DataError(
            f"{data.name}: its vocabulary has {needed} ids, but the model's head has {rows} rows. "
            "Use a model with a vocabulary at least as large as the teacher's."
        )


def _story(task: Task, outcome: Outcome) -> dict[str, Any]:
    """What happened, for the manifest: without times, which are not the model's."""
    last: Line = {name: value for name, value in outcome.last.items() if name not in _TIMES}
    return {
        "steps": outcome.steps,
        "planned_steps": task.steps,
        "stopped_by_drift": outcome.stopped,
        "parameters": sum(weight.numel() for weight in task.model.parameters()),
        "dtype": str(task.dtype).removeprefix("torch."),
        "last": last,
    }
