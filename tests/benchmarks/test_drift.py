"""Offline and live gradients: their comparison on known ones, and the whole on a tiny world."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.drift import HEADER, PAGE, Setting, cells, compare, measure, tables
from stages.config.training import Student
from tests.world import make_world


def test_noise_of_the_chunks_is_taken_out_of_cosine_and_difference() -> None:
    """Two known gradients under noise as large as they are, whose chunks are independent."""
    noise = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(400), torch.zeros(400)
    ours[0], theirs[0], theirs[1] = 3.0, 3.0, 4.0
    sides = [one + 0.3 * torch.randn(64, 400, generator=noise) for one in (ours, theirs)]
    cosine, difference = compare(*sides)
    assert cosine.value == pytest.approx(0.6, abs=0.03)
    assert difference.value == pytest.approx(0.8, abs=0.03)
    assert 0.0 < cosine.error < 0.03
    same, none = compare(sides[0], sides[0][torch.randperm(64, generator=noise)])
    assert same.value == pytest.approx(1.0, abs=0.1)
    assert none.value < 0.2


def test_gradients_that_are_nothing_but_noise_have_no_cosine() -> None:
    away = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    cosine, _ = compare(away, away)
    assert math.isnan(cosine.value)
    assert str(cosine) == "-"


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
