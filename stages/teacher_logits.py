"""`teacher-logits`: the teacher scores every position of a set of sequences, once.

Each part of the records holds the sequences of one part of the source, in their order and split,
with everything a trainer needs: prompt, response, log pi_ref and the record. With a `limit` the
first training sequences alone are scored, and all that are held out. The source may be rollouts,
the teacher's own answers, or a text corpus (no candidates, no log pi_ref). With a `teacher_prompt`
the teacher reads another prompt than the student did; see `stages.scoring.teacher_prompt`.

Before the teacher is loaded, its identity and its tokenizer are compared with those the sequences
descend from.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages import progress
from stages.config.candidates import Coverage, stored_candidates
from stages.config.record_kinds import HeadTail, Record, stored_record
from stages.config.records import TeacherLogits
from stages.data.chat_template import template_digests
from stages.job import Job, ShardSpec
from stages.models.chat_template import same_template
from stages.models.descent import TOKENIZER, data_tokenizer
from stages.models.identity import (
    TOKENIZER_FIELDS,
    DigestCache,
    check_teacher,
    check_tokenizer,
    identify,
    in_footer,
    tokenizer_of,
)
from stages.models.tokenizer import copy_tokenizer
from stages.scoring.calibrate import (
    FILE,
    MIN_TAU,
    FoundTau,
    calibrate,
    calibrated,
    sample,
    stored_tau,
)
from stages.scoring.memory import rehearsal
from stages.scoring.score import within_vocabulary
from stages.scoring.scorer import Scorer, UsableScorer, open_scorer
from stages.scoring.teacher_prompt import PrivilegedScorer, TeacherPrompts
from stages.skipping import Skipped, skipped_of_set
from storage.errors import DataError, SequenceError
from storage.manifest import Manifest, Part, SetMeta, read_manifest
from storage.packed.frequencies import write_ranks
from storage.rows import Rows
from storage.sets import commit_parts, outcome_counts
from storage.shard import PartWriter, read_meta, read_rows

log = logging.getLogger(__name__)

_BATCHES = 16  # forward passes whose sequences are sorted by length together and held in memory


@dataclass(frozen=True)
class Teacher:
    """The engine of this stage: a loaded teacher."""

    scorer: Scorer
    identity: dict[str, Any]
    record: Record
    """What is kept, its tau known."""
    prompts: TeacherPrompts | None
    """What the teacher reads in place of the student's prompts."""
    ranks: str | None = None
    """As in `SetMeta`: packed parts have them."""


def plan(job: Job[TeacherLogits]) -> list[ShardSpec]:
    """One part for each part of the source that is scored, of the same split.

    Raises:
        DataError: the source is no committed set of sequences.
        ConfigError: the record wants more candidates than the source keeps.
    """
    specs: list[ShardSpec] = []
    first = 0
    for index, (part, count) in enumerate(_scored(job)):
        specs.append(ShardSpec(index, first, count, part.split))
        first += count
    return specs


@contextmanager
def open_engine(job: Job[TeacherLogits]) -> Iterator[Teacher]:
    """The teacher, checked against the source and loaded.

    Raises:
        DataError: another teacher or tokenizer than the sequences descend from, a vocabulary that
            does not fit, or a model that cannot be loaded.
        EngineError: an architecture whose head is not understood, or the largest forward pass of
            the set does not fit into the memory of the GPU.
    """
    source = _source(job)
    directory, identity = _identity(job)
    where = str(job.inputs["sequences"].directory)
    check_teacher(source.teacher, identity, where, job.config.consistency)
    tokenizer = data_tokenizer(job.inputs["sequences"].directory, source)
    check_tokenizer(tokenizer, tokenizer_of(directory), where, str(directory))
    prompts = _teacher_prompts(job, source, directory, identity)
    with open_scorer(directory, job.inputs["teacher"].dtype, job.config.run) as plain:
        _check_vocabulary(source, where, plain.vocab_size, plain.logits)
        _rehearse(job, plain)
        _warn_of_few(job, source)
        scorer = PrivilegedScorer(plain, prompts) if prompts else plain
        ranks = _ranks(job, plain.vocab_size)
        yield Teacher(scorer, identity, _calibrated(job, scorer), prompts, ranks)


