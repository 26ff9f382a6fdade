"""Shared by `sft-data` and `rollouts`: samples responses to prompts, part by part.

A set holds `n` responses to each prompt. Its order is sample-major over a seeded permutation of the
prompts, so that a part, and any prefix of the set, holds many prompts rather than many responses to
few. Held-out prompts come last, in parts of their own. Prompt and sample give a sequence its id
(`seq_id = prompt_id * n + sample`), and id and seed decide what is drawn: the set does not depend
on the number of workers or on interruptions.
"""

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import progress
from stages.config.candidates import Candidates, candidates_meta, most_candidates
from stages.config.data import PromptSource
from stages.config.generation import FORMER_PART, Rollouts, SftData
from stages.counter import hash64, shuffled
from stages.data.chat_template import template_digests
from stages.data.prompts import Prompt, Prompts, load_prompts
from stages.data.verifiers import Check, open_verifier
from stages.engines.base import (
    Completion,
    Generator,
    Request,
    candidate_columns,
    check_finite,
    needed_context,
    sequence_seed,
)
from stages.engines.open import open_generator
from stages.engines.stop_strings import text_before
from stages.job import Input, Job, ShardSpec
from stages.models.descent import manifest_of_model
from stages.models.facts import ModelFacts, model_facts
from stages.models.identity import (
    TOKENIZER_FIELDS,
    DigestCache,
    ModelIdentity,
    in_footer,
    local_directory,
    model_identity,
)
from stages.models.tokenizer import load_tokenizer
from stages.parts import check_split, plan_parts
from stages.skipping import Skipped, skipped_of_set
from storage.errors import EngineError, SequenceError
from storage.files.place import Place
from storage.manifest import Manifest, Part, SetMeta
from storage.rows import Rows
from storage.schema import FINISH
from storage.sets import commit_parts, finish_counts, outcome_counts
from storage.shard import PartWriter

log = logging.getLogger(__name__)

_BLOCK = 64
"""Sequences verified and written together."""
_CUT = 0.1
"""Share of responses cut at the limit from which on the user is warned."""


