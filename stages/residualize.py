"""`residualize`: corrects the records of a teacher that pi_ref did not learn from.

Offline distillation needs the same teacher for pi_ref's data and for the scores (arXiv 2604.13010,
theorem 3.8). If another teacher scored the rollouts, this stage removes the recurring part of the
difference between its log-probabilities and pi_ref's (`attribution.cross_teacher`, arXiv
2607.28449) and writes a new set with the same sequences and corrected `lp`. The correction is
defined for the realised token only, so the new set has no head, draws or `rest`: it is of kind
`sampled`, and the contract admits only objectives that read the realised token. A corrected score
is no log-probability and may exceed zero. `ent` is still that of the scoring teacher.

Part i of the result holds the sequences of part i of the source. The means need a first pass over
four columns of all parts of split `train`; each process that makes parts repeats it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from stages.attribution.cross_teacher import COLUMNS, Correction, Estimator
from stages.config.data import Sampling
from stages.config.record_kinds import Sampled
from stages.config.records import Residualize
from stages.job import Job, ShardSpec
from stages.models.descent import TOKENIZER
from stages.models.tokenizer import copy_tokenizer
from stages.progress import Progress, advance
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest, Part, SetMeta, read_manifest
from storage.rows import Rows
from storage.schema import column_names
from storage.sets import commit_parts
from storage.shard import PartWriter, read_meta, read_rows

log = logging.getLogger(__name__)

_KEPT = column_names("records", {"kind": "sampled"}, 0, reference=True)


def plan(job: Job[Residualize]) -> list[ShardSpec]:
    """One part for each part of the source, of the same index, size and split.

    Raises:
        DataError: the source is no committed set of records, or was corrected before.
    """
    specs: list[ShardSpec] = []
    first = 0
    for index, part in enumerate(_source(job).parts):
        specs.append(ShardSpec(index, first, part.sequences, part.split))
        first += part.sequences
    return specs


@contextmanager
def open_engine(job: Job[Residualize]) -> Iterator[Correction]:
    """The first pass: what recurs, estimated from the split `train`.

    Raises:
        DataError: records without `ref_lp`, too few prompts, or a damaged part.
    """
    source, directory = _source(job), _directory(job)
    parts = [part for part in source.parts if part.split == "train" and part.tokens]
    if not parts:
        raise DataError(f"{directory}: no tokens in split 'train' to estimate a correction from")
    _warn_of_temperatures(directory, source)
    tokens, sequences = (sum(getattr(p, name) for p in parts) for name in ("tokens", "sequences"))
    vocab_size = read_meta(directory / parts[0].file).vocab_size
    estimator = Estimator(job.config, job.seed, vocab_size, tokens / sequences)
    try:
        with Progress(f"{job.name}, first pass", sequences, "sequences") as progress:
            for part in parts:
                for rows in read_rows(directory / part.file, COLUMNS):
                    estimator.add(rows)
                    progress.advance(len(rows), tokens=rows.tokens)
        correction = estimator.correction()
    except DataError as error:
        raise DataError(f"{directory}: {error}") from error
    log.info("%s: d has mean %.4f nats", job.name, float(correction.overall_K.mean()))
    yield correction


def run_shard(job: Job[Residualize], spec: ShardSpec, engine: Correction) -> Part:
    """Correct one part.

    Raises:
        DataError: a part of the source is damaged.
        RetryError: the disk refused.
    """
    source, directory = _source(job), _directory(job)
    part = source.parts[spec.index]
    before = read_meta(directory / part.file)
    meta = SetMeta(
        stage=job.stage,
        key=job.key,
        kind="records",
        vocab_size=before.vocab_size,
        record=_record(job, source),
        tokenizer=before.tokenizer,
        teacher=before.teacher,
    )
    with PartWriter(job.directory, spec.index, meta, spec.split) as writer:
        for rows in read_rows(directory / part.file, _KEPT):
            writer.write(corrected(rows, engine))
            advance(len(rows), tokens=rows.tokens)
    return writer.part


def commit(job: Job[Residualize]) -> Manifest:
    """The manifest; the set still descends from the teacher that scored.

    Raises:
        RetryError: parts are missing, or the disk refused.
    """
    source, directory = _source(job), _directory(job)
    kept = directory / TOKENIZER
    manifest = commit_parts(
        job.directory,
        job.identity("records", teacher=source.teacher, tokenizer=source.tokenizer),
        len(source.parts),
        files=copy_tokenizer(kept, job.directory / TOKENIZER) if kept.is_dir() else (),
    )
    return replace(manifest, meta=dict(source.meta) | {"record": _record(job, source)})


def corrected(rows: Rows, correction: Correction) -> Rows:
    """The sequences of a record set with corrected `lp` and no more of a record than `ent`."""
    columns = {name: rows[name] for name in _KEPT}
    columns["lp"] = (rows["lp"] - correction.recurring(rows)).astype(np.float32)
    return Rows.from_columns(
        columns, {level: rows.offsets[level] for level in ("prompt", "position")}
    )


# ---------------------------------------------------------------------------------------------


def _directory(job: Job[Residualize]) -> Place:
    return job.inputs["records"].directory


def _source(job: Job[Residualize]) -> Manifest:
    directory = _directory(job)
    manifest = read_manifest(directory)
    if manifest.kind != "records":
        raise DataError(
            f"{directory}: holds {manifest.kind}, not records. Give residualize.source a set that "
            "teacher-logits has made."
        )
    if manifest.meta["record"].get("correction"):
        raise DataError(f"{directory}: is corrected already. Give the set it was made from.")
    return manifest


def _record(job: Job[Residualize], source: Manifest) -> dict[str, Any]:
    temperature = source.meta["record"].get("temperature", 1.0)
    made = job.config.model_dump(exclude={"source"}) | {"records": source.key, "seed": job.seed}
    return Sampled(temperature=temperature).described() | {"correction": made}


def _warn_of_temperatures(directory: Place, source: Manifest) -> None:
    """The difference d is of two distributions at one temperature, or part of it is temperature."""
    recorded = source.meta["record"].get("temperature", 1.0)
    drawn = Sampling.model_construct(**(source.meta.get("sampling") or {"temperature": None}))
    full = source.meta.get("full_support", False)
    if drawn.temperature != recorded or drawn.penalised or not full:
        log.warning(
            "%s: tokens were drawn at temperature %s%s%s and scored at %s; the correction "
            "cannot tell that difference from the teacher's and removes what recurs of it too",
            directory,
            drawn.temperature,
            " with penalties" if drawn.penalised else "",
            "" if full else " without full support",
            recorded,
        )