def run_shard(job: Job[TeacherLogits], spec: ShardSpec, engine: Teacher) -> Part:
    """Score one part of the source.

    Raises:
        ConfigError, DataError: as `stages.scoring.scorer.Scorer.score`.
        SequenceError: a sequence cannot be scored, and may not be skipped.
        RetryError: the disk refused.
    """
    run, record = job.config.run, engine.record
    part, _ = _scored(job)[spec.index]
    positions = part.tokens * spec.count // max(part.sequences, 1)

    def scored(count: int) -> None:
        progress.advance(spec.count * count / max(positions, 1), tokens=count)

    meta = SetMeta(
        stage=job.stage,
        key=job.key,
        kind="records",
        vocab_size=engine.scorer.vocab_size,
        candidates=record.forced,
        record=record.described(),
        tokenizer=in_footer(_tokenizer(engine.identity)),
        teacher=in_footer(engine.identity),
        layout="open" if engine.ranks is None else "packed",
        ranks=engine.ranks,
    )
    if engine.prompts is not None:  # a pass over their file for each part, not for each window
        names = _sequences(job, part, spec.count, ("prompt_id",))
        engine.prompts.hold(chain.from_iterable(rows["prompt_id"].tolist() for rows in names))
    skipped = Skipped(f"{job.name}, part {spec.index}", job.config, _total(job))
    scorer = UsableScorer(engine.scorer, skipped)
    with PartWriter(job.directory, spec.index, meta, spec.split) as writer:
        for rows in _windows(_sequences(job, part, spec.count), _BATCHES * run.tokens_per_batch):
            rows = within_vocabulary(rows, engine.scorer.vocab_size)
            writer.write(scorer.score(rows, record, job.seed, scored))
    return writer.part


def commit(job: Job[TeacherLogits]) -> Manifest:
    """The manifest of the records; the teacher's tokenizer is kept beside them.

    Raises:
        RetryError: parts or the calibrated tau are missing, or the disk refused.
        DataError: a part is of another set, or holds another record.
    """
    source = _source(job)
    directory, identity = _identity(job)
    record = stored_tau(job.directory, job.key, job.config.record)
    calibrated_here = record is not job.config.record
    files = copy_tokenizer(directory, job.directory / TOKENIZER)
    manifest = commit_parts(
        job.directory,
        job.identity("records", teacher=identity, tokenizer=_tokenizer(identity)),
        len(plan(job)),
        files=[*files, FILE] if calibrated_here else files,
    )
    meta = dict(source.meta) | {"record": record.described()}
    meta.pop("skipped", None)  # those of the source are no part of this set
    planned = [count for _, count in _scored(job)]
    meta |= skipped_of_set(job.name, job.config, planned, manifest.parts)
    if "outcomes" in meta:  # with a limit, not those of the source
        meta["outcomes"] = outcome_counts(job.directory, manifest.parts)
    if job.config.teacher_prompt is not None:
        meta["teacher_prompt"] = job.config.teacher_prompt.model_dump()
    if manifest.parts:
        meta["vocab_size"] = read_meta(job.directory / manifest.parts[0].file).vocab_size
    for part in manifest.parts if calibrated_here else ():
        path = job.directory / part.file
        if stored_record(read_meta(path).record or {}) != stored_record(meta["record"]):
            raise DataError(
                f"{path}: was drawn at another tau than {meta['record']['tau']:g}, the set's. "
                "Remove the part and run the stage again."
            )
    return replace(manifest, meta=meta)


# ---------------------------------------------------------------------------------------------


def _source(job: Job[TeacherLogits]) -> Manifest:
    directory = job.inputs["sequences"].directory
    manifest = read_manifest(directory)
    if manifest.kind != "sequences":
        raise DataError(
            f"{directory}: holds {manifest.kind}, not sequences. Give teacher-logits.source a set "
            "of rollouts, sft-data or corpus."
        )
    kept = stored_candidates(manifest.meta)
    job.config.record.check_candidates(kept, f"the sequences of {directory}")
    return manifest


def _warn_of_few(job: Job[TeacherLogits], source: Manifest) -> None:
    """A number of candidates takes the first of those that cover a mass: perhaps much less."""
    kept, wanted = stored_candidates(source.meta), job.config.record.wanted
    if isinstance(kept, Coverage) and not isinstance(wanted, Coverage) and wanted:
        log.warning(
            "%s: record.candidates = %d takes the first %d of the ids that cover %g of pi_ref's "
            "mass; record.candidates = { mass = %g, at_most = %d } takes them all",
            job.name, wanted, wanted, kept.mass, kept.mass, kept.at_most,
        )  # fmt: skip


def _scored(job: Job[TeacherLogits]) -> list[tuple[Part, int]]:
    """The parts of the source to score, and how many sequences of each, from its first on."""
    left = job.config.limit
    out: list[tuple[Part, int]] = []
    for part in _source(job).parts:
        count = part.sequences
        if left is not None and part.split == "train":
            count = min(left, count)
            left -= count
        if count or not part.sequences:
            out.append((part, count))
    return out


