"""`sft-data`: the teacher answers the SFT prompts.

Answers are kept as drawn, end token included; wrong ones are kept and marked, and `sft.keep`
decides what is trained on. The set keeps a copy of the teacher's tokenizer: the student that learns
from it takes over its chat template and end token.
"""

from contextlib import AbstractContextManager

from stages.config.generation import SftData
from stages.engines.base import Generator
from stages.generation import Generation
from stages.job import Job, ShardSpec
from stages.models.descent import TOKENIZER
from stages.models.tokenizer import copy_tokenizer
from storage.manifest import Manifest, Part


def plan(job: Job[SftData]) -> list[ShardSpec]:
    """The parts of the set.

    Raises:
        DataError: the prompts (see `stages.data.prompts`) or the model's files cannot be used.
    """
    return _generation(job).plan()


def open_engine(job: Job[SftData]) -> AbstractContextManager[Generator]:
    """An engine with the teacher in it."""
    return _generation(job).open_engine()


def run_shard(job: Job[SftData], spec: ShardSpec, engine: Generator) -> Part:
    """Draw and write one part."""
    return _generation(job).run_shard(spec, engine)


def commit(job: Job[SftData]) -> Manifest:
    """The manifest; the set descends from the teacher that wrote it.

    Raises:
        RetryError: parts are missing.
    """
    generation = _generation(job)
    copies = copy_tokenizer(generation.model, job.directory / TOKENIZER)
    return generation.commit(copies)


def _generation(job: Job[SftData]) -> Generation:
    return Generation(job, job.inputs["teacher"])
