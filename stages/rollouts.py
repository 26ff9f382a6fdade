"""`rollouts`: pi_ref answers the OPD prompts.

Besides each token the set keeps what offline distillation needs of pi_ref: the log-probability with
which the token was really drawn, and pi_ref's likeliest ids at each position (the candidates, whose
teacher log-probability scoring will store exactly). The identity of the teacher pi_ref learnt from
is handed on.
"""

from contextlib import AbstractContextManager

from stages.config.generation import Rollouts
from stages.engines.base import Generator
from stages.generation import Generation
from stages.job import Job, ShardSpec
from storage.manifest import Manifest, Part


def plan(job: Job[Rollouts]) -> list[ShardSpec]:
    """The parts of the set, those of the held-out prompts last.

    Raises:
        DataError: the prompts (see `stages.data.prompts`) or the model's files cannot be used.
    """
    return _generation(job).plan()


def open_engine(job: Job[Rollouts]) -> AbstractContextManager[Generator]:
    """An engine with pi_ref in it."""
    return _generation(job).open_engine()


def run_shard(job: Job[Rollouts], spec: ShardSpec, engine: Generator) -> Part:
    """Draw and write one part."""
    return _generation(job).run_shard(spec, engine)


def commit(job: Job[Rollouts]) -> Manifest:
    """The manifest; the set descends from pi_ref's teacher.

    Raises:
        RetryError: parts are missing.
    """
    return _generation(job).commit()


def _generation(job: Job[Rollouts]) -> Generation:
    return Generation(job, job.inputs["model"], job.config.candidates, job.config.holdout)
