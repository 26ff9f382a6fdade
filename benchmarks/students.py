"""Students trained in one process: for what is measured at steps of a training.

Responses, records, losses, optimiser and schedule are those of the stages; what is left out are
sets, checkpoints and logs.
"""

import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.evaluation import Evaluate
from stages.config.record_kinds import Record
from stages.config.training import Training
from stages.counter import hash64
from stages.data.prompts import load_prompts
from stages.data.verifiers import open_verifier
from stages.engines.base import Request, sequence_seed
from stages.engines.transformers_engine import TransformersGenerator
from stages.losses.position_loss import PositionLoss
from stages.models.facts import model_facts
from stages.models.model import lm_head, load_tokenizer, response_hidden
from stages.objectives.tensors import TorchRecords
from stages.training.live import LiveSource
from stages.training.microbatches import cut
from stages.training.optim import adamw, clip_gradients, progress, rate_at, set_rate
from storage.batch import Batch
from storage.manifest import read_manifest
from storage.schema import OUTCOME
from storage.stream import Stream

ROWS_PER_CHUNK, TOKENS_PER_BATCH = 1024, 1 << 14
"""Execution of scoring; positions whose logits exist at the same time in a loss."""
_TOKENS_PER_PASS = 1 << 13
"""Of training: as much as a core's cache bears."""


def responses(
    prompts: Path,
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    facts_of: Path,
    *,
    batch_size: int,
    seed: int,
    record: Record | None = None,
    plain: bool = False,
) -> Iterator[Batch]:
    """Endless fresh responses of `model` as it is at the time, scored by the teacher.

    Args:
        prompts: The set of records whose prompts are answered, pass after pass, and that says how
            responses are sampled.
        model: Who answers.
        teacher: Who scores.
        facts_of: A directory with the tokenizer and the end tokens of `model`.
        batch_size: Responses in a batch.
        seed: Of prompts, responses and records.
        record: Kind of the records; default that of the set.
        plain: Leave the records out.
    """
    meta = read_manifest(prompts).meta
    if record is not None:
        meta = {**meta, "record": record.described()}
    with closing(Stream(prompts, seed=seed, batch_size=batch_size)) as stream:
        yield from _endless(
            LiveSource(
                prompts=stream,
                student=model,
                facts=model_facts(facts_of),
                teacher=teacher,
                meta=meta,
                seed=seed,
                dtype=torch.float32,
                rows_per_chunk=ROWS_PER_CHUNK,
                tokens_per_batch=TOKENS_PER_BATCH,
                plain=plain,
                tokenizer=facts_of,
            )
        )


def _endless(source: LiveSource) -> Iterator[Batch]:
    while True:
        yield next(source)


def train(
    student: PreTrainedModel, batches: Iterator[Batch], loss: PositionLoss, config: Training
) -> Iterator[int]:
    """Train for `config.steps` steps on a batch each, on the schedule of the stage `train`.

    Yields:
        The number of steps that are done: 0, 1, 2, ... A caller looks at the student meanwhile.
    """
    assert config.steps is not None, "given by the caller"
    student.requires_grad_(True)
    optimiser = adamw(student, config)
    for step in range(config.steps):
        yield step
        batch = next(batches)
        now = loss.at(progress(step, config.steps))
        for part, _ in cut(batch, _TOKENS_PER_PASS):
            hidden_TD = response_hidden(student, part)
            records = TorchRecords.from_batch(part)
            share, _ = now(hidden_TD, lm_head(student), part, records, None, batch.tokens)
            share.backward()
        clip_gradients(student.parameters(), config.grad_clip)
        set_rate(optimiser, rate_at(step, config.steps, config))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    yield config.steps


class Exam:
    """The questions of a table `evaluate`, the same for all models that share a tokenizer.

    Args:
        config: Prompts, sampling and verifier.
        tokenizer: A directory with tokenizer and end tokens.
        seed: Of the answers, drawn as the stage `evaluate` draws them.
    """

    def __init__(self, config: Evaluate, tokenizer: Path, seed: int) -> None:
        assert config.prompts is not None, "there are questions"
        self._config = config
        self._prompts = load_prompts(config.prompts, tokenizer)
        self._facts, self._tokenizer = model_facts(tokenizer), load_tokenizer(tokenizer)
        self._directory = tokenizer
        self._seed = int(hash64(seed, zlib.crc32(b"evaluate"))[0])

    def accuracy(self, model: PreTrainedModel) -> float:
        """Share of right ones among the sampled answers, one to each question."""
        longest = self._prompts.longest + self._config.sampling.max_tokens
        context = min(longest, self._facts.context or longest)
        engine = TransformersGenerator(
            model, self._facts, context, len(self._prompts), self._directory
        )
        requests = (
            Request(i, one.ids, sequence_seed(self._seed, i)) for i, one in enumerate(self._prompts)
        )
        made = sorted(engine.generate(requests, self._config.sampling), key=lambda one: one.seq_id)
        texts = [
            str(self._tokenizer.decode(one.tok.tolist(), skip_special_tokens=True)) for one in made
        ]
        with open_verifier(self._config.verifier) as check:
            outcomes = check(
                texts, list(self._prompts.answers), [one.finish == "length" for one in made]
            )
        return float(np.mean(outcomes == OUTCOME["right"]))
