"""Offline and live gradients on a tiny world."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import (
    HEADER,
    PAGE,
    Setting,
    cells,
    distance,
    held_out,
    measure,
    tables,
)
from stages.config.training import Student
from tests.world import World, make_world


def of_world(world: World, *, student: Path, steps: int, per_chunk: int) -> Setting:
    """Three chunks on each side."""
    return Setting(
        teacher=world.teacher,
        teacher_dtype="float32",
        policy=world.reference,
        student=student,
        records=world.root / "records",
        config=Student(steps=steps, batch_size=16),
        chunks=3,
        per_chunk=per_chunk,
    )


def test_a_student_leaves_the_policy_and_the_row_says_so(tmp_path: Path) -> None:
    world = make_world(tmp_path, count=32)
    setting = of_world(world, student=world.reference, steps=8, per_chunk=16)
    start, end = measure(setting, 0.03, 0, (0, 8), held_out(setting, 0))
    assert start.candidates["drift"] == pytest.approx(0.0, abs=1e-5)
    assert start.candidates["states"] == pytest.approx(0.0, abs=1e-4)
    assert start.candidates["mean w"] == pytest.approx(1.0, abs=1e-4)
    assert end.candidates["drift"] > 0.1
    assert 0.0 < end.candidates["tv"] < end.candidates["states"] < 1.0
    lengths = end.candidates["sequence KL"] / end.candidates["drift"]
    assert 1.0 < lengths < 12.0
    assert np.isfinite(end.losses).all()
    assert len(cells(end)) == len(HEADER)


def test_a_large_model_is_compared_without_the_halves(tmp_path: Path) -> None:
    world = make_world(tmp_path, count=16)
    setting = of_world(world, student=world.reference, steps=1, per_chunk=8)
    held = held_out(setting, 0)
    (whole,) = measure(replace(setting, halves=False), 0.03, 0, (0,), held)
    (halved,) = measure(setting, 0.03, 0, (0,), held)
    assert whole.cosine.value == pytest.approx(halved.cosine.value, rel=1e-4)
    assert whole.losses == pytest.approx(halved.losses)
    assert cells(whole)[HEADER.index("cosine, halves")] == "-; -"


def test_the_distance_of_the_teacher_is_that_of_a_student_that_is_the_teacher(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, count=16)
    setting = of_world(world, student=world.teacher, steps=1, per_chunk=16)
    held = held_out(setting, 0)
    (row,) = measure(setting, 1e-3, 0, (0,), held)
    assert row.candidates["drift"] == pytest.approx(distance(setting.records), rel=0.3)


def test_the_page_shows_the_runs_that_are_kept_beside_it() -> None:
    assert tables() in PAGE.read_text()
