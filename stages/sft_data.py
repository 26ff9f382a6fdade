"""`sft-data`: the teacher answers the SFT prompts.

Answers are kept as drawn, end token included; wrong ones are kept and marked, and `sft.keep`
decides what is trained on. The set keeps a copy of the teacher's tokenizer: the student that learns
from it takes over its end token and its chat template, or that of `template.file`.
"""

from stages import generation
from stages.config.generation import Rollouts, SftData
from stages.data.chat_template import read_template
from stages.generation import Generation, open_engine, plan, run_shards
from stages.job import Job
from stages.models.descent import TOKENIZER
from stages.models.tokenizer import TEMPLATE, copy_tokenizer
from storage.files.write import create_once
from storage.manifest import Manifest

__all__ = ["commit", "open_engine", "plan", "run_shards"]


def commit(job: Job[SftData | Rollouts]) -> Manifest:
    """The manifest; the set descends from the teacher that wrote it.

    Raises:
        RetryError: parts are missing.
    """
    target = job.directory / TOKENIZER
    own = read_template(job.config.prompts.template)
    if own is not None:
        target.mkdir(parents=True, exist_ok=True)
        create_once(target / TEMPLATE, own.encode())
    copies = copy_tokenizer(Generation(job).model, target)
    if own is not None and target / TEMPLATE not in copies:
        copies.append(target / TEMPLATE)
    return generation.commit(job, copies)
