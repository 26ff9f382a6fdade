"""One family through every stage: what `make test-models` does to each, and what it notes.

Everything runs in this process, by the product's own runner and engines. Where vLLM cannot run the
family, its reason is part of the result and transformers does its work.
"""

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.config.data import Sampling
from stages.config.generation import EngineRun, Rollouts, SftData
from stages.config.records import ScoreRun, TeacherLogits
from stages.config.training import Sft, Student
from stages.engines.base import Completion, Generator, Request
from stages.engines.open import open_generator
from stages.engines.vllm_support import why_unsupported
from stages.job import Input, Job
from stages.models.model import load_model
from stages.scoring.scorer import open_scorer
from storage.rows import Rows
from tests.models.families import CONTEXT, FAMILIES, LETTERS, write_family
from tests.storage.make import rows_of
from tests.world import make_job, run

PROMPTS = 12
TOKENS = 24
TIE = 1e-3
"""Nats between two likeliest ids below which either engine may take either."""


@dataclass(frozen=True)
class Found:
    """What one family showed."""

    models: str
    """Models that people have of it."""
    special: str
    architecture: str
    """Class of the checkpoint."""
    saved_as: str
    """Class of what training saved."""
    parameters: int
    vllm: str
    """`yes`, `through transformers`, or why not."""
    rollouts: str
    """Engine that wrote them, with the model that `sft` saved."""
    agreement: float
    """Nats per token between the engine that wrote the rollouts and the trainer, on average."""
    scoring: float | None
    """Largest difference in log p between the two scorers, in nats."""
    greedy: str
    """Of the student that `train` saved: responses of vLLM equal to those of transformers."""

    @property
    def by_vllm(self) -> bool:
        """Whether vLLM runs it here."""
        return self.vllm in ("yes", "through transformers")

    def to_json(self) -> dict[str, Any]:
        """For the page: differences as bounds, which are the same on any machine."""
        bounds = {name: _bound(getattr(self, name)) for name in ("agreement", "scoring")}
        return asdict(self) | bounds


def _bound(difference: float | None) -> str | None:
    """The next power of ten, at least 1e-6."""
    if difference is None:
        return None
    return f"1e-{min(6, math.floor(-math.log10(max(difference, 1e-9))))}"


def walk(name: str, root: Path) -> Found:
    """Teacher and base of one family: sft-data, sft, rollouts, teacher-logits, train, greedy."""
    teacher, base = write_family(name, root / "teacher"), write_family(name, root / "base", 1)
    reason = why_unsupported(base)
    engine = "transformers" if reason else "vllm"

    answers = _make(
        root, "sft-data", _generate(root, SftData, "transformers"), {"teacher": teacher}
    )
    sft = Sft(steps=1, batch_size=8, learning_rate=1e-2)
    pi_ref = _make(root, "sft", sft, {"base": base, "sequences": answers})
    rollouts = _make(root, "rollouts", _generate(root, Rollouts, engine), {"model": pi_ref})
    config = TeacherLogits()
    records = _make(root, "teacher-logits", config, {"teacher": teacher, "sequences": rollouts})
    step = Student(steps=1, batch_size=8, learning_rate=1e-2)
    student = _make(root, "train", step, {"init": pi_ref, "data": records})

    scored, sequences = rows_of(records.directory), rows_of(rollouts.directory)
    differences = None
    if reason is None:
        run_with = ScoreRun(engine="vllm", kv_cache_mib=64)
        with open_scorer(teacher, "float32", run_with) as scorer:
            again = scorer.score(sequences, config.record, records.seed)
        differences = float(np.abs(again["lp"] - scored["lp"]).max())
    saved = json.loads((student.site / "config.json").read_text())
    model = load_model(student.site, "float32", "cpu")
    return Found(
        models=FAMILIES[name].like,
        special=FAMILIES[name].special,
        architecture=FAMILIES[name].model.__name__,
        saved_as=saved["architectures"][0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vllm=reason or _way(saved["architectures"][0]),
        rollouts=engine,
        agreement=student.manifest.meta["agreement"],
        scoring=differences,
        greedy=_greedy(student.site, sequences, reason is None),
    )


@dataclass(frozen=True)
class _Made:
    """A set, and the job that made it."""

    job: Job[Any]
    manifest: Any

    @property
    def input(self) -> Input:
        return Input(str(self.job.directory), self.job.key)

    @property
    def directory(self) -> Path:
        return self.job.site

    @property
    def site(self) -> Path:
        return self.job.site

    @property
    def seed(self) -> int:
        return self.job.seed


def _make(root: Path, stage: str, config: Any, inputs: Mapping[str, "Path | _Made"]) -> _Made:
    """The set of one stage."""
    read = {
        role: source.input if isinstance(source, _Made) else Input(str(source))
        for role, source in inputs.items()
    }
    job = make_job(root / "store", stage, config, read)
    return _Made(job, run(job))


def _generate(root: Path, table: type[Any], engine: str) -> Any:
    """Prompts of uneven lengths, most longer than the windows of sliding attention."""
    rng = np.random.default_rng(0)
    prompts = ["".join(rng.permutation(list(LETTERS))[: 1 + 2 * n]) for n in range(PROMPTS)]
    file = root / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    shared = {
        "prompts": {"path": str(file)},
        "sampling": {"max_tokens": TOKENS},
        "run": {"engine": engine, "kv_cache_mib": 64, "max_sequences": 8},
    }
    return table.model_validate(shared | ({"holdout": 0.0} if table is Rollouts else {}))


def _way(architecture: str) -> str:
    """How vLLM runs an architecture it can run."""
    from vllm.model_executor.models import ModelRegistry

    cls = ModelRegistry.models[architecture].load_model_cls()
    return "through transformers" if cls.__name__.startswith("Transformers") else "yes"


def _greedy(directory: Path, sequences: Rows, by_vllm: bool) -> str:
    """How many greedy responses of the two engines are equal, as `n of m`."""
    if not by_vllm:
        return ""
    asked = [
        Request(index, sequences.sequence(index)["prompt"].astype(np.uint32), 0)
        for index in range(len(sequences))
    ]
    ours, theirs = (_responses(directory, asked, engine) for engine in ("transformers", "vllm"))
    model = load_model(directory, "float32", "cpu")
    equal = [_same(model, one, ours[one.seq_id].tok, theirs[one.seq_id].tok) for one in asked]
    return f"{sum(equal)} of {len(equal)}"


def _responses(directory: Path, asked: list[Request], engine: Any) -> dict[int, Completion]:
    run_with = EngineRun(engine=engine, kv_cache_mib=64, max_sequences=8)
    opened: AbstractContextManager[Generator] = open_generator(
        directory, dtype="float32", run=run_with, max_model_len=CONTEXT
    )
    with opened as generator:
        made = generator.generate(asked, Sampling(max_tokens=TOKENS, temperature=0.0))
        return {one.seq_id: one for one in made}


@torch.no_grad()
def _same(model: Any, request: Request, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two greedy responses are equal, but for a tie, after which they may part."""
    if np.array_equal(ours, theirs):
        return True
    length = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:length] != theirs[:length])
    if not len(differing):
        return False
    first = int(differing[0])
    ids = np.concatenate([request.prompt_ids, ours[:first]]).astype(np.int64)
    logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
    return bool(abs(logits[int(ours[first])] - logits[int(theirs[first])]) < TIE)
