"""What tests start from: small real models, scored rows, committed sets, jobs, and the runner.

No file, id or number is faked: models are random but real, sets are written and committed as the
stages do, and `run` is the product's own runner. What one folder alone needs lies in its `cases.py`
and is built from this; rows without a model behind them come from `tests.storage.make`, and the
command line from `tests.command`, so that their tests load no torch.
"""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.execution import runner
from pipeline.graph import BY_NAME
from pipeline.planning import fingerprint
from pipeline.planning.node import Node
from pipeline.planning.plan import Planned
from stages.config.candidates import Candidates, candidates_meta
from stages.config.data import Sampling
from stages.config.record_kinds import HeadTail, Record
from stages.engines.base import Request, candidate_columns, sequence_seed
from stages.engines.transformers_engine import TransformersGenerator
from stages.job import Input, Job
from stages.models.facts import ModelFacts
from stages.models.identity import ModelIdentity, model_identity, tokenizer_hash
from stages.models.model import lm_head, load_model, load_tokenizer, real_vocab_size
from stages.models.tokenizer import copy_tokenizer
from stages.scoring.score import score_rows, scoring_head
from storage.manifest import (
    Json,
    Manifest,
    SetIdentity,
    SetMeta,
    build_manifest,
    write_manifest,
)
from storage.rows import Rows, offsets_of
from storage.schema import FINISH
from storage.store import Store
from tests.storage.make import write_parts

LETTERS = "abcdefghij"
MAX_TOKENS = 6
PAD, END = 0, 1
VOCABULARY = 2 + len(LETTERS)
A_KEY, B_KEY = "aa" * 32, "bb" * 32

# ---------------------------------------------------------------------------------------------
# Models


