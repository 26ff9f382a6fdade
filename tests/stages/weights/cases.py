"""A small world whose rollouts have outcomes and several responses a prompt."""

import shutil
from pathlib import Path

import numpy as np

from stages.config.record_kinds import stored_record
from storage.manifest import read_manifest
from storage.rows import Rows
from tests.storage.make import rows_of
from tests.world import B_KEY, World, commit, identity, make_world

SAMPLES = 4
"""Responses that count as those of one prompt."""


def graded_world(root: Path, *, outcomes: bool = True, samples: int = SAMPLES) -> World:
    """`make_world`, its records with outcomes and grouped into prompts of pass rates 0 to 1."""
    world = make_world(root)
    directory = root / "records"
    record = stored_record(read_manifest(directory).meta["record"])
    rows = rows_of(directory)
    seq_id = rows["seq_id"]
    prompt_id = seq_id // samples
    right = seq_id % SAMPLES < seq_id // SAMPLES % (SAMPLES + 1)
    columns = {
        **rows.columns,
        "prompt_id": prompt_id,
        "outcome": right.astype(np.int8) if outcomes else np.full(len(seq_id), -1, np.int8),
    }
    shutil.rmtree(directory)
    commit(
        directory,
        Rows.from_columns(columns, rows.offsets),
        key=B_KEY,
        record=record,
        candidates=2,
        generator=identity(world.reference),
        teacher=identity(world.teacher),
        words=world.teacher,
    )
    return world
