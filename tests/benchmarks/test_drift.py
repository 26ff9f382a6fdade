"""Offline and live gradients on a tiny world."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift import HEADER, PAGE, Setting, cells, measure, tables
from stages.config.training import Student
from tests.world import make_world


def test_a_student_leaves_the_policy_and_the_row_says_so(tmp_path: Path) -> None:
    world = make_world(tmp_path, count=32)
    setting = Setting(
        teacher=world.teacher,
        teacher_dtype="float32",
        policy=world.reference,
        student=world.reference,
        records=world.root / "records",
        config=Student(steps=8, batch_size=16),
        chunks=3,
        per_chunk=16,
    )
    start, end = measure(setting, 0.03, seed=0, marks=(0, 8))
    assert start.candidates["drift"] == pytest.approx(0.0, abs=1e-5)
    assert start.candidates["states"] == pytest.approx(0.0, abs=1e-4)
    assert start.candidates["mean w"] == pytest.approx(1.0, abs=1e-4)
    assert end.candidates["drift"] > 0.1
    assert 0.0 < end.candidates["tv"] < end.candidates["states"] < 1.0
    lengths = end.candidates["sequence KL"] / end.candidates["drift"]
    assert 1.0 < lengths < 12.0
    assert np.isfinite(end.losses).all()
    assert len(cells(end)) == len(HEADER)


def test_the_page_shows_the_runs_that_are_kept_beside_it() -> None:
    assert tables() in PAGE.read_text()
