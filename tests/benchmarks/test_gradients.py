"""Gradients compared through noise: known ones, seen in chunks."""

import math

import pytest
import torch

from benchmarks.gradients import compare, distance, noise, norm


def test_noise_of_the_chunks_is_taken_out_of_cosine_and_difference() -> None:
    """Two known gradients under noise as large as they are, whose chunks are independent."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(400), torch.zeros(400)
    ours[0], theirs[0], theirs[1] = 3.0, 3.0, 4.0
    sides = [one + 0.3 * torch.randn(64, 400, generator=draw) for one in (ours, theirs)]
    cosine, difference = compare(*sides)
    assert cosine.value == pytest.approx(0.6, abs=0.03)
    assert difference.value == pytest.approx(0.8, abs=0.03)
    assert 0.0 < cosine.error < 0.03
    same, none = compare(sides[0], sides[0][torch.randperm(64, generator=draw)])
    assert same.value == pytest.approx(1.0, abs=0.1)
    assert none.value < 0.2


def test_noise_that_both_sides_share_is_taken_out_too() -> None:
    """Two orthogonal gradients of the same sequences, whose noise alone points the same way."""
    draw = torch.Generator().manual_seed(1)
    shared = torch.randn(32, 200, generator=draw)
    ours, theirs = shared.clone(), shared.clone()
    ours[:, 0] += 5.0
    theirs[:, 1] += 5.0
    assert compare(ours, theirs)[0].value > 0.15
    cosine, _ = compare(ours, theirs, same_sequences=True)
    assert cosine.value == pytest.approx(0.0, abs=3 * cosine.error)


def test_gradients_that_are_nothing_but_noise_have_no_cosine() -> None:
    away = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    cosine, _ = compare(away, away)
    assert math.isnan(cosine.value)
    assert str(cosine) == "-"


def test_the_batch_whose_noise_is_as_long_as_the_gradient() -> None:
    """Sequences of variance 1 in 300 directions, in chunks of 8; the gradient has length 5."""
    draw = torch.Generator().manual_seed(2)
    chunks = torch.randn(64, 300, generator=draw) / math.sqrt(8)
    chunks[:, 0] += 5.0
    found = noise(chunks, per_chunk=8)
    assert found.value == pytest.approx(300 / 25, abs=3 * found.error)
    assert found.error < 1.0
    length = norm(chunks)
    assert length.value == pytest.approx(5.0, abs=3 * length.error)
    assert distance(chunks, chunks.flip(0)).value < 1.0
