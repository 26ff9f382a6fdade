"""What sets that do not exist yet will take: tokens, disk, memory and time, for `plan`.

Sizes are upper bounds on tokens, as if every response ran to its limit; bytes are about right.
Bytes per position were measured on the demo's own sets (`make status`) and, for large vocabularies,
follow the entropy of ids: two bytes an id. Memory is that of `pipeline.planning.memory`, time that
of `pipeline.planning.duration`.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pipeline.graph import MODELS
from pipeline.planning.duration import Duration, Rates, Work, spelled
from pipeline.planning.machine import Machine, this_machine
from pipeline.planning.memory import Memory, memory_of
from pipeline.planning.node import External, Node, Ref
from pipeline.planning.plan import Planned
from stages.config.candidates import Coverage, mean_candidates
from stages.config.corpus import Corpus
from stages.config.data import PromptSource
from stages.config.derive import Derive
from stages.config.evaluation import Evaluate
from stages.config.generation import Generate
from stages.config.record_kinds import Drawn, Record
from stages.config.records import TeacherLogits
from stages.config.stage import Expected
from stages.config.training import Architecture, Student, Training
from stages.data.prompts import count_prompts
from stages.data.tasks import task
from stages.job import Input
from stages.models.hub import cached_directory, is_hub_id
from stages.models.shape import ModelShape, shape_from_scratch, shape_of
from stages.table import Table
from storage.files.place import place
from storage.manifest import Manifest, read_manifest
from storage.store import Store

_ID = 2.0
_LOGP32 = 2.6
_LOGP16 = 1.9
_REST = 2.1
_COUNT = 0.2
_LENGTH = 0.6  # `nu`, `nh` or `nc`, where positions differ in it

_SAVED = {"float32": 4, "bfloat16": 2}
_CHECKPOINT = 12
"""Bytes a weight: float32, and two moments of AdamW."""


@dataclass(frozen=True)
class Size:
    """Expected size of a set of sequences or records."""

    tokens: int
    bytes: int


@dataclass(frozen=True)
class Data:
    """The training sequences that a node reads."""

    sequences: int
    tokens: int
    """Of responses, at most."""
    longest: int | None = None
    """Tokens of the longest sequence, prompt included; None where unknown."""
    held_out: int = 0
    """Tokens of the held-out sequences."""


@dataclass(frozen=True)
class Estimate:
    """What one node will take; None where it is not known."""

    size: Size | None = None
    model: int | None = None
    """Bytes of the model it writes."""
    next_round: int = 0
    """Bytes of what it hands on to the next round: weights and the optimiser's state in float32."""
    checkpoints: int = 0
    """Bytes of checkpoints while it runs: the last one, and the next being written."""
    memory: Memory | None = None
    duration: Duration | None = None

    @property
    def disk(self) -> int | None:
        """Bytes on disk while it runs."""
        if self.size is None and self.model is None:
            return None
        written = (self.size.bytes if self.size else 0) + (self.model or 0) + self.next_round
        return written + self.checkpoints


