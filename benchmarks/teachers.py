"""Real teachers, trained by the stages themselves and kept in the store: a second run finds them.

    demo    the demo's teacher on the rollouts of its reference policy: three-digit addition
    text    a small language model of the Python standard library's source files, on that text

Shape letters: T positions, D hidden size, V vocabulary, R rows of a chunk.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models import load_model, load_tokenizer, real_vocab_size, response_hidden
from stages.scoring.score import scoring_head
from storage.codec import to_batch
from storage.manifest import read_manifest
from storage.rows import Rows
from storage.shard import read_meta, read_rows

log = logging.getLogger("benchmarks")

TEXT_RECIPE = Path(__file__).with_name("text.toml")


@dataclass(frozen=True)
class Real:
    """A teacher, and sequences it is asked about."""

    name: str
    model: Path
    sequences: Path

    def rows(self, positions: int) -> Rows:
        """The first sequences, of at least so many positions together if there are."""
        taken: list[Rows] = []
        for part in read_manifest(self.sequences).parts:
            for rows in read_rows(self.sequences / part.file):
                taken.append(rows)
                if sum(rows.tokens for rows in taken) >= positions:
                    return Rows.concat(taken)
        return Rows.concat(taken)

    @torch.no_grad()
    def logits(self, rows: Rows, rows_per_chunk: int = 512) -> Iterator[NDArray[np.float32]]:
        """Logits of the real vocabulary at every position of `rows`, [R, V] at a time."""
        model = load_model(self.model, "float32", "cpu")
        head = scoring_head(model)
        vocabulary = real_vocab_size(model, load_tokenizer(self.model))
        part = read_manifest(self.sequences).parts[0]
        meta = read_meta(self.sequences / part.file)
        for micro in (to_batch(rows.slice(i, i + 8), meta) for i in range(0, len(rows), 8)):
            hidden_TD = response_hidden(model, micro)
            for start in range(0, len(hidden_TD), rows_per_chunk):
                z_RW = head.logits(hidden_TD[start : start + rows_per_chunk])
                yield np.ascontiguousarray(z_RW[:, :vocabulary].numpy())


def demo(store: Path) -> Real:
    """The demo's teacher on the demo's rollouts."""
    sets = make(store, ["pretrain.teacher", "rollouts"], "--recipe", "demo")
    return Real("demo", sets["pretrain.teacher"], sets["rollouts"])


def text(store: Path) -> Real:
    """The teacher of text, on text it was not trained on and text it was."""
    sets = make(store, ["pretrain.teacher", "corpus"], "--config", str(TEXT_RECIPE))
    return Real("text", sets["pretrain.teacher"], sets["corpus"])


def make(store: Path, targets: list[str], *recipe: str) -> Mapping[str, Path]:
    """Directories of the targets' sets, which are made if they are not in the store."""
    command = [sys.executable, "-m", "pipeline", "run", *targets, *recipe]
    done = subprocess.run(
        [*command, "--set", f"store={store.absolute()}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: Path(directory) for name, directory in result["sets"].items()}
