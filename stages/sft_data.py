"""`sft-data`: the teacher answers the SFT prompts.

Answers are kept as drawn, end token included; wrong ones are kept and marked, and `sft.keep`
decides what is trained on. The set keeps a copy of the teacher's tokenizer: the student that learns
from it takes over its chat template and end token.
"""

from stages import generation
from stages.config.generation import Rollouts, SftData
from stages.generation import Generation, open_engine, plan, run_shard
from stages.job import Job
from stages.models.descent import TOKENIZER
from stages.models.tokenizer import copy_tokenizer
from storage.manifest import Manifest

__all__ = ["commit", "open_engine", "plan", "run_shard"]


def commit(job: Job[SftData | Rollouts]) -> Manifest:
    """The manifest; the set descends from the teacher that wrote it.

    Raises:
        RetryError: parts are missing.
    """
    copies = copy_tokenizer(Generation(job).model, job.directory / TOKENIZER)
    return generation.commit(job, copies)