def _rehearse(job: Job[TeacherLogits], scorer: Scorer) -> None:
    """Score the largest forward pass of the set once, where a GPU's memory is the limit.

    Raises:
        EngineError: it does not fit.
    """
    run, record = job.config.run, job.config.record
    groups = [group for part, _ in _scored(job) for group in part.row_groups]
    longest = max((group.max_tokens for group in groups), default=0)
    if longest < 2 or run.device == "cpu" or not torch.cuda.is_available():
        return
    if isinstance(record, HeadTail) and record.tau is None:
        record = record.calibrated(MIN_TAU)  # keeps the most
    try:
        scorer.score(rehearsal(longest, run, record), record, job.seed)
    except SequenceError as error:  # the made-up tokens may be impossible; that is no matter
        log.debug("%s: rehearsal: %s", job.name, error)


def _total(job: Job[TeacherLogits]) -> int:
    """Sequences to score."""
    return sum(count for _, count in _scored(job))


def _sequences(
    job: Job[TeacherLogits], part: Part, count: int, columns: tuple[str, ...] | None = None
) -> Iterator[Rows]:
    """The first `count` sequences of a part of the source, by row group."""
    for rows in read_rows(job.inputs["sequences"].directory / part.file, columns):
        yield rows if count >= len(rows) else rows.take(range(count))
        count -= len(rows)
        if count <= 0:
            return


def _calibrated(job: Job[TeacherLogits], scorer: Scorer) -> Record:
    """The record of this set; where it asks for a number of entries, tau is found for all parts."""

    def find(record: HeadTail) -> FoundTau:
        rows = sample(chain.from_iterable(_sequences(job, *scored) for scored in _scored(job)))
        if not rows.tokens:
            where = job.inputs["sequences"].directory
            raise DataError(f"{where}: holds no positions to calibrate tau on")
        rows = within_vocabulary(rows, scorer.vocab_size)
        log.info("%s: calibrating tau on %s positions", job.name, f"{rows.tokens:,}")
        skipped = Skipped(f"{job.name}, calibration", job.config, _total(job))
        return calibrate(UsableScorer(scorer, skipped), rows, record, job.seed)

    return calibrated(job.directory, job.key, job.config.record, find)


def _teacher_prompts(
    job: Job[TeacherLogits], source: Manifest, directory: Path, identity: dict[str, Any]
) -> TeacherPrompts | None:
    if job.config.teacher_prompt is None:
        return None
    config = job.config.teacher_prompt
    own = template_digests(config.prompts.template) if config.prompts else {}
    teachers = identity | (own or {"directory": directory})
    shared = same_template(source.tokenizer or {}, teachers)
    return TeacherPrompts.of(config, directory, compare=shared)


def _ranks(job: Job[TeacherLogits], vocab_size: int) -> str | None:
    """sha256 of the order in which packed records count ids; None for the open layout."""
    if job.config.layout == "open" or not job.config.record.stores.entries:
        return None

    def count() -> NDArray[np.int64]:
        count_V = np.zeros(vocab_size, np.int64)
        for part, sequences in _scored(job):
            for rows in _sequences(job, part, sequences, ("tok",)):
                count_V += np.bincount(rows["tok"], minlength=vocab_size)[:vocab_size]
        return count_V

    return write_ranks(job.directory, count)


def _identity(job: Job[TeacherLogits]) -> tuple[Path, dict[str, Any]]:
    directory, identity = identify(job.inputs["teacher"], DigestCache(job.store.digests))
    return directory, identity.to_json()


def _tokenizer(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: identity[name] for name in TOKENIZER_FIELDS}


def _check_vocabulary(source: Manifest, where: str, vocab_size: int, rows: int) -> None:
    """The model that wrote the sequences must be able to learn from records with the teacher's ids.

    It may have further ids of its own (tokenizers were compared before), as long as no sequence
    holds one, and fewer tokens if its head has rows for all of the teacher's.
    """
    found, logits = source.meta.get("vocab_size"), source.meta.get("logits")
    if found is None:
        return
    if int(found) > max(rows, vocab_size):
        log.info(
            "%s: written with a vocabulary of %s ids, of which the teacher knows %s; a sequence "
            "with one of the others cannot be scored",
            where, f"{int(found):,}", f"{vocab_size:,}",
        )  # fmt: skip
    if max(int(found), int(logits or 0)) < vocab_size:
        raise DataError(
            f"{where}: its vocabulary has {found} ids, the teacher's {vocab_size} (with padding "
            f"{rows}), and a student of {logits or found} logits cannot learn the others. Use a "
            "student whose head has a row for each id of the teacher."
        )


def _windows(groups: Iterator[Rows], tokens: int) -> Iterator[Rows]:
    """Row groups joined until they hold `tokens` tokens: enough to sort by length, never a part."""
    window: list[Rows] = []
    held = 0
    for rows in groups:
        window.append(rows)
        held += rows.tokens + len(rows["prompt"])
        if held >= tokens:
            yield Rows.concat(window)
            window, held = [], 0
    if window:
        yield Rows.concat(window)
