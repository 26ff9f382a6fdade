"""A teacher trained by the real stages, what it sampled and scored, and models that are not it."""

import shutil
from pathlib import Path
from typing import Any

import torch

from stages.config.corpus import Corpus
from stages.config.generation import SftData
from stages.config.record_kinds import Record
from stages.config.training import Pretrain
from stages.job import Input
from stages.models.model import load_model
from storage.manifest import SetMeta, read_manifest
from storage.rows import Rows
from tests.storage.make import rows_of, write_parts
from tests.world import make_job, run, score

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
    text = make_job(root, "corpus", table)
    run(text)
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64}
    settings = {"steps": 120, "learning_rate": 1e-2, "architecture": shape}
    source = Input(str(text.directory), text.key)
    job = make_job(root, "pretrain", Pretrain.model_validate(settings), {"corpus": source})
    run(job)
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
    run(job)
    return job.site


def rewritten(source: Path, target: Path, rows: Rows, **about: Any) -> Path:
    """The set at `source` with other rows, and other claims in its manifest where given."""
    manifest = read_manifest(source)
    about = dict(manifest.meta) | about
    record = about.get("record")
    kind = "records" if record else "sequences"
    meta = SetMeta(
        manifest.stage,
        RECORDS_KEY,
        kind,
        64,
        record=record,
        tokenizer=manifest.tokenizer,
        teacher=manifest.teacher,
    )
    write_parts(target, meta, [(rows, "train")], about=about)
    return target


def records(source: Path, target: Path, teacher: Path, record: Record) -> Path:
    """The teacher's records of the set at `source`."""
    scored = score(teacher, rows_of(source), record)
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
