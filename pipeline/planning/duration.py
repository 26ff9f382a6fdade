"""How long a node will take: measured where the store has a like set, else rough arithmetic.

A set of the same stage, made on a machine like this one, gives a rate: weights multiplied per
second. Training says its speed itself (`metrics.jsonl`); of other stages the ledger holds seconds,
engine start included. The set with the most tokens counts. Without one,

    reading    2 operations a weight and token
    training   6, or 8 with gradient checkpointing
    writing    every step reads all weights once, for all sequences that are decoded together

at rates that are assumptions about hardware, stated below, of which an ordinary run reaches the
given share. Such a figure is rough: a factor of three either way, more for models so small that
Python takes the time.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import ledger
from pipeline.planning.machine import Machine
from pipeline.planning.plan import Planned
from stages.config.execution import Workers
from stages.config.generation import EngineRun
from stages.config.records import ScoreRun
from stages.config.training import TrainRun
from stages.models.shape import ModelShape, shape_of
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest
from storage.store import Store

_GPUS = {
    "B200": (2250e12, 8.0e12),
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.3e12),
    "A100": (312e12, 2.0e12),
    "L40": (362e12, 0.86e12),
    "4090": (165e12, 1.0e12),
}
"""bfloat16 operations a second without sparsity, and bytes a second, as their makers say."""
_GPU = (100e12, 1.0e12)
"""Of a GPU that the table lacks."""
_GPU_SHARE = 0.35
_CORE = (20e9, 10e9)
"""What one CPU core really reaches: operations and bytes a second."""
_STEP = {"cpu": 5e-3, "cuda": 12e-3}
"""Seconds that a decoding step takes whatever the model: scheduling and drawing."""
_UPDATE = {"cpu": 2e-2, "cuda": 5e-2}
"""The same of an optimiser step."""
_START = {"cpu": 15.0, "cuda": 60.0}
"""Seconds until a process with its libraries and its model is ready."""


@dataclass(frozen=True)
class Work:
    """Tokens that pass through the model of a node."""

    read: int = 0
    written: int = 0
    trained: int = 0
    steps: int = 0
    """Optimiser steps."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.read + self.written + self.trained


@dataclass(frozen=True)
class Duration:
    """How long a node will take."""

    seconds: float
    basis: str
    """`measured` or `rough`."""
    source: str
    """The set that was measured, or the assumptions."""


@dataclass(frozen=True)
class Measured:
    """How fast a stage was: weights times tokens a second."""

    rate: float
    tokens: int
    """It was measured over."""
    set: str


@dataclass(frozen=True)
class Rates:
    """Speeds on one machine."""

    machine: Machine
    measured: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
    """By stage."""

    @classmethod
    def of(cls, store: Store, machine: Machine, shapes: Mapping[str, ModelShape]) -> "Rates":
        """What the sets of a store on this machine say.

        Args:
            store: Its manifests and ledgers are read; one on an object store is left alone.
            machine: Only sets made on one like it count.
            shapes: Shapes of models from elsewhere, by their identity in payloads.
        """
        found: dict[str, Measured] = {}
        if not isinstance(store.root, Path):
            return cls(machine)
        try:
            sets = list(store.sets())
        except DataError:  # somebody else's damaged set: what depends on it will say so
            return cls(machine)
        models = {manifest.key: shape_of(Path(str(path))) for path, manifest in sets}
        for path, manifest in sets:
            if ledger.machine(path) != str(machine):
                continue
            one = _measure(path, manifest, models, shapes)
            before = found.get(manifest.stage)
            if one and (before is None or one.tokens > before.tokens):
                found[manifest.stage] = one
        return cls(machine, found)

    def duration(self, chosen: Planned, work: Work, model: ModelShape, dtype: str) -> Duration:
        """How long a node takes to do its work."""
        if (known := self.measured.get(chosen.node.stage.name)) is not None:
            seconds = work.tokens * model.multiplied / known.rate
            if work.trained:  # what it logs leaves out the start
                seconds += _START[self.machine.device()]
            return Duration(seconds, "measured", known.set)
        run = getattr(chosen.node.config, "run", None)
        wanted = run.device if isinstance(run, TrainRun | ScoreRun) else "auto"
        device = self.machine.device(wanted)
        operations, transfer, said = self._hardware(device)
        M = model.multiplied
        seconds = _START[device] + 2 * M * work.read / operations
        factor = 6
        if isinstance(run, TrainRun):
            factor = 8 if run.gradient_checkpointing else 6
            operations *= run.processes if device == "cuda" else 1
        seconds += factor * M * work.trained / operations + work.steps * _UPDATE[device]
        if work.written:
            together = run.max_sequences if isinstance(run, EngineRun) else 64
            size = 2 if dtype == "bfloat16" else 4
            step = max(size * M / transfer, 2 * M * together / operations) + _STEP[device]
            seconds += work.written / together * step
        if isinstance(run, Workers) and device == "cuda":
            seconds /= run.workers
        return Duration(seconds, "rough", said)

    def _hardware(self, device: str) -> tuple[float, float, str]:
        """Operations and bytes a second, and the assumption in words."""
        if device == "cuda":
            name = self.machine.gpus[0].name
            peak, transfer = next((_GPUS[key] for key in _GPUS if key in name), _GPU)
            said = f"{name}: {_GPU_SHARE:.0%} of {peak / 1e12:.0f} TFLOP/s"
            return peak * _GPU_SHARE, transfer * 0.6, said
        cores = self.machine.cores
        said = f"{cores} cores at {_CORE[0] / 1e9:.0f} GFLOP/s"
        return cores * _CORE[0], min(cores, 8) * _CORE[1], said


def spelled(entry: object) -> str:
    """What a payload says of a model, in one spelling."""
    return json.dumps(entry, sort_keys=True)


def _measure(
    directory: Place,
    manifest: Manifest,
    models: Mapping[str, ModelShape | None],
    shapes: Mapping[str, ModelShape],
) -> Measured | None:
    """The rate at which a committed set was made; None where its ledger does not tell."""
    if manifest.kind == "model":
        shape, speed = models.get(manifest.key), _training_speed(directory)
        if shape is None or not speed:
            return None
        return Measured(speed * shape.multiplied, manifest.totals.bytes, directory.name)
    inputs: dict[str, Any] = manifest.payload.get("inputs") or {}
    seconds = float(ledger.cost(directory).get("seconds", 0.0))
    tokens = manifest.totals.tokens
    for role in ("teacher", "model"):
        entry: dict[str, Any] = inputs.get(role) or {}
        shape = models.get(str(entry.get("key"))) or shapes.get(spelled(entry))
        if shape is not None and tokens and seconds > 0:
            return Measured(tokens * shape.multiplied / seconds, tokens, directory.name)
    return None


def _training_speed(directory: Place) -> float | None:
    """Tokens a second: the median of what a run logged."""
    try:
        lines: list[Any] = [
            json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
        ]
    except (OSError, ValueError):
        return None
    speeds = [float(line["tokens_per_second"]) for line in lines if "tokens_per_second" in line]
    return statistics.median(speeds) if speeds else None
