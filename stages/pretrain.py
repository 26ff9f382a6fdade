"""`pretrain`: a small model from scratch on a corpus. The demo makes its teacher and base so."""

from contextlib import closing
from functools import partial

import torch

from stages.config.training import Pretrain
from stages.job import Job
from stages.losses.head_loss import RecordLoss
from stages.models.architecture import new_model
from stages.models.descent import tokenizer_directory
from stages.models.model import load_tokenizer, pick_device
from stages.objectives.likelihood import CrossEntropy
from stages.training.distributed import current
from stages.training.fit import data_stream, fit
from stages.training.loop import Task
from stages.training.microbatches import step_count
from storage.manifest import Manifest


def run(job: Job[Pretrain]) -> Manifest:
    """Build the model, train it on the corpus unless `init_only`, write it into the set.

    Raises:
        ConfigError: the architecture is impossible.
        DataError: the corpus is unreadable.
        EngineError: training diverged.
    """
    config = job.config
    corpus = job.inputs["corpus"].directory
    tokenizer_from = tokenizer_directory(corpus, None)
    dtype = getattr(torch, config.dtype)
    model = current().build(
        partial(new_model, config.architecture, load_tokenizer(tokenizer_from), job.seed),
        pick_device(config.run.device),
        dtype,
    )
    with closing(data_stream(job, corpus)) as source:
        return fit(
            Task(
                job=job,
                model=model,
                source=source,
                steps=0 if config.init_only else step_count(config, source.steps_per_epoch),
                loss=RecordLoss(CrossEntropy(), config.run.rows_per_chunk),
                data=source.manifest,
                tokenizer_from=tokenizer_from,
                dtype=dtype,
            )
        )
