"""`train`: a student learns from the records. No teacher is loaded, unless `data = "live"`.

Inputs by role:

    init      the model to start from; absent when `init = "scratch"`
    data      records, or plain sequences for `cross_entropy`
    records   with `data = "live"` in its place: the prompts, their order and the record parameters
    teacher   with `data = "live"`: scores fresh samples of the student at every step

What can be known to be wrong is refused before a model is loaded: an objective the records cannot
serve, other token ids, another teacher than the one pi_ref descends from.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config import Drift, Student
from stages.identity import (
    check_teacher,
    check_tokenizer,
    local_directory,
    model_identity,
    tokenizer_hash,
)
from stages.job import Input, Job
from stages.models import load_model, load_tokenizer, pick_device
from stages.objectives.build import build_objective
from stages.objectives.contract import guarantee
from stages.training.agreement import check_agreement
from stages.training.architecture import new_model
from stages.training.data import Source, step_count
from stages.training.fit import Ingredients, data_stream, fit
from stages.training.inputs import (
    data_tokenizer,
    generator_weights,
    manifest_of_model,
    tokenizer_directory,
)
from stages.training.live import LiveSource
from storage.manifest import Manifest, read_manifest

log = logging.getLogger(__name__)


def run(job: Job[Student]) -> Manifest:
    """Check, load, train, write the student into the set.

    Raises:
        ConfigError: the records cannot serve the objective.
        DataError: tokenizer or teacher do not match, or an input is unreadable.
        EngineError: trainer and engine disagree about pi_ref, or training diverged.
    """
    config = job.config
    directory = _data(job).directory
    data = read_manifest(directory)
    promise = guarantee(config.objective, data.meta)
    log.info("%s: %s is %s: %s", job.name, config.objective.name, promise.level, promise.reason)
    init = local_directory(job.inputs["init"]) if "init" in job.inputs else None
    if init is not None:
        _check_descent(job, init, directory, data)
    tokenizer_from = init or tokenizer_directory(directory, None)
    dtype = _dtype(job, data)
    model = _start(job, init, tokenizer_from)
    agreed = None if init is None else _agreement(job, model, init, directory, data, dtype)
    with _source(job, model, directory, data, dtype) as source:
        return fit(
            job,
            Ingredients(
                model=model,
                source=source,
                steps=step_count(config, source.steps_per_epoch),
                objective=build_objective(config.objective),
                data=data,
                tokenizer_from=tokenizer_from,
                dtype=dtype,
                limits=_limits(config),
                meta={
                    "objective": config.objective.model_dump(),
                    "guarantee": promise.to_json(),
                    "agreement": agreed,
                    "live": config.data == "live",
                },
            ),
        )


def _data(job: Job[Student]) -> Input:
    return job.inputs["records" if job.config.data == "live" else "data"]


def _check_descent(job: Job[Student], init: Path, directory: Path, data: Manifest) -> None:
    """The same token ids on both sides, and the same teacher behind both."""
    check_tokenizer(
        data_tokenizer(directory, data), tokenizer_hash(init), str(directory), str(init)
    )
    if data.teacher is None:
        return
    made_here = manifest_of_model(init)
    expected = made_here.teacher if made_here else None
    check_teacher(expected, data.teacher, str(init), job.config.consistency)


def _limits(config: Student) -> Drift | None:
    """Maximum likelihood does not ask who wrote the data, all other objectives do."""
    return None if config.objective.name == "cross_entropy" else config.drift


def _dtype(job: Job[Student], data: Manifest) -> torch.dtype:
    """That of the model to start from; a student from scratch takes the teacher's."""
    if "init" in job.inputs:
        return getattr(torch, job.inputs["init"].dtype)
    return getattr(torch, str((data.teacher or {}).get("dtype") or "float32"))


def _start(job: Job[Student], init: Path | None, tokenizer_from: Path) -> PreTrainedModel:
    device = pick_device(job.config.run.device)
    if init is not None:
        return load_model(init, "float32", device)
    assert job.config.architecture is not None, "the plan has looked"
    return new_model(job.config.architecture, load_tokenizer(tokenizer_from), job.seed, device)


def _agreement(
    job: Job[Student],
    model: PreTrainedModel,
    init: Path,
    directory: Path,
    data: Manifest,
    dtype: torch.dtype,
) -> float | None:
    """Trainer against engine, where the student starts as the model that wrote the data."""
    own = model_identity(init, job.inputs["init"].dtype).weights
    if own != generator_weights(data):
        log.info("%s: %s did not write the data; nothing to compare with", job.name, init)
        return None
    chunk = job.config.run.rows_per_chunk
    return check_agreement(model, directory, data.meta, dtype=dtype, rows_per_chunk=chunk)


@contextmanager
def _source(
    job: Job[Student],
    model: PreTrainedModel,
    directory: Path,
    data: Manifest,
    dtype: torch.dtype,
) -> Iterator[Source]:
    """The stored records, or fresh ones from the live teacher for the same prompts."""
    with closing(data_stream(job, directory)) as stored:
        if job.config.data != "live":
            yield stored
            return
        teacher = job.inputs["teacher"]
        where = local_directory(teacher)
        found: dict[str, Any] = model_identity(where, teacher.dtype).to_json()
        check_teacher(data.teacher, found, str(directory), job.config.consistency)
        yield LiveSource(
            prompts=stored,
            student=model,
            teacher=load_model(where, teacher.dtype, model.device),
            meta=data.meta,
            seed=job.seed,
            dtype=dtype,
            rows_per_chunk=job.config.run.rows_per_chunk,
            tokens_per_batch=job.config.run.tokens_per_microbatch,
        )
