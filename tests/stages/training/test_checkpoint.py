"""Checkpoints: whole or not there, and only for the run they belong to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stages.config import Training
from stages.training import checkpoint
from stages.training.checkpoint_file import seal
from stages.training.optim import adamw
from storage.errors import DataError, RetryError

RUN = {"key": "a" * 64, "data": "b" * 64}


def take_step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 3)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_weights_optimiser_and_random_state_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = adamw(model, Training(steps=5, learning_rate=0.1))
    take_step(model, optimiser)
    checkpoint.save(tmp_path, RUN, checkpoint.capture(model, optimiser) | {"step": 1})
    take_step(model, optimiser)
    expected = model.weight.detach().clone()

    other = nn.Linear(3, 2)
    other_optimiser = adamw(other, Training(steps=5, learning_rate=0.1))
    state = checkpoint.load(tmp_path, RUN)
    assert state is not None
    assert state["step"] == 1
    checkpoint.restore(state, other, other_optimiser)
    take_step(other, other_optimiser)
    assert torch.equal(other.weight, expected)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, RUN) is None


def test_only_the_latest_is_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, RUN, {"step": step})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (checkpoint.load(tmp_path, RUN) or {})["step"] == 2


@pytest.mark.parametrize("field", ["key", "data"])
def test_another_runs_checkpoint_is_refused_with_both_names(tmp_path: Path, field: str) -> None:
    checkpoint.save(tmp_path, RUN, {"step": 1})
    with pytest.raises(DataError, match="checkpoint of another run") as caught:
        checkpoint.load(tmp_path, RUN | {field: "c" * 64})
    assert RUN[field] in str(caught.value)
    assert "c" * 64 in str(caught.value)


def test_a_later_versions_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"version": 99, "identity": RUN}, tmp_path / "checkpoint.pt")
    seal(tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="checkpoint version 99"):
        checkpoint.load(tmp_path, RUN)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    checkpoint.save(tmp_path, RUN, {"step": 1, "model": torch.zeros(100)})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged checkpoint"):
        checkpoint.load(tmp_path, RUN)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, RUN, {"step": 1, "model": torch.zeros(100)})
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 200):
        damaged = bytearray(whole)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged checkpoint"):
            checkpoint.load(tmp_path, RUN)
    for size in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged checkpoint"):
            checkpoint.load(tmp_path, RUN)


def test_a_disk_that_refuses_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, RUN, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RetryError, match="No space left"):
        checkpoint.save(tmp_path, RUN, {"step": 2})
    assert (checkpoint.load(tmp_path, RUN) or {})["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_one_set_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        checkpoint.workspace(tmp_path),
        pytest.raises(RetryError, match="another process"),
        checkpoint.workspace(tmp_path),
    ):
        pass
    with checkpoint.workspace(tmp_path) as work:
        assert work == tmp_path / ".work"


def test_the_workspace_sweeps_what_killed_writers_left_and_can_be_discarded(tmp_path: Path) -> None:
    with checkpoint.workspace(tmp_path) as work:
        (work / ".checkpoint.pt.1.ab.tmp").write_bytes(b"half")
    with checkpoint.workspace(tmp_path) as work:
        assert [path.name for path in work.iterdir()] == ["lock"]
        checkpoint.discard(work)
    assert list(tmp_path.iterdir()) == []
