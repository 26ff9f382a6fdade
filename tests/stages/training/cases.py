"""Small real models, sets and jobs for the tests of training; no file, id or number is faked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stages.config.data import Sampling
from stages.config.record_kinds import HeadTail, Record
from stages.engines.base import Request, sequence_seed
from stages.engines.transformers_engine import TransformersGenerator
from stages.job import Input, Job
from stages.models.facts import ModelFacts
from stages.models.identity import ModelIdentity, model_identity, tokenizer_hash
from stages.models.model import lm_head, load_model
from stages.models.tokenizer import copy_tokenizer
from stages.scoring.score import score_rows, scoring_head
from storage.manifest import Manifest, SetIdentity, SetMeta, build_manifest, write_manifest
from storage.rows import Rows, offsets_of
from storage.schema import FINISH
from storage.sets import commit_parts
from storage.shard import PartWriter
from storage.store import Store
from tests.random_models import random_model

LETTERS = "abcdefghij"
MAX_TOKENS = 6
PAD, END = 0, 1
VOCABULARY = 2 + len(LETTERS)
A_KEY, B_KEY = "aa" * 32, "bb" * 32


def tokenizer(letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token per letter, an end token and a padding token."""
    words = ["<pad>", "<end>", *letters]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


def write_model(directory: Path, seed: int, letters: str = LETTERS, hidden: int = 16) -> Path:
    """A random one-layer Qwen3 with sharpened logits and its tokenizer, as a user has them."""
    words = tokenizer(letters)
    model = random_model(
        seed,
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        end=END,
        pad=PAD,
    )
    with torch.no_grad():
        lm_head(model).weight.mul_(20.0)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def rollouts(
    model: PreTrainedModel, count: int, seed: int = 0, temperature: float = 1.0, candidates: int = 0
) -> Rows:
    """`count` responses sampled from `model` to random prompts of one to four letters."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(2, VOCABULARY, random.integers(1, 5)) for _ in range(count)]
    facts = ModelFacts(VOCABULARY, VOCABULARY, context=64, stop_ids=(END,))
    engine = TransformersGenerator(model, facts, 64, count)
    requests = [
        Request(index, prompt.astype(np.uint32), sequence_seed(seed, index))
        for index, prompt in enumerate(prompts)
    ]
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=temperature)
    made = sorted(engine.generate(requests, sampling, candidates), key=lambda one: one.seq_id)
    columns = {
        "seq_id": np.arange(count),
        "prompt_id": np.arange(count),
        "sample": np.zeros(count, np.int32),
        "finish": [FINISH[one.finish] for one in made],
        "outcome": np.arange(count) % 3 - 1,
        "prompt": np.concatenate(prompts),
        "tok": np.concatenate([one.tok for one in made]),
        "ref_lp": np.concatenate([one.logprob for one in made]),
    }
    if candidates:
        columns["cand"] = np.concatenate([one.cand for one in made])
    offsets = {
        "prompt": offsets_of([len(prompt) for prompt in prompts]),
        "position": offsets_of([len(one.tok) for one in made]),
    }
    return Rows.from_columns(columns, offsets)


def commit(
    directory: Path,
    rows: Rows,
    *,
    key: str,
    record: Record | None = None,
    candidates: int = 0,
    generator: ModelIdentity | None = None,
    teacher: ModelIdentity | None = None,
    temperature: float = 1.0,
    words: Path | None = None,
    sampled: bool = True,
) -> Manifest:
    """Write `rows` as one committed set of sequences, or of records of the given kind."""
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=temperature)
    drawn = {"sampling": sampling.model_dump(), "full_support": True}
    meta: dict[str, Any] = drawn if sampled else {"full_support": False}
    if generator is not None:
        meta["generator"] = generator.to_json()
    if record is not None:
        meta["record"] = record.described()
    if words is not None:
        copy_tokenizer(words, directory / "tokenizer")
    kind = "sequences" if record is None else "records"
    stage = "sft-data" if record is None else "teacher-logits"
    known = {"tokenizer": tokenizer_hash(words)} if words else None
    teacher_json = teacher.to_json() if teacher else None
    set_meta = SetMeta(
        stage=stage,
        key=key,
        kind=kind,
        vocab_size=VOCABULARY,
        candidates=candidates,
        record=meta.get("record"),
        tokenizer=known,
        teacher=teacher_json,
    )
    with PartWriter(directory, 0, set_meta) as writer:
        writer.write(rows)
    made = SetIdentity(stage, 1, key, stage, kind, {}, teacher_json, known, meta)
    manifest = commit_parts(directory, made, 1)
    return write_manifest(directory, manifest)


def make_job(
    store: Path, stage: str, config: Any, inputs: Mapping[str, Input], seed: int = 0
) -> Job[Any]:
    """A job as the plan would make it."""
    key = stage.encode().hex().ljust(64, "0")
    return Job(stage, stage, key, {"version": 1}, config, seed, inputs, Store(store))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved model."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@dataclass(frozen=True)
class World:
    """A teacher, pi_ref that descends from it, rollouts of pi_ref and the teacher's records."""

    teacher: Path
    reference: Path
    sequences: Input
    """What the teacher answered."""
    records: Input
    """Rollouts of pi_ref, scored by the teacher."""
    root: Path

    @classmethod
    def at(cls, root: Path) -> "World":
        """The world `make_world` has made in `root`."""
        sets = Input(str(root / "answers"), A_KEY), Input(str(root / "records"), B_KEY)
        return cls(root / "teacher", root / "reference", *sets, root)

    @property
    def init(self) -> Input:
        """Pi_ref, as the input a student starts from."""
        return Input(str(self.reference))


def make_world(
    root: Path, record: Record | None = None, count: int = 64, temperature: float = 1.0
) -> World:
    """Everything a student needs, made by the real stages' own functions.

    `temperature` is what pi_ref is really sampled at; the sets always say 1.
    """
    teacher, reference = write_model(root / "teacher", 1), write_model(root / "reference", 2)
    commit_model(reference, identity(teacher))
    teacher_model = load_model(teacher, "float32", "cpu")
    shared: dict[str, Any] = {"teacher": identity(teacher), "words": teacher}
    answers = rollouts(teacher_model, count, seed=1)
    commit(root / "answers", answers, key=A_KEY, generator=identity(teacher), **shared)
    record = record or HeadTail(tau=0.1, candidates=2)
    visited = rollouts(
        load_model(reference, "float32", "cpu"),
        count,
        seed=2,
        temperature=temperature,
        candidates=2,
    )
    scored = score_rows(
        teacher_model, scoring_head(teacher_model), visited, record, 0, vocab_size=VOCABULARY
    )
    commit(
        root / "records",
        scored,
        key=B_KEY,
        record=record,
        candidates=record.forced if record.kind == "head_tail" else 0,
        generator=identity(reference),
        **shared,
    )
    return World.at(root)


def commit_model(directory: Path, teacher: ModelIdentity) -> None:
    """Make a model directory the committed set of an `sft` stage that descends from `teacher`."""
    names = sorted(path.name for path in directory.iterdir())
    manifest = build_manifest(
        directory,
        SetIdentity("sft", 1, "5f" * 32, "sft", "model", {}, teacher=teacher.to_json()),
        files=names,
    )
    write_manifest(directory, manifest)


def identity(directory: Path) -> ModelIdentity:
    return model_identity(directory, "float32")
