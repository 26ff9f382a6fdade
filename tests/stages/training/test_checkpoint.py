"""Checkpoints: whole or not there, only for the run they belong to, at any number of processes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.config.training import Training
from stages.training import checkpoint
from stages.training.checkpoint import HEAD, rows_of
from stages.training.group import Group
from stages.training.optim import adamw
from storage.errors import DataError, RetryError

T = TypeVar("T")

RUN = {"key": "a" * 64, "data": "b" * 64}


class Threads(Group):
    """A process of several, played by a thread."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        self.rank, self.size, self._values, self._barrier = rank, len(values), values, barrier

    def all_gather(self, value: T) -> list[T]:
        """See `Group`."""
        self._values[self.rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found


def by_several(count: int, action: Callable[[Group], T]) -> list[T]:
    """What `action` returns in each of `count` processes."""
    values: list[Any] = [None] * count
    barrier = Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        groups = [Threads(rank, values, barrier) for rank in range(count)]
        return list(pool.map(action, groups))


def save(work: Path, step: int, **tensors: Tensor) -> None:
    checkpoint.save(work, RUN, tensors, {"step": step}, {})


def saved_by(count: int, work: Path, step: int = 4) -> Tensor:
    """Several processes save four rows of a weight each; returns all rows."""
    weight = torch.arange(8.0 * count).reshape(4 * count, 2)

    def one(group: Group) -> None:
        tensors = {"weight": weight[4 * group.rank :][:4], "scale": torch.tensor(7.0)}
        checkpoint.save(work, RUN, tensors, {"step": step}, {"sum": group.rank}, group)

    by_several(count, one)
    return weight


def load(work: Path, identity: dict[str, str] = RUN, **tensors: Tensor) -> dict[str, Any] | None:
    return checkpoint.load(work, identity, tensors)


def take_step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 3)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_weights_optimiser_and_random_state_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = adamw(model, Training(steps=5, learning_rate=0.1))
    take_step(model, optimiser)
    tensors = checkpoint.tensors_of(model, optimiser)
    checkpoint.save(tmp_path, RUN, tensors, {"step": 1}, {})
    take_step(model, optimiser)
    expected = model.weight.detach().clone()

    other = nn.Linear(3, 2)
    other_optimiser = adamw(other, Training(steps=5, learning_rate=0.1))
    state = checkpoint.load(tmp_path, RUN, checkpoint.tensors_of(other, other_optimiser))
    assert state is not None
    assert state["step"] == 1
    take_step(other, other_optimiser)
    assert torch.equal(other.weight, expected)


def test_the_optimiser_steps_the_same_from_state_made_beforehand() -> None:
    """`tensors_of` makes what AdamW would make itself at its first step."""
    torch.manual_seed(0)
    results: list[Tensor] = []
    for beforehand in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        optimiser = adamw(model, Training(steps=5, learning_rate=0.1))
        if beforehand:
            checkpoint.tensors_of(model, optimiser)
        take_step(model, optimiser)
        take_step(model, optimiser)
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert load(tmp_path) is None


def test_only_the_latest_is_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEAD, "step-00000002"]
    assert (load(tmp_path) or {})["step"] == 2


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("field", ["key", "data"])
def test_another_runs_checkpoint_is_refused_with_both_names(
    tmp_path: Path, field: str, count: int
) -> None:
    saved_by(count, tmp_path)
    with pytest.raises(DataError, match="checkpoint of another run") as caught:
        load(tmp_path, RUN | {field: "c" * 64})
    assert RUN[field] in str(caught.value)
    assert "c" * 64 in str(caught.value)


def test_an_earlier_versions_checkpoint_is_refused(tmp_path: Path) -> None:
    """One process left a single sealed file, several left a JSON head; both say what to do."""
    torch.save({"version": 1, "identity": RUN, "model": torch.zeros(9)}, tmp_path / HEAD)
    digest = sha256((tmp_path / HEAD).read_bytes()).hexdigest()
    with (tmp_path / HEAD).open("ab") as stream:
        stream.write(b"\nafterglow sha256 " + digest.encode())
    with pytest.raises(DataError, match=r"checkpoint version 1.* Remove .* to train from the"):
        load(tmp_path)
    (tmp_path / HEAD).unlink()
    (tmp_path / "checkpoint.json").write_text("{}")
    with pytest.raises(DataError, match="checkpoint version 1"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1)
    path = tmp_path / HEAD
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="damaged checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize("name", [HEAD, "step-00000001/0-of-1.pt"])
def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1, weight=torch.zeros(100))
    path = tmp_path / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 200):
        damaged = bytearray(whole)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged checkpoint"):
            load(tmp_path, weight=torch.zeros(100))
    for size in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged checkpoint"):
            load(tmp_path, weight=torch.zeros(100))


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing"])
def test_damage_to_any_processs_file_is_refused_by_all(tmp_path: Path, damage: str) -> None:
    saved_by(2, tmp_path)
    file = tmp_path / "step-00000004" / "1-of-2.pt"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        file.unlink()

    def refused(group: Group) -> str:
        with pytest.raises(DataError, match="damaged checkpoint") as caught:
            checkpoint.load(tmp_path, RUN, {}, group)
        return str(caught.value)

    first, second = by_several(2, refused)
    assert str(file) in first
    assert first == second


def test_without_its_head_there_is_no_checkpoint(tmp_path: Path) -> None:
    saved_by(2, tmp_path)
    (tmp_path / HEAD).unlink()
    assert load(tmp_path) is None


def test_a_single_process_goes_on_and_takes_over(tmp_path: Path) -> None:
    expected = saved_by(2, tmp_path)
    weight, scale = torch.zeros(8, 2), torch.zeros(())
    found = load(tmp_path, weight=weight, scale=scale)
    assert torch.equal(weight, expected)
    assert scale == 7.0
    assert found is not None
    assert found["step"] == 4
    assert [own["sum"] for own in found["own"]] == [0, 1]
    save(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEAD, "step-00000008"]


@pytest.mark.parametrize(("after", "sums"), [(2, [[0], [1]]), (3, [[0, 1], [], []])])
def test_sums_stay_where_they_are_or_go_to_the_first_process(
    tmp_path: Path, after: int, sums: list[list[int]]
) -> None:
    saved_by(2, tmp_path)

    def own(group: Group) -> list[int]:
        found = checkpoint.load(tmp_path, RUN, {}, group)
        assert found is not None
        return [state["sum"] for state in found["own"]]

    assert by_several(after, own) == sums


@given(rows=st.integers(0, 40), before=st.integers(1, 9), after=st.integers(1, 9))
def test_every_row_goes_to_one_process(rows: int, before: int, after: int) -> None:
    """As torch shards them: evenly, the last processes with fewer or none."""
    whole = torch.arange(rows * 2).reshape(rows, 2)
    pieces = _shards(whole, before)
    first = 0
    for expected in _shards(whole, after):
        assert torch.equal(rows_of(pieces, first, first + len(expected)), expected)
        first += len(expected)


def _shards(whole: Tensor, count: int) -> list[Tensor]:
    pieces = list(torch.chunk(whole, count))
    return pieces + [whole[:0]] * (count - len(pieces))


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_disk_that_refuses_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """While it syncs the tensors, their directory or the head."""
    save(tmp_path, 1)
    fsync, left = os.fsync, calls

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RetryError, match="No space left"):
        save(tmp_path, 2)
    assert (load(tmp_path) or {})["step"] == 1
    assert not list(tmp_path.glob(".*.tmp"))


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
