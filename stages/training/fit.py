"""From a loaded model and a source of batches to a finished set: what all training stages share."""

from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config.training import Training
from stages.job import Job
from stages.models.model import lm_head
from stages.training import checkpoint, remote_checkpoint
from stages.training.distributed import current
from stages.training.loop import RunOutcome, Task, train
from stages.training.metrics import METRICS, Line
from stages.training.output import model_manifest, write_model
from storage.copies import NEXT_ROUND
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest
from storage.stream import Keep, Stream

_TIMES = ("tokens_per_second", "waiting")


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


def fit(task: Task) -> Manifest:
    """Train, write the model into the set and describe it; resumable at any point.

    Rank 0 holds the workspace and writes model and manifest; every rank returns the manifest.

    Raises:
        DataError, EngineError, RetryError: as `loop.train` and `output.write_model`.
    """
    job, model, group = task.job, task.model, current()
    _check_vocabulary(model, task.data)
    torch.manual_seed(job.seed + group.rank)
    model.train()
    if task.config.run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    manifest: Manifest | None = None
    with checkpoint.workspace(job.site, group) as work:
        if group.first:
            remote_checkpoint.fetch_checkpoint(job, work)
        group.broadcast(None)
        outcome = train(task, work)
        full = group.full_model(model, task.dtype)
        if full is not None:
            files = write_model(full, job.site, task.tokenizer_from, task.dtype, work)
            handed_on = checkpoint.files_of(job.site / NEXT_ROUND)
            meta = {**task.meta, **_story(task, outcome)}
            manifest = model_manifest(job, [*files, METRICS, *handed_on], meta, task.data.teacher)
            manifest = remote_checkpoint.send_model(job, manifest)
            checkpoint.discard(work)
        made = group.broadcast(manifest)
    assert made is not None, "rank 0 has the full model"
    return made


def _check_vocabulary(model: PreTrainedModel, data: Manifest) -> None:
    """Every id in the data must have a row in the head; equal tokenizers do not quite say that."""
    rows, needed = lm_head(model).weight.shape[0], data.meta.get("vocab_size")
    if needed is not None and int(needed) > rows:
        raise DataError(
            f"{data.name}: its vocabulary has {needed} ids, but the model's head has {rows} rows. "
            "Use a model with a vocabulary at least as large as the teacher's."
        )


def _story(task: Task, outcome: RunOutcome) -> dict[str, Any]:
    """What happened, for the manifest: without times, which are not the model's."""
    last: Line = {name: value for name, value in outcome.last.items() if name not in _TIMES}
    return {
        "steps": outcome.steps,
        "planned_steps": task.steps,
        "stopped_by_drift": outcome.stopped,
        **({"round": task.round.number} if task.round.of > 1 else {}),
        **({"drifted": True} if outcome.drifted else {}),
        "parameters": sum(weight.numel() for weight in task.model.parameters()),
        "dtype": str(task.dtype).removeprefix("torch."),
        "last": last,
    }