def tokenizer(letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token per letter, an end token and a padding token."""
    words = ["<pad>", "<end>", *letters]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


def random_model(
    seed: int,
    *,
    vocab_size: int = VOCABULARY,
    hidden_size: int = 16,
    intermediate_size: int | None = None,
    layers: int = 1,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int | None = None,
    context: int = 64,
    tied: bool = False,
    begin: int | None = None,
    end: int = END,
    pad: int | None = PAD,
    family: Literal["qwen3", "llama"] = "qwen3",
) -> PreTrainedModel:
    """Random weights that depend on `seed` and the shape alone."""
    make, model = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = make(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim or hidden_size // heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    torch.manual_seed(seed)
    return model(config)


def write_model(
    directory: Path,
    seed: int = 0,
    *,
    words: PreTrainedTokenizerBase | None = None,
    letters: str = LETTERS,
    sharpen: Literal["head", "all"] = "head",
    by: float = 20.0,
    **shape: Any,
) -> Path:
    """A random model and its tokenizer, as a user has them.

    Args:
        directory: Where to.
        seed: Of the weights.
        words: The tokenizer; default one of `letters`.
        letters: One token each.
        sharpen: Weights to be multiplied, so that what the model says is not uniform: those of the
            head, or all matrices.
        by: The factor.
        shape: Of `random_model`.
    """
    words = words or tokenizer(letters)
    ids = {"begin": words.bos_token_id, "end": words.eos_token_id, "pad": words.pad_token_id}
    model = random_model(seed, **{"vocab_size": len(words), **ids, **shape})
    with torch.no_grad():
        for weight in model.parameters() if sharpen == "all" else [lm_head(model).weight]:
            if weight.ndim > 1:
                weight.mul_(by)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def identity(directory: Path) -> ModelIdentity:
    """What a model directory holds."""
    return model_identity(directory, "float32")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved model."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


# ---------------------------------------------------------------------------------------------
# Rows and sets


def rollouts(
    model: PreTrainedModel,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    candidates: Candidates = 0,
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
        **candidate_columns(made, candidates),
    }
    offsets = {
        "prompt": offsets_of([len(prompt) for prompt in prompts]),
        "position": offsets_of([len(one.tok) for one in made]),
    }
    return Rows.from_columns(columns, offsets)


def without(rows: Rows, *columns: str) -> Rows:
    """The rows without some of their columns."""
    kept = {name: values for name, values in rows.columns.items() if name not in columns}
    return Rows.from_columns(kept, {level: rows.offsets[level] for level in ("prompt", "position")})


def score(teacher: Path, rows: Rows, record: Record, seed: int = 0) -> Rows:
    """The records that the model in `teacher` gives `rows`."""
    model = load_model(teacher, "float32", "cpu")
    vocab_size = real_vocab_size(model, load_tokenizer(teacher))
    return score_rows(model, scoring_head(model), rows, record, seed, vocab_size=vocab_size)


SAMPLING = Sampling(max_tokens=MAX_TOKENS)


def commit(
    directory: Path,
    rows: Rows | Mapping[str, Sequence[Rows]],
    *,
    key: str,
    record: Record | None = None,
    stage: str | None = None,
    vocab_size: int = VOCABULARY,
    candidates: int = 0,
    generator: ModelIdentity | None = None,
    teacher: ModelIdentity | None = None,
    words: Path | None = None,
    tokenizer: Json | None = None,
    sampling: Sampling | None = SAMPLING,
    meta: Json | None = None,
) -> Manifest:
    """One committed set of sequences, or of records of the given kind.

    Args:
        directory: Where to.
        rows: One part of the split `train`, or the parts of each split.
        key: Of the set.
        record: Kind of the records; None for sequences.
        stage: That made it; default `sft-data` of sequences, `teacher-logits` of records.
        vocab_size: Ids of the tokenizer.
        candidates: Candidates of each position.
        generator: Who sampled the sequences.
        teacher: Who answered or scored.
        words: A model whose tokenizer goes with the set.
        tokenizer: What the set says of a tokenizer that does not.
        sampling: How the sequences were drawn, from all of the vocabulary; None: by nobody.
        meta: What else the manifest says.
    """
    about: dict[str, Any] = {"full_support": False}
    if sampling is not None:
        about = {
            "sampling": sampling.model_dump(mode="json"),
            "full_support": sampling.full_support,
        }
    if generator is not None:
        about["generator"] = generator.to_json()
    if record is not None:
        about["record"] = record.described()
    if words is not None:
        copy_tokenizer(words, directory / "tokenizer")
        tokenizer = {"tokenizer": tokenizer_hash(words)}
    footer = SetMeta(
        stage=stage or ("sft-data" if record is None else "teacher-logits"),
        key=key,
        kind="sequences" if record is None else "records",
        vocab_size=vocab_size,
        candidates=candidates,
        record=about.get("record"),
        tokenizer=tokenizer,
        teacher=teacher.to_json() if teacher else None,
    )
    splits = {"train": [rows]} if isinstance(rows, Rows) else rows
    parts = [(part, split) for split, several in splits.items() for part in several]
    return write_parts(directory, footer, parts, about=about | dict(meta or {}))


def commit_model(directory: Path, teacher: ModelIdentity) -> None:
    """Make a model directory the committed set of an `sft` stage that descends from `teacher`."""
    made = SetIdentity("sft", 1, "5f" * 32, "sft", "model", {}, teacher=teacher.to_json())
    names = sorted(path.name for path in directory.iterdir())
    write_manifest(directory, build_manifest(directory, made, files=names))


# ---------------------------------------------------------------------------------------------
# Jobs


def make_job(
    store: Path, stage: str, config: Any, inputs: Mapping[str, Input] | None = None, seed: int = 0
) -> Job[Any]:
    """A job as the plan makes it; of models and files the path enters the key, not the content."""
    inputs = inputs or {}
    payload = {
        "stage": stage,
        "version": BY_NAME[stage].version,
        "config": fingerprint.identity(config),
        "seed": seed,
        "inputs": {role: source.key or source.path for role, source in inputs.items()},
        "content": {},
    }
    key = fingerprint.digest(payload)
    return Job(stage, stage, key, payload, config, seed, inputs, Store(store))


def run(job: Job[Any], *, engine: Any = None, backwards: bool = False) -> Manifest:
    """Make the set of a job as `afterglow run` does: by the product's runner.

    Args:
        job: Of any stage.
        engine: One that is open already, since vLLM takes seconds to start; the stage opens none.
        backwards: Make the last part first.
    """
    stage = BY_NAME[job.stage]
    node = Node(stage, "", f"[{job.stage}]", job.config, job.seed)
    planned = Planned(node, job.key, job.payload, job.inputs)
    with ExitStack() as stack:
        module = importlib.import_module(stage.module)
        if engine is not None:
            opened = patch.object(module, "open_engine", lambda _: nullcontext(engine))
            stack.enter_context(opened)
        if backwards:
            parts = [spec.index for spec in reversed(module.plan(job))]
            runner.run_shards(planned, job.store, parts)
        return runner.run_node(planned, job.store)


# ---------------------------------------------------------------------------------------------
# A world


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
    root: Path,
    record: Record | None = None,
    count: int = 64,
    temperature: float = 1.0,
    candidates: Candidates = 2,
) -> World:
    """Everything a student needs, made by the real stages' own functions.

    `temperature` is what pi_ref is really sampled at; the sets always say 1. `candidates` are those
    that the rollouts keep.
    """
    teacher, reference = write_model(root / "teacher", 1), write_model(root / "reference", 2)
    commit_model(reference, identity(teacher))
    shared: dict[str, Any] = {"teacher": identity(teacher), "words": teacher}
    answers = rollouts(load_model(teacher, "float32", "cpu"), count, seed=1)
    commit(root / "answers", answers, key=A_KEY, generator=identity(teacher), **shared)
    visited = rollouts(
        load_model(reference, "float32", "cpu"),
        count,
        seed=2,
        temperature=temperature,
        candidates=candidates,
    )
    record = record or HeadTail(tau=0.1, candidates=2)
    commit(
        root / "records",
        score(teacher, visited, record),
        key=B_KEY,
        record=record,
        candidates=record.forced if record.kind == "head_tail" else 0,
        generator=identity(reference),
        meta=candidates_meta(candidates),
        **shared,
    )
    return World.at(root)
