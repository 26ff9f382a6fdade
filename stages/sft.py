"""`sft`: the student learns from the teacher's own answers. The result is pi_ref.

It writes the rollouts and is where `train` starts, and it carries the teacher's identity on:
offline distillation is only right when the teacher of this stage is the one that scores
(arXiv 2604.13010, theorem 3.8).
"""

from contextlib import closing
from functools import partial

import torch

from stages.config.training import Sft
from stages.job import Job
from stages.losses.head_loss import RecordLoss
from stages.models.descent import data_tokenizer, tokenizer_directory
from stages.models.identity import check_tokenizer, local_directory, tokenizer_of
from stages.models.model import load_model, pick_device
from stages.objectives.likelihood import CrossEntropy
from stages.training.distributed import current
from stages.training.fit import data_stream, fit
from stages.training.loop import Task
from stages.training.microbatches import step_count
from storage.manifest import Manifest


def run(job: Job[Sft]) -> Manifest:
    """Fine-tune the base model on the sequences, write it into the set.

    The student leaves with the teacher's tokenizer files: the same ids, but the teacher's chat
    template and end token, which are the ones in the data.

    Raises:
        DataError: base and sequences have different tokenizers, or an input is unreadable.
        EngineError: training diverged.
    """
    config, source_set = job.config, job.inputs["sequences"].directory
    base = local_directory(job.inputs["base"])
    data = job.inputs["sequences"].manifest
    check_tokenizer(
        data_tokenizer(source_set, data), tokenizer_of(base), str(source_set), str(base)
    )
    dtype = getattr(torch, job.inputs["base"].dtype)
    model = current().build(
        partial(load_model, base, "float32"), pick_device(config.run.device), dtype
    )
    with closing(data_stream(job, source_set, config.keep)) as source:
        return fit(
            Task(
                job=job,
                model=model,
                source=source,
                steps=step_count(config, source.steps_per_epoch),
                loss=RecordLoss(CrossEntropy(), config.run.rows_per_chunk),
                data=data,
                tokenizer_from=tokenizer_directory(source_set, base),
                dtype=dtype,
            )
        )
