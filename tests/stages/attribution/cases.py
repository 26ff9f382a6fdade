"""A teacher trained by the real stages, what it sampled and scored, and models that are not it."""

import shutil
from pathlib import Path
from typing import Any

import torch

from stages import corpus, pretrain, sft_data
from stages.config.corpus import Corpus
from stages.config.generation import SftData
from stages.config.record_kinds import Record
from stages.config.training import Pretrain
from stages.job import Input
from stages.models.model import load_model, load_tokenizer, real_vocab_size
from stages.scoring.score import score_rows, scoring_head
from storage.manifest import SetIdentity, SetMeta, read_manifest, write_manifest
from storage.rows import Rows
from storage.sets import commit_parts
from storage.shard import PartWriter, read_rows
from tests.stages.training.cases import make_job

RECORDS_KEY = "ec" * 32


def train_teacher(root: Path) -> Path:
    """A model that has begun to learn three-digit addition: sharp in places, not everywhere."""
    table = Corpus.model_validate(
        {
            "task": "addition",
            "count": 2000,
            "sequence_length": 48,
            "holdout": 0.0,
            "tokenizer": {"kind": "characters"},
        }
    )
    text = make_job(root, "corpus", table, {})
    with corpus.open_engine(text) as engine:
        for spec in corpus.plan(text):
            corpus.run_shard(text, spec, engine)
    write_manifest(text.directory, corpus.commit(text))
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64}
    settings = {"steps": 120, "learning_rate": 1e-2, "architecture": shape}
    job = make_job(
        root, "pretrain", Pretrain.model_validate(settings), {"corpus": Input(str(text.directory))}
    )
    write_manifest(job.directory, pretrain.run(job))
    return job.site


def answers(root: Path, teacher: Path, count: int, seed: int = 0, **sampling: Any) -> Path:
    """A committed set of the teacher's answers to `count` problems, by the real stage."""
    table = SftData.model_validate(
        {
            "prompts": {"task": "addition", "limit": count},
            "sampling": {"max_tokens": 40, **sampling},
            "verifier": {"kind": "exact_match"},
            "run": {"engine": "transformers"},
        }
    )
    job = make_job(root, "sft-data", table, {"teacher": Input(str(teacher))}, seed)
    with sft_data.open_engine(job) as engine:
        for spec in sft_data.plan(job):
            sft_data.run_shard(job, spec, engine)
    write_manifest(job.directory, sft_data.commit(job))
    return job.site


def rows_of(directory: Path) -> Rows:
    """Everything in a set."""
    parts = read_manifest(directory).parts
    return Rows.concat([rows for part in parts for rows in read_rows(directory / part.file)])


def rewritten(source: Path, target: Path, rows: Rows, **meta: Any) -> Path:
    """The set at `source` with other rows, and other claims in its manifest where given."""
    manifest = read_manifest(source)
    record = meta.get("record", manifest.meta.get("record"))
    kind = "records" if record else "sequences"
    set_meta = SetMeta(manifest.stage, RECORDS_KEY, kind, 64, record=record)
    with PartWriter(target, 0, set_meta) as writer:
        writer.write(rows)
    made = commit_parts(
        target,
        SetIdentity(
            manifest.stage,
            1,
            RECORDS_KEY,
            manifest.name,
            kind,
            {},
            teacher=manifest.teacher,
            tokenizer=manifest.tokenizer,
            meta=dict(manifest.meta) | meta,
        ),
        1,
    )
    write_manifest(target, made)
    return target


def without(rows: Rows, *columns: str) -> Rows:
    """The rows without some of their columns."""
    kept = {name: values for name, values in rows.columns.items() if name not in columns}
    return Rows.from_columns(kept, {k: rows.offsets[k] for k in ("prompt", "position")})


def records(source: Path, target: Path, teacher: Path, record: Record) -> Path:
    """The teacher's records of the set at `source`."""
    model = load_model(teacher, "float32", "cpu")
    vocab_size = real_vocab_size(model, load_tokenizer(teacher))
    scored = score_rows(
        model, scoring_head(model), rows_of(source), record, 0, vocab_size=vocab_size
    )
    return rewritten(source, target, scored, record=record.described())


def perturbed(teacher: Path, target: Path, size: float) -> Path:
    """The teacher with relative noise on every weight."""
    target.mkdir(parents=True)
    for file in teacher.iterdir():
        if file.is_file() and file.name != "manifest.json":
            shutil.copy(file, target)
    model = load_model(teacher, "float32", "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + size * torch.randn_like(weight))
    model.save_pretrained(target)
    return target
