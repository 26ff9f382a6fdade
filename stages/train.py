"""`train`: a student learns from the records. No teacher is loaded, unless `data = "live"`.

Inputs by role:

    init      the model to start from; absent when `init = "scratch"`
    data      records, or plain sequences for `cross_entropy`
    records   with `data = "live"` in its place: the prompts, their order and the record parameters
    teacher   with `data = "live"`: scores fresh samples of the student at every step, or a corpus

What can be known to be wrong is refused before a model is loaded: an objective the records cannot
serve, other token ids, another teacher than the one pi_ref descends from.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.config.objectives import Drift
from stages.config.training import Student
from stages.job import Job
from stages.losses.full_teacher import FullTeacher, FullTeacherLoss
from stages.losses.head_loss import RecordLoss
from stages.losses.position_loss import PositionLoss
from stages.models.architecture import new_model
from stages.models.descent import (
    check_prompts_shared,
    data_tokenizer,
    generator_weights,
    manifest_of_model,
    tokenizer_directory,
)
from stages.models.facts import ModelFacts, model_facts
from stages.models.identity import (
    DigestCache,
    check_teacher,
    check_tokenizer,
    identify,
    local_directory,
    model_identity,
    tokenizer_of,
)
from stages.models.model import context_length, load_model, load_tokenizer, pick_device
from stages.objectives.contract import guarantee, guarantee_in_full
from stages.objectives.objective import Guarantee
from stages.objectives.temper import build_objective
from stages.training.agreement import Agreement, check_agreement
from stages.training.distributed import current
from stages.training.fit import data_stream, fit
from stages.training.live import LiveSource
from stages.training.loop import Task
from stages.training.microbatches import BatchSource, step_count
from stages.training.rounds import Round
from stages.weights.rates import has_outcomes, read_groups, read_rates
from stages.weights.step import Weighting
from storage.errors import ConfigError
from storage.files.place import Place
from storage.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Checked:
    """The inputs of a job after everything that can be refused without a model was."""

    job: Job[Student]
    directory: Place
    """Of the data."""
    data: Manifest
    promise: Guarantee
    init: Path | None
    """Model to start from; None: from scratch."""
    tokenizer_from: Path
    dtype: torch.dtype
    weighting: Weighting | None
    """How much each position counts; None: all the same."""

    @property
    def digests(self) -> DigestCache:
        """Remembered digests of weight files."""
        return DigestCache(self.job.store.digests)


def run(job: Job[Student]) -> Manifest:
    """Check, load, train, write the student into the set.

    Raises:
        ConfigError: the records cannot serve the objective, or the run cannot be done live.
        DataError: tokenizer or teacher do not match, or an input is unreadable.
        EngineError: trainer and engine disagree about pi_ref, or training diverged.
    """
    known = _check(job)
    config = job.config
    model = _start(known)
    agreed = _agreement(known, model)
    teacher = _live_teacher(known, model.device) if config.data == "live" else None
    with _source(known, model, teacher) as source:
        return fit(
            Task(
                job=job,
                model=model,
                source=source,
                steps=step_count(config, source.steps_per_epoch),
                loss=_loss(known, teacher),
                weighting=known.weighting,
                data=known.data,
                tokenizer_from=known.tokenizer_from,
                dtype=known.dtype,
                limits=_limits(known),
                round=Round.of_job(job),
                meta={
                    "objective": config.objective.model_dump(),
                    "guarantee": known.promise.to_json(),
                    "agreement": agreed.mean if agreed else None,
                    **({"agreement_largest": agreed.largest} if agreed else {}),
                    "live": config.data == "live",
                    "full": config.reads_all,
                    **_described(config),
                },
            )
        )


def _check(job: Job[Student]) -> _Checked:
    """Everything that needs no model: the legality contract, token ids, descent."""
    source = job.inputs["records" if job.config.data == "live" else "data"]
    directory, data = source.directory, source.manifest
    if job.config.data == "live":
        check_prompts_shared(directory, data)
        if current().size > 1:
            raise ConfigError(
                f'{job.name}: data = "live" runs in one process: the student writes fresh '
                "responses between the steps, which it cannot do while its weights are "
                "sharded. Set run.processes = 1, or train on stored records."
            )
    promise = (
        guarantee_in_full(job.config.weights)
        if job.config.reads_all
        else guarantee(
            job.config.objective, data.meta, _passes(job.config, data), job.config.weights
        )
    )
    log.info(
        "%s: %s on %s is %s: %s%s",
        job.name,
        job.config.objective.name,
        directory.name,
        promise.level,
        promise.reason,
        f". Note: {promise.note}" if promise.note else "",
    )
    init = local_directory(job.inputs["init"]) if "init" in job.inputs else None
    if init is not None:
        _check_descent(job, init, directory, data)
        tokenizer_from, dtype = init, job.inputs["init"].dtype
    else:
        # From scratch: ids are the data's, and nothing but the teacher suggests a precision.
        tokenizer_from = tokenizer_directory(directory, None)
        dtype = str((data.teacher or {}).get("dtype") or "float32")
    weighting = _weighting(job, directory)
    return _Checked(
        job, directory, data, promise, init, tokenizer_from, getattr(torch, dtype), weighting
    )


def _passes(config: Student, data: Manifest) -> float | None:
    """How often each sequence will be read; None where every step has fresh ones."""
    if config.data == "live":
        return None
    if config.epochs is not None:
        return config.epochs
    sequences = sum(part.sequences for part in data.parts if part.split == "train")
    return (config.steps or 0) * config.batch_size / max(1, sequences)


def _check_descent(job: Job[Student], init: Path, directory: Place, data: Manifest) -> None:
    """The same token ids on both sides, and the same teacher behind both."""
    ids = data_tokenizer(directory, data)
    check_tokenizer(ids, tokenizer_of(init), str(directory), str(init))
    if data.teacher is None:
        return
    if (data.meta.get("record") or {}).get("correction"):
        log.info("%s: corrected for a teacher that %s need not descend from", directory, init)
        return
    made_here = manifest_of_model(init)
    expected = made_here.teacher if made_here else None
    check_teacher(expected, data.teacher, str(init), job.config.consistency)


def _described(config: Student) -> dict[str, object]:
    """The weights as the manifest holds them; nothing where there are none."""
    if not config.weights:
        return {}
    tables = [weight.model_dump() for weight in config.weights]
    return {"weights": tables, "normalise": config.normalise}


def _weighting(job: Job[Student], directory: Place) -> Weighting | None:
    """The weights of the run, with the pass rates of the set where one of them reads these.

    Raises:
        ConfigError: weights or terms read outcomes, and there are none.
        DataError: prompts have no pass rate.
    """
    config = job.config
    readers = [
        f"weight `{one.name}`" for one in config.weights if one.reads_outcome or one.reads_rates
    ]
    readers += [
        f"objective `{one.name}`"
        if getattr(one, "on", "all") == "all"
        else f"term `{one.name}` by `on`"
        for one in config.objective.losses
        if one.reads_outcome
    ]
    if readers and (config.data == "live" or not has_outcomes(directory)):
        where = 'fresh responses (`data = "live"`)' if config.data == "live" else str(directory)
        raise ConfigError(
            f"{job.name}: {', '.join(readers)}: reads whether a response is right, but {where} "
            "has no outcomes. Give the rollouts a verifier and prompts with answers, or "
            "remove that option."
        )
    if not config.weights:
        return None
    rates = read_rates(directory) if any(one.reads_rates for one in config.weights) else None
    groups = read_groups(directory, config.weights)
    return Weighting(config.weights, config.normalise, job.seed, rates, groups)


def _loss(known: _Checked, teacher: FullTeacher | None) -> PositionLoss:
    """From records by the objective, or from the whole distribution of the live teacher."""
    config = known.job.config
    if teacher is not None and config.reads_all:
        return FullTeacherLoss(teacher, config.objective.temperature, config.run.rows_per_chunk)
    objective = build_objective(config.objective, known.data.meta.get("record"))
    return RecordLoss(objective, config.run.rows_per_chunk)


def _limits(known: _Checked) -> Drift | None:
    """Objectives that read no teacher do not ask who wrote the data; all others do.

    At another temperature than the responses were sampled at, the two policies differ from the
    first step on, which is no reason to warn.
    """
    config = known.job.config
    if not any(loss.reads_teacher for loss in config.objective.losses):
        return None
    sampled = (known.data.meta.get("sampling") or {}).get("temperature", 1.0)
    if config.objective.temperature != sampled:
        return config.drift.model_copy(update={"warn": None})
    return config.drift


def _start(known: _Checked) -> PreTrainedModel:
    """The student before its first step, in float32."""
    config = known.job.config
    device = pick_device(config.run.device)
    if known.init is not None:
        make = partial(load_model, known.init, "float32")
    elif config.architecture is None:
        raise ConfigError('train.init = "scratch" needs a [train.architecture] table for its shape')
    else:
        tokenizer = load_tokenizer(known.tokenizer_from)
        make = partial(new_model, config.architecture, tokenizer, known.job.seed)
    return current().build(make, device, known.dtype)


def _agreement(known: _Checked, model: PreTrainedModel) -> Agreement | None:
    """Trainer against engine, where the student starts as the model that wrote the data."""
    if known.init is None:
        return None
    own = model_identity(known.init, known.job.inputs["init"].dtype, known.digests)
    if own.weights != generator_weights(known.data):
        log.info("%s: another model wrote the data, nothing to compare with", known.job.name)
        return None
    return check_agreement(
        model,
        known.directory,
        known.data.meta,
        vocab_size=model_facts(known.init).vocab_size,
        dtype=known.dtype,
        rows_per_chunk=known.job.config.run.rows_per_chunk,
        group=current(),
    )


@contextmanager
def _source(
    known: _Checked, model: PreTrainedModel, teacher: FullTeacher | None
) -> Iterator[BatchSource]:
    """The stored records, or fresh ones for the same prompts from the live teacher."""
    with closing(data_stream(known.job, known.directory)) as stored:
        if teacher is None:
            yield stored
            return
        run = known.job.config.run
        yield LiveSource(
            prompts=stored,
            student=model,
            facts=_facts(known, model),
            teacher=teacher.model,
            meta=known.data.meta,
            seed=known.job.seed,
            dtype=known.dtype,
            rows_per_chunk=run.rows_per_chunk,
            tokens_per_batch=run.tokens_per_microbatch,
            plain=known.job.config.reads_all,
            tokenizer=known.tokenizer_from,
        )


def _live_teacher(known: _Checked, device: torch.device) -> FullTeacher:
    """The teacher that made the stored records, and no other."""
    teacher = known.job.inputs["teacher"]
    directory, found = identify(teacher, known.digests)
    where, consistency = str(known.directory), known.job.config.consistency
    check_teacher(known.data.teacher, found.to_json(), where, consistency)
    return FullTeacher.load(directory, teacher.dtype, device)


def _facts(known: _Checked, model: PreTrainedModel) -> ModelFacts:
    """Where an engine would end a response of the student."""
    if known.init is not None:
        return model_facts(known.init)
    end = load_tokenizer(known.tokenizer_from).eos_token_id
    ends = (end,) if isinstance(end, int) else ()
    rows = model.config.vocab_size
    return ModelFacts(rows, rows, context_length(model), ends)
