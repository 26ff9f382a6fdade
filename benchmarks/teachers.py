"""Real teachers, trained by the stages themselves and kept in the store: a second run finds them.

    demo      the demo's teacher on the rollouts of its reference policy: three-digit addition
    text      a small language model of the Python standard library's source files, on that text
    smollm2   SmolLM2-135M-Instruct, with all its 49,152 ids, on those source files and on answers
              of its own to `prompts.jsonl`

Shape letters: T positions, R rows of a block, C candidates, D hidden size, V vocabulary.
"""

import hashlib
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

_ROWS, _SEQUENCES = 128, 8

_TEXT, _SMOLLM2 = (str(Path(__file__).with_name(name)) for name in ("text.toml", "smollm2.toml"))


@dataclass(frozen=True)
class Real:
    """A teacher, and sequences it is asked about; a `benchmarks.sources.Source`."""

    name: str
    model: Path
    sequences: Path
    scratch: Path | None = None
    """Where final hidden states are kept for whoever asks again; None: nowhere."""

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
        head = scoring_head(self._loaded)
        left = positions
        for batch, cand_TC, hidden_TD in self._states(positions):
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

    def frequencies(self) -> NDArray[np.int64]:
        """[V] how often each id stands in the sequences."""
        count_V = np.zeros(self.vocabulary, np.int64)
        for part in read_manifest(self.sequences).parts:
            for group in read_rows(self.sequences / part.file):
                count_V += np.bincount(group["tok"], minlength=len(count_V))
        return count_V

    def _states(self, positions: int) -> Iterator[tuple[Batch, NDArray[np.int64], torch.Tensor]]:
        """As `_batches`, with final hidden states [T, D]: four fifths of the work, and small."""
        if self.scratch is None:
            for batch, cand_TC in self._batches(positions):
                yield batch, cand_TC, response_hidden(self._loaded, batch)
            return
        called = hashlib.sha256(f"{self.model} {self.sequences}".encode()).hexdigest()
        file = self.scratch / f"{called[:16]}.npy"
        wanted = sum(batch.tokens for batch, _ in self._batches(positions))
        if not file.exists() or len(np.load(file, mmap_mode="r")) < wanted:
            every = [response_hidden(self._loaded, one) for one, _ in self._batches(positions)]
            np.save(file, torch.cat(every).numpy())
        kept_TD, first = torch.from_numpy(np.load(file)), 0
        for batch, cand_TC in self._batches(positions):
            yield batch, cand_TC, kept_TD[first : first + batch.tokens]
            first += batch.tokens

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


def smollm2(store: Path, scratch: Path | None) -> tuple[Real, Real]:
    """SmolLM2 on source code, and on its own answers to open questions.

    Args:
        store: Where the sets are, or will be.
        scratch: As `Real.scratch`.

    Raises:
        CalledProcessError: they are not there and cannot be made; the extra `smollm2` is needed.
    """
    sets = make(store, ["derive.teacher", "corpus", "sft-data"], "--config", _SMOLLM2)
    teacher = sets["derive.teacher"]
    return (
        Real("SmolLM2, code", teacher, sets["corpus"], scratch),
        Real("SmolLM2, rollouts", teacher, sets["sft-data"], scratch),
    )


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
