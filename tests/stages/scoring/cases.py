"""A small real teacher with a padded vocabulary, sequences to score, and plain float32 answers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.models.model import load_model
from storage.rows import Rows
from tests.world import write_model

LETTERS = "".join(chr(ord("!") + i) for i in range(88))
REAL = len(LETTERS) + 2
"""Ids of the tokenizer: letters, end and padding."""
ROWS = 96
"""Rows of the head; the surplus carries probability nobody should see."""
CONTEXT = 24


SHAPE: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "layers": 2,
    "head_dim": 16,
    "context": CONTEXT,
}


def write_teacher(directory: Path, seed: int = 0, letters: str = LETTERS, **changes: Any) -> Path:
    return write_model(directory, seed, letters=letters, by=15.0, **(SHAPE | changes))


def load(directory: Path, dtype: str = "float32") -> PreTrainedModel:
    return load_model(directory, dtype, "cpu")


def sequences(count: int, seed: int = 0, candidates: int = 4, reference: bool = True) -> Rows:
    """Random sequences of uneven lengths; `prompt` holds at least one token."""
    rng = np.random.default_rng(seed)
    items: list[dict[str, Any]] = []
    for index in range(count):
        prompt, response = int(rng.integers(1, 8)), int(rng.integers(1, 14))
        item: dict[str, Any] = {
            "seq_id": 1000 + index,
            "prompt_id": index // 2,
            "sample": index % 2,
            "finish": index % 2,
            "outcome": index % 3 - 1,
            "prompt": rng.integers(0, REAL, prompt),
            "tok": rng.integers(0, REAL, response),
        }
        if reference:
            item["ref_lp"] = -rng.random(response)
        if candidates:
            ids = [rng.permutation(REAL)[:candidates] for _ in range(response)]
            item["cand"] = np.concatenate(ids)
        items.append(item)
    return Rows.from_sequences(items)


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, rows: Rows, temperature: float = 1.0, real: int = REAL
) -> np.ndarray:
    """[T, real] log-probabilities by a plain float32 forward, one sequence at a time."""
    model = model.float()
    out: list[np.ndarray] = []
    for index in range(len(rows)):
        one = rows.sequence(index)
        ids = np.concatenate([one["prompt"], one["tok"]]).astype(np.int64)
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :, :real]
        log_p = torch.log_softmax(logits.double() / temperature, -1)
        out.append(log_p[len(one["prompt"]) - 1 : -1].numpy())
    return np.concatenate(out)