@dataclass(frozen=True)
class SampleOrder:
    """The order of a set: which prompt and sample its i-th sequence is."""

    prompts: int
    held_out: int
    """Prompts of split `holdout`: the last of the permutation."""
    n: int
    seed: int

    @property
    def boundary(self) -> int:
        """Sequences of split `train`; those of `holdout` follow."""
        return (self.prompts - self.held_out) * self.n

    def places(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of the prompt and of the sample of sequences `first` to `first + count`."""
        index = np.arange(first, first + count)
        trained = self.prompts - self.held_out
        inside = index < self.boundary
        per_sample = np.where(inside, max(trained, 1), max(self.held_out, 1))
        sample, rank = np.divmod(np.where(inside, index, index - self.boundary), per_sample)
        rank += np.where(inside, 0, trained)
        return shuffled(rank, self.prompts, self.seed), sample


def held_out_count(total: int, share: float) -> int:
    """How many of `total` are held out: at least one if any are wanted, all only if all are."""
    if share in (0.0, 1.0):
        return int(share) * total
    return min(max(round(share * total), 1), total - 1)


@dataclass(frozen=True)
class Generation:
    """One job of a generating stage, as its `plan`, `run_shards` and `commit` share it."""

    job: Job[SftData | Rollouts]

    @property
    def writer(self) -> Input:
        """The model that writes: pi_ref, or the teacher."""
        return self.job.inputs.get("model") or self.job.inputs["teacher"]

    @property
    def candidates(self) -> Candidates:
        """Which of the writer's likeliest ids are kept at each position."""
        config = self.job.config
        return config.candidates if isinstance(config, Rollouts) else 0

    @cached_property
    def teacher(self) -> Mapping[str, Any] | None:
        """The teacher the set descends from: the writer itself, or the teacher of the writer.

        None for a student made elsewhere, which names no teacher.
        """
        if self.job.inputs.get("teacher") == self.writer:
            return self.identity.to_json()
        return _teacher_of(self.model)

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts as token ids of the model; each has room for a response in the context."""
        source = self.job.config.prompts.model_dump_json()
        prompts = _load_prompts(self.job.key, source, self.model)
        prompts.check_context(self.facts.context)
        return prompts

    @cached_property
    def facts(self) -> ModelFacts:
        """Facts from the model's files."""
        return model_facts(self.model)

    @cached_property
    def model(self) -> Path:
        """Directory of the model that writes."""
        return local_directory(self.writer)

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity of the model that writes."""
        cache = DigestCache(self.job.store.digests)
        return model_identity(self.model, self.writer.dtype, cache, self.writer.called)

    @cached_property
    def order(self) -> SampleOrder:
        """The order of the set."""
        config, count = self.job.config, len(self.prompts)
        held_out = held_out_count(count, config.holdout)
        return SampleOrder(count, held_out, config.n, self.seed("order"))

    def seed(self, purpose: str) -> int:
        """Seed for one purpose in this stage: no two stages of a run share random numbers."""
        return int(hash64(self.job.seed, zlib.crc32(f"{self.job.stage}/{purpose}".encode()))[0])

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Digests of the tokenizer and of the chat template that rendered the prompts."""
        identity = self.identity.to_json()
        own = {name: identity[name] for name in TOKENIZER_FIELDS}
        return own | template_digests(self.job.config.prompts.template)

    def sequences(self, spec: ShardSpec) -> list["_DrawnSequences"]:
        """The sequences of one part, in their order."""
        rows, samples = self.order.places(spec.first, spec.count)
        n = self.job.config.n
        return [
            _DrawnSequences(self.prompts[row], int(sample), n)
            for row, sample in zip(rows, samples, strict=True)
        ]

    def rows(
        self, drawn: Sequence["_DrawnSequences"], made: Sequence[Completion], check: Check
    ) -> Rows:
        """Decoded, verified and ready to be written."""
        tokenizer = load_tokenizer(self.model)
        answers = [one.prompt.answer for one in drawn]
        texts = (
            tokenizer.batch_decode([c.tok.tolist() for c in made], skip_special_tokens=True)
            if any(answer is not None for answer in answers)
            else [""] * len(made)
        )
        texts = [text_before(text, self.job.config.sampling.stop) for text in texts]
        columns = {
            "seq_id": [one.seq_id for one in drawn],
            "prompt_id": [one.prompt.prompt_id for one in drawn],
            "sample": [one.sample for one in drawn],
            "finish": [FINISH[c.finish] for c in made],
            "outcome": check(texts, answers, [c.finish == "length" for c in made]),
            "prompt": np.concatenate([one.prompt.ids for one in drawn]),
            "tok": np.concatenate([c.tok for c in made]),
            "ref_lp": np.concatenate([c.logprob for c in made]),
            **candidate_columns(made, self.candidates),
        }
        offsets = {
            "prompt": np.cumsum([0, *(len(one.prompt.ids) for one in drawn)]),
            "position": np.cumsum([0, *(len(c.tok) for c in made)]),
        }
        return Rows.from_columns(columns, offsets)


def plan(job: Job[SftData | Rollouts]) -> list[ShardSpec]:
    """The parts of the set, those of held-out prompts last.

    Raises:
        DataError: the prompts (see `stages.data.prompts`) or the model's files cannot be used.
    """
    generation, config = Generation(job), job.config
    order, prompt_tokens = generation.order, len(generation.prompts.tokens)
    return plan_parts(
        job,
        order.boundary,
        order.prompts * order.n,
        fixed=config.sequences_per_part,
        former=FORMER_PART,
        tokens=order.n * (prompt_tokens + order.prompts * config.sampling.max_tokens),
    )


def open_engine(job: Job[SftData | Rollouts]) -> AbstractContextManager[Generator]:
    """The engine with the model, and a context just long enough."""
    generation, run = Generation(job), job.config.run
    longest, most = generation.prompts.longest, job.config.sampling.max_tokens
    return open_generator(
        generation.model,
        dtype=generation.writer.dtype,
        run=run,
        max_model_len=needed_context(generation.facts, longest, most, run),
        seed=job.seed,
    )


def run_shards(
    job: Job[SftData | Rollouts], specs: Sequence[ShardSpec], engine: Generator
) -> Iterator[Part]:
    """Draw, verify and write parts; each is yielded when it is finished.

    An engine that repeats itself draws each part alone, so that a part that is made again is the
    same file. Any other takes requests of the parts that follow while the longest responses of a
    part are drawn: it is never idle, however small the parts.

    Raises:
        EngineError: the engine failed.
        SequenceError: the model gives no finite log-probabilities for a sequence, and it may not be
            skipped.
        RetryError: a write failed.
    """
    generation = Generation(job)
    with open_verifier(job.config.verifier) as check:
        for together in [[spec] for spec in specs] if engine.repeats else [specs]:
            for spec, drawn, made in _draw_parts(generation, together, engine):
                yield _write_part(generation, spec, drawn, made, check)


def _draw_parts(
    generation: Generation, specs: Sequence[ShardSpec], engine: Generator
) -> Iterator[tuple[ShardSpec, list["_DrawnSequences"], list[Completion]]]:
    """The sequences of each part and their responses, part by part as they become complete."""
    config, seed = generation.job.config, generation.seed("sample")
    part_of: dict[int, int] = {}
    """Of the sequences asked for and not yet answered."""
    asked: dict[int, list[_DrawnSequences]] = {}
    made: dict[int, dict[int, Completion]] = {}

    def requests() -> Iterator[Request]:
        for number, spec in enumerate(specs):
            asked[number], made[number] = generation.sequences(spec), {}
            part_of.update((one.seq_id, number) for one in asked[number])
            for one in asked[number]:
                yield Request(one.seq_id, one.prompt.ids, sequence_seed(seed, one.seq_id))

    for completion in engine.generate(requests(), config.sampling, generation.candidates):
        progress.advance(tokens=len(completion.tok))
        number = part_of.pop(completion.seq_id)
        made[number][completion.seq_id] = completion
        if len(made[number]) == specs[number].count:
            drawn, answers = asked.pop(number), made.pop(number)
            yield specs[number], drawn, [answers[one.seq_id] for one in drawn]
    if part_of:
        raise EngineError(f"sequence {min(part_of)}: the engine ended without a response")


def _write_part(
    generation: Generation,
    spec: ShardSpec,
    drawn: Sequence["_DrawnSequences"],
    made: Sequence[Completion],
    check: Check,
) -> Part:
    job = generation.job
    meta = SetMeta(
        stage=job.stage,
        key=job.key,
        kind="sequences",
        vocab_size=generation.facts.vocab_size,
        candidates=most_candidates(generation.candidates),
        tokenizer=in_footer(generation.tokenizer),
        teacher=in_footer(generation.teacher) if generation.teacher else None,
    )
    order = generation.order
    skipped = Skipped(f"{job.name}, part {spec.index}", job.config, order.prompts * order.n)
    usable: list[tuple[_DrawnSequences, Completion]] = []
    for one, completion in zip(drawn, made, strict=True):
        try:
            check_finite(completion, generation.model, generation.writer.dtype)
        except SequenceError as error:
            skipped.add(error)
        else:
            usable.append((one, completion))
    with PartWriter(job.directory, spec.index, meta, spec.split) as writer:
        for first in range(0, len(usable), _BLOCK):
            block = usable[first : first + _BLOCK]
            asked, answers = [one for one, _ in block], [answer for _, answer in block]
            writer.write(generation.rows(asked, answers, check))
    return writer.part


def commit(job: Job[SftData | Rollouts], files: Iterable[Place] = ()) -> Manifest:
    """The manifest of the finished set; see `storage.sets.commit_parts`."""
    generation, sampling = Generation(job), job.config.sampling
    specs = plan(job)
    manifest = commit_parts(
        job.directory,
        job.identity(
            "sequences",
            teacher=generation.teacher,
            tokenizer=generation.tokenizer,
            meta={
                "sampling": sampling.model_dump(mode="json"),
                "full_support": sampling.full_support,
                **candidates_meta(generation.candidates),
                "vocab_size": generation.facts.vocab_size,
                "logits": generation.facts.rows,
                "stop_ids": list(generation.facts.stop_ids),
                "generator": generation.identity.to_json(),
                "prompts": generation.prompts.report.to_json(),
                "template": generation.prompts.template,
            },
        ),
        len(specs),
        files=files,
    )
    planned = [spec.count for spec in specs]
    allowed = job.config.bad_allowed(sum(planned))
    check_split(job.directory, manifest.parts, specs, skippable=allowed)
    found: dict[str, Any] = skipped_of_set(job.name, job.config, planned, manifest.parts)
    if outcomes := outcome_counts(job.directory, manifest.parts):
        log.info("%s: %s", job.name, ", ".join(f"{n} {name}" for name, n in outcomes.items()))
        found["outcomes"] = outcomes
    found["finish"] = finish = finish_counts(job.directory, manifest.parts)
    share = finish["length"] / max(1, sum(finish.values()))
    if share > _CUT:
        log.warning(
            "%s: %.0f %% of the responses (%d) were cut at sampling.max_tokens = %d or at the "
            "model's context. Raise the limit; if responses go on after their answer, %s ends with "
            "another token than it was trained to (`afterglow check` compares end tokens).",
            job.name, 100 * share, finish["length"], sampling.max_tokens, generation.writer.called,
        )  # fmt: skip
    return replace(manifest, meta={**manifest.meta, **found})


@lru_cache(maxsize=2)
def _teacher_of(model: Path) -> Mapping[str, Any] | None:
    """The teacher a model descends from; a process says once where none is known."""
    manifest = manifest_of_model(model)
    if manifest is None:
        log.warning("%s: not made by Afterglow, so its teacher is unknown", model)
    return manifest.teacher if manifest else None


@lru_cache(maxsize=2)
def _load_prompts(key: str, source: str, model: Path) -> Prompts:
    """The prompts of a set, once per process; `key` covers the content of their file."""
    log.debug("%s: reading prompts", key[:12])
    return load_prompts(PromptSource.model_validate_json(source), model)


@dataclass(frozen=True)
class _DrawnSequences:
    """A sequence to be drawn."""

    prompt: Prompt
    sample: int
    n: int

    @property
    def seq_id(self) -> int:
        return self.prompt.prompt_id * self.n + self.sample
