"""Random sequences scored by a real tiny teacher, committed as one split of a record set."""

from pathlib import Path

import numpy as np

from stages.config.data import Sampling
from stages.config.record_kinds import Record
from stages.models.identity import tokenizer_hash
from storage.rows import Rows
from tests.world import VOCABULARY, commit, score

COUNT, LENGTH, PROMPT = 96, 12, 2
KEY = "cd" * 32


def random_rows(candidates: int) -> Rows:
    """Uniform random letters: a behaviour policy of full support whose probabilities are known."""
    rng = np.random.default_rng(3)
    columns = {
        "seq_id": np.arange(COUNT),
        "prompt_id": np.arange(COUNT) // 2,
        "sample": np.arange(COUNT) % 2,
        "finish": np.ones(COUNT, np.int64),
        "outcome": np.full(COUNT, -1),
        "prompt": rng.integers(0, VOCABULARY, COUNT * PROMPT),
        "tok": rng.integers(0, VOCABULARY, COUNT * LENGTH),
        "ref_lp": np.full(COUNT * LENGTH, -np.log(VOCABULARY)),
    }
    if candidates:
        choices = [rng.permutation(VOCABULARY)[:candidates] for _ in range(COUNT * LENGTH)]
        columns["cand"] = np.concatenate(choices)
    offsets = {"prompt": np.arange(COUNT + 1) * PROMPT, "position": np.arange(COUNT + 1) * LENGTH}
    return Rows.from_columns(columns, offsets)


def scored(
    directory: Path,
    teacher: Path,
    record: Record,
    split: str = "holdout",
    sampling: Sampling | None = None,
) -> Path:
    """A committed record set of random sequences in one split."""
    rows = score(teacher, random_rows(record.forced), record)
    commit(
        directory,
        {split: [rows]},
        key=KEY,
        record=record,
        candidates=record.forced,
        tokenizer={"tokenizer": tokenizer_hash(teacher)},
        sampling=sampling or Sampling(),
    )
    return directory