class Estimator:
    """Estimates for the nodes of one plan.

    Args:
        planned: The nodes, each after those it reads.
        store: Where sets are.
        machine: Where the nodes will run; default this machine.
    """

    def __init__(
        self, planned: list[Planned], store: Store, machine: Machine | None = None
    ) -> None:
        self.machine = machine or this_machine()
        self._store = store
        self._planned = {one.node.name: one for one in planned}
        self._made: dict[str, ModelShape | None] = {}
        """Shapes of the models that nodes make."""
        self._rates: Rates | None = None

    def size(self, node: Node) -> Size | None:
        """Expected size of what `node` writes; None where it holds no sequences, or unknown."""
        expected = _expected(node)
        if expected is None:
            return None
        if isinstance(expected.record, Record):
            each = bytes_per_position(expected.record, expected.entries)
        else:
            kept = expected.candidates
            each = _ID * (1 + mean_candidates(kept)) + _LOGP32 * expected.logp
            each += _LENGTH * isinstance(kept, Coverage)
        return Size(expected.tokens, round(expected.tokens * each))

    def memory(self, chosen: Planned, run: Table | None = None) -> Memory | None:
        """Memory it will need; None where it runs no model, or one that is not on this machine.

        Args:
            chosen: The node.
            run: Another `run` table in the place of its own.
        """
        node, shape = chosen.node, self.shape(chosen)
        if shape is None:
            return None
        data = self._data(_data_of(node))
        beside = None
        if isinstance(node.config, Student) and node.config.data == "live":
            beside = self._input_shape(chosen, "teacher")
        return memory_of(
            node.config if run is None else node.config.model_copy(update={"run": run}),
            shape,
            _dtype(node),
            self.machine,
            teacher=beside,
            longest=data.longest if data else None,
        )

    def room(self, chosen: Planned) -> Estimate:
        """What one node will write; the rest is left out."""
        config, shape = chosen.node.config, self.shape(chosen)
        model, next_round, checkpoints = None, 0, 0
        if isinstance(config, Training) and shape is not None:
            model = _SAVED[_dtype(chosen.node)] * shape.parameters
            if (self.steps(chosen.node) or 0) > config.run.checkpoint_every:
                checkpoints = 2 * _CHECKPOINT * shape.parameters
            if isinstance(config, Student) and config.hands_on(chosen.node.round):
                next_round = _CHECKPOINT * shape.parameters
        return Estimate(self.size(chosen.node), model, next_round, checkpoints)

    def of(self, chosen: Planned) -> Estimate:
        """Everything about one node; reads the manifests of the whole store."""
        shape, duration = self.shape(chosen), None
        if shape is not None and (work := self._work(chosen, shape)):
            if self._rates is None:
                self._rates = Rates.of(self._store, self.machine, self._shapes_by_payload())
            duration = self._rates.duration(chosen, work, shape, _dtype(chosen.node))
        return replace(self.room(chosen), memory=self.memory(chosen), duration=duration)

    def unknown(self) -> list[str]:
        """Models from elsewhere, or still to be made, whose shape is not known."""
        found: dict[str, None] = {}
        for one in self._planned.values():
            if isinstance(one.node.config, Derive) and self._made_shape(one) is None:
                found[one.node.name] = None
            for role, ref in one.node.inputs.items():
                elsewhere = isinstance(ref.source, External) and ref.source.kind == "model"
                if elsewhere and self._input_shape(one, role) is None:
                    found[one.inputs[role].path] = None
        return list(found)

    # Models.

    def shape(self, chosen: Planned) -> ModelShape | None:
        """Shape of the model that a node trains or runs; None where it is unknown, or runs none."""
        node = chosen.node
        if not isinstance(node.config, Training):
            role = _model_role(node)
            return self._input_shape(chosen, role) if role else None
        return self._made_shape(chosen)

    def _made_shape(self, chosen: Planned) -> ModelShape | None:
        """Shape of the model that a node makes: what is there, or what will be."""
        if chosen.node.name not in self._made:
            directory = chosen.directory(self._store) if self._manifest(chosen.node) else None
            config, found = chosen.node.config, None
            if isinstance(directory, Path):
                found = shape_of(directory)
            elif isinstance(config, Training):
                found = self._trained(chosen)
            elif isinstance(config, Derive) and config.prune:
                whole = self._input_shape(chosen, "model")
                found = whole.pruned(len(config.layers)) if whole else None
            self._made[chosen.node.name] = found
        return self._made[chosen.node.name]

    def _trained(self, chosen: Planned) -> ModelShape | None:
        """Shape of the model that a node trains."""
        if role := _model_role(chosen.node):
            return self._input_shape(chosen, role)
        architecture: Architecture | None = getattr(chosen.node.config, "architecture", None)
        rows = self._rows(chosen)
        return shape_from_scratch(architecture, rows) if architecture and rows else None

    def _rows(self, chosen: Planned) -> int | None:
        """Ids of the tokenizer that a model from scratch takes over."""
        source = _data_of(chosen.node)
        if manifest := self._manifest(source):
            found = manifest.meta.get("vocab_size")
            return int(found) if found else None
        while isinstance(source, Node):
            if isinstance(source.config, Corpus):
                tokenizer = source.config.tokenizer
                if tokenizer.kind == "byte_bpe":
                    return tokenizer.vocab_size
                made = source.config.task and task(source.config.task)
                return len(made.characters) + 2 if made else None
            if (role := _model_role(source)) and source.name in self._planned:
                shape = self._input_shape(self._planned[source.name], role)
                return shape.rows if shape else None
            source = source.data
        return None

    def _input_shape(self, chosen: Planned, role: str) -> ModelShape | None:
        ref, read = chosen.node.inputs.get(role), chosen.inputs.get(role)
        if ref is None or read is None:
            return None
        made = self._planned.get(ref.source.name) if isinstance(ref.source, Node) else None
        if made is not None:
            return self._made_shape(made)
        directory = model_directory(read)
        return shape_of(directory) if directory else None

    def _shapes_by_payload(self) -> dict[str, ModelShape]:
        """Shapes of the models that nodes read, by their identity in payloads."""
        found: dict[str, ModelShape] = {}
        for one in self._planned.values():
            role = _model_role(one.node)
            shape = self._input_shape(one, role) if role else None
            inputs = cast("dict[str, object]", one.payload["inputs"])
            if shape and role:
                found[spelled(inputs[role])] = shape
        return found

    # Data.

    def _manifest(self, source: Node | External | None) -> Manifest | None:
        """Manifest of a committed set."""
        if isinstance(source, External):
            return read_manifest(place(source.path))
        one = self._planned.get(source.name) if source else None
        return one.manifest(self._store) if one else None

    def _data(self, source: Node | External | None) -> Data | None:
        """The sequences of a set: what is there, or what is expected."""
        if manifest := self._manifest(source):
            parts = [part for part in manifest.parts if part.split == "train"]
            longest = [group.max_tokens for part in parts for group in part.row_groups]
            held_out = sum(part.tokens for part in manifest.parts if part.split == "holdout")
            sequences = sum(part.sequences for part in parts)
            tokens = sum(part.tokens for part in parts)
            return Data(sequences, tokens, max(longest, default=None), held_out)
        if not isinstance(source, Node) or (expected := _expected(source)) is None:
            return None
        origin = source
        while isinstance(origin.data, Node):
            origin = origin.data
        held_out = round(expected.tokens * float(getattr(origin.config, "holdout", 0.0)))
        longest = None
        if isinstance(origin.config, Generate):
            each = origin.config.sampling.max_tokens
        elif isinstance(origin.config, Corpus):
            each = longest = origin.config.sequence_length
        else:
            return None
        tokens = expected.tokens - held_out
        return Data(max(1, tokens // each), tokens, longest, held_out)

    def steps(self, node: Node) -> int | None:
        """Optimiser steps of a training node."""
        config, data = node.config, self._data(_data_of(node))
        assert isinstance(config, Training)
        if config.steps is not None or data is None:
            return config.steps
        return max(1, round((config.epochs or 0) * data.sequences / config.batch_size))

    def _work(self, chosen: Planned, shape: ModelShape) -> Work | None:
        """What a node computes."""
        node, config = chosen.node, chosen.node.config
        data = self._data(_data_of(node))
        if isinstance(config, Generate):
            size = self.size(node)
            return Work(written=size.tokens) if size else None
        if isinstance(config, TeacherLogits):
            return Work(read=data.tokens + data.held_out) if data else None
        if isinstance(config, Evaluate):
            count = _count(config.prompts) if config.prompts else 0
            each = (config.n + config.greedy) * config.sampling.max_tokens
            return Work(written=(count or 0) * each, read=data.held_out if data else 0)
        steps = self.steps(node) if isinstance(config, Training) else None
        if data is None or steps is None or not isinstance(config, Training):
            return None
        each = data.tokens / max(1, data.sequences)
        tokens = round(steps * config.batch_size * min(each, config.max_length or each))
        if getattr(config, "data", None) == "live":
            return Work(trained=tokens, written=tokens, read=tokens, steps=steps)
        return Work(trained=tokens, steps=steps)


def model_directory(source: Input) -> Path | None:
    """Directory of a model that is on this machine; None for one that would be downloaded."""
    directory = source.directory
    if not isinstance(directory, Path):
        return None
    if directory.is_dir():
        return directory
    known = is_hub_id(source.path)
    return cached_directory(source.path, source.revision) if known else None


def free_space(store: Store) -> int | None:
    """Bytes free where the store is, or will be; None for an object store."""
    if not isinstance(store.root, Path):
        return None
    there = next(path for path in (store.root, *store.root.parents) if path.exists())
    return shutil.disk_usage(there).free


def _model_role(node: Node) -> str | None:
    """The input that is the model a node trains or runs."""
    roles = (role for role, reads in node.stage.reads.items() if reads[0] in MODELS)
    return next((role for role in roles if role in node.inputs), None)


def _data_of(node: Node) -> Node | External | None:
    """The set of sequences or records that a node reads; of `pretrain`, the corpus."""
    corpus = node.inputs.get("corpus")
    return corpus.source if corpus else node.data


def _dtype(node: Node) -> str:
    """What the model of a node computes in."""
    own = getattr(node.config, "dtype", None)  # of `pretrain`
    role = _model_role(node)
    ref: Ref | None = node.inputs.get(role) if role else None
    return str(own) if own else ref.dtype if ref else "float32"


def _expected(node: Node) -> Expected | None:
    read = _expected(node.data) if isinstance(node.data, Node) else None
    return node.config.expected(_count, read)


def _count(source: PromptSource) -> int | None:
    return source.limit if source.limit is not None else count_prompts(source)


def bytes_per_position(record: Record, entries: float) -> float:
    """Compressed bytes of one position of a record set.

    Args:
        record: What is kept.
        entries: Ids kept at tau = 0.023 without candidates, or in 50 draws.
    """
    base = _ID + 2 * _LOGP32 + _LOGP16 + (_LOGP32 if record.loss_temperature else 0.0)
    kind, (head, drawn) = record.stores, record.ids_per_position(entries)
    size = base + _REST * kind.head + head * (_ID + _LOGP16)
    if isinstance(record, Drawn):
        each = _ID + _COUNT * kind.counts + _LOGP16 * record.logp
        size += _LENGTH * (record.copies + kind.head) + record.copies * drawn * each
    return size
