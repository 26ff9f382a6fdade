"""Real teachers, trained by the stages themselves and kept in the store: a second run finds them.

    demo    the demo's teacher on the rollouts of its reference policy: three-digit addition
    text    a small language model of the Python standard library's source files, on that text

Shape letters: T positions, R rows of a block, C candidates, D hidden size, V vocabulary.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from benchmarks.harness import ROOT
from benchmarks.sources import Block
from stages.models.model import load_model, load_tokenizer, real_vocab_size, response_hidden
from stages.scoring.score import scoring_head
from storage.batch import Batch
from storage.codec import to_batch
from storage.manifest import read_manifest
from storage.shard import read_meta, read_rows

_ROWS, _SEQUENCES = 512, 8

_TEXT = str(Path(__file__).with_name("text.toml"))


@dataclass(frozen=True)
class Real:
    """A teacher, and sequences it is asked about; a `benchmarks.sources.Source`."""

    name: str
    model: Path
    sequences: Path

    @property
    def vocabulary(self) -> int:
        """Number of real ids."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> int:
        return real_vocab_size(self._loaded, load_tokenizer(self.model))

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        return load_model(self.model, "float32", "cpu")

    @torch.no_grad()
    def blocks(self, positions: int) -> Iterator[Block]:
        """Logits over the real vocabulary at the first positions, sequence after sequence."""
        model, head = self._loaded, scoring_head(self._loaded)
        left = positions
        for batch, cand_TC in self._batches(positions):
            hidden_TD = response_hidden(model, batch)
            for start in range(0, min(left, batch.tokens), _ROWS):
                rows = slice(start, min(start + _ROWS, batch.tokens, left))
                z_RV = head.logits(hidden_TD[rows])[:, : self.vocabulary].contiguous().numpy()
                yield Block(z_RV, batch.tok[rows], cand_TC[rows])
            left -= batch.tokens

    def lengths(self, positions: int) -> NDArray[np.int64]:
        """Lengths of the sequences, the last one cut."""
        every = np.concatenate([np.diff(b.tok_off) for b, _ in self._batches(positions)])
        ends = np.minimum(np.cumsum(every), positions)
        return np.diff(ends[ends - every < positions], prepend=0)

    def _batches(self, positions: int) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """A few sequences at a time with their candidates, until there are enough positions."""
        left = positions
        for part in read_manifest(self.sequences).parts:
            meta = read_meta(self.sequences / part.file)
            for group in read_rows(self.sequences / part.file):
                for start in range(0, len(group), _SEQUENCES):
                    if left <= 0:
                        return
                    rows = group.slice(start, min(start + _SEQUENCES, len(group)))
                    kept = meta.candidates if "cand" in rows else 0
                    cand_TC = np.zeros((rows.tokens, kept), np.int64)
                    if kept:
                        cand_TC[:] = rows["cand"].reshape(-1, kept)
                    yield to_batch(rows, meta), cand_TC
                    left -= rows.tokens


def demo(store: Path) -> Real:
    """The demo's teacher on the demo's rollouts."""
    sets = make(store, ["pretrain.teacher", "rollouts"], "--recipe", "demo")
    return Real("demo", sets["pretrain.teacher"], sets["rollouts"])


def text(store: Path) -> Real:
    """The teacher of `repro-rskd` where it has been trained, or else a smaller one of text."""
    recipe = ("--recipe", "repro-rskd") if _done(store, "repro-rskd") else ("--config", _TEXT)
    sets = make(store, ["pretrain.teacher", "corpus"], *recipe)
    name = "text (repro-rskd)" if "repro-rskd" in recipe else "text (small)"
    return Real(name, sets["pretrain.teacher"], sets["corpus"])


def _done(store: Path, recipe: str) -> bool:
    """Whether the teacher of a recipe is in the store."""
    found = _afterglow("status", "pretrain.teacher", "--recipe", recipe, store=store)
    return all(node["done"] for node in found["nodes"])


def make(
    store: Path,
    targets: list[str],
    *recipe: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Mapping[str, Path]:
    """Directories of the targets' sets, which are made if they are not in the store.

    Args:
        store: Where they are, or will be.
        targets: Nodes.
        recipe: Arguments that select a recipe and override its fields.
        environment: Variables added to those of this process while sets are made.
    """
    result = _afterglow("run", *targets, *recipe, store=store, environment=environment)
    return {name: Path(directory) for name, directory in result["sets"].items()}


def _afterglow(
    *arguments: str, store: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Run the command; what the last line it prints says."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--set", f"store={store.absolute()}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**inherited, **environment},
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
