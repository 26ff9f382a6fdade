"""Random sequences scored by a real tiny teacher, committed as one split of a record set."""

from pathlib import Path

import numpy as np

from stages.config.data import Sampling
from stages.config.record_kinds import Record
from stages.models.identity import tokenizer_hash
from stages.models.model import load_model
from stages.scoring.score import score_rows, scoring_head
from storage.manifest import SetIdentity, SetMeta, write_manifest
from storage.rows import Rows
from storage.sets import commit_parts
from storage.shard import PartWriter
from tests.stages.training.cases import VOCABULARY

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
    kept = record.forced
    model = load_model(teacher, "float32", "cpu")
    rows = score_rows(
        model, scoring_head(model), random_rows(kept), record, 0, vocab_size=VOCABULARY
    )
    drawn = sampling or Sampling()
    meta = {
        "record": record.described(),
        "sampling": drawn.model_dump(),
        "full_support": drawn.full_support,
    }
    footer = SetMeta("teacher-logits", KEY, "records", VOCABULARY, kept, meta["record"])
    with PartWriter(directory, 0, footer, split) as writer:
        writer.write(rows)
    manifest = commit_parts(
        directory,
        SetIdentity(
            "teacher-logits",
            1,
            KEY,
            "teacher-logits",
            "records",
            {},
            tokenizer={"tokenizer": tokenizer_hash(teacher)},
            meta=meta,
        ),
        1,
    )
    write_manifest(directory, manifest)
    return directory
