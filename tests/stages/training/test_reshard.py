"""Rows cut over any number of files, taken by any number of processes; files that are not whole."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.training import checkpoint, sharded_checkpoint
from stages.training.drift import Guard
from stages.training.group import ALONE
from stages.training.reshard import CUT, Left, Rows
from stages.training.window import Window
from storage.errors import DataError

RUN = {"key": "a" * 64, "data": "b" * 64}


@given(rows=st.integers(0, 40), before=st.integers(1, 9), after=st.integers(1, 9))
def test_every_row_goes_to_one_process(rows: int, before: int, after: int) -> None:
    """As torch cuts them: evenly, the last processes with fewer or none."""
    whole = torch.arange(rows * 2).reshape(rows, 2)
    cut = Rows(_cut(whole, before), cut=True)
    assert torch.equal(cut.whole(), whole)
    for found, expected in zip(_taken(cut, rows, after), _cut(whole, after), strict=True):
        assert torch.equal(found, expected)


def test_what_is_not_cut_is_taken_whole() -> None:
    copies = [torch.tensor(3.0), torch.tensor(3.0)]
    assert Rows(copies, cut=False).whole() == 3.0


def _cut(whole: torch.Tensor, count: int) -> list[torch.Tensor]:
    pieces = list(torch.chunk(whole, count))
    return pieces + [whole[:0]] * (count - len(pieces))


def _taken(rows: Rows, total: int, count: int) -> list[torch.Tensor]:
    share = -(-total // count)
    edges = [min(rank * share, total) for rank in range(count + 1)]
    return [rows.between(edges[rank], edges[rank + 1]) for rank in range(count)]


def state(rank: int, size: int = 2, step: int = 4) -> checkpoint.State:
    """What one of several processes holds: two rows of a weight of `2 * size`, and some sums."""
    window, guard = Window(), Guard("x", None)
    logq_T = torch.tensor([-1.0, -2.0]) * (rank + 1)
    window.add({"logq": logq_T, "loss": -logq_T}, None, 3)
    weight = torch.arange(2.0 * size)[2 * rank : 2 * rank + 2]
    return {
        "model": {"weight": weight, "scale": torch.tensor(7.0)},
        "optimiser": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": weight * 10}}},
        "random": {"cpu": torch.get_rng_state(), "cuda": []},
        "step": step,
        "source": {"step": step},
        "window": window.state_dict(),
        "guard": guard.state_dict(),
        CUT: [("model", "weight"), ("optimiser", "state", 0, "exp_avg")],
    }


def test_one_process_puts_everything_together() -> None:
    joined = Left(4, [state(0), state(1)]).joined()
    assert joined["model"]["weight"].tolist() == [0, 1, 2, 3]
    assert joined["model"]["scale"] == 7.0
    assert joined["optimiser"]["state"][0]["exp_avg"].tolist() == [0, 10, 20, 30]
    assert joined["optimiser"]["state"][0]["step"] == 4.0
    window = Window()
    window.load_state_dict(joined["window"], torch.device("cpu"))
    assert window.flush()["loss"] == (1 + 2 + 2 + 4) / 4


def left_by_two(work: Path, step: int) -> Path:
    """Write what two processes leave behind, as the first of them would commit it."""
    directory = work / f"shards-{step:08d}"
    directory.mkdir()
    files: dict[str, str] = {}
    for rank in range(2):
        content = state(rank, step=step) | {"version": checkpoint.VERSION, "identity": RUN}
        path = directory / f"{rank}-of-2.pt"
        torch.save(content, path)
        files[path.name] = sharded_checkpoint.sha256_file(path)
    head = {"version": checkpoint.VERSION, "identity": RUN, "step": step}
    (work / checkpoint.MARKER).write_text(
        json.dumps(head | {"directory": directory.name, "files": files})
    )
    return directory


def test_a_single_process_goes_on_and_takes_over(tmp_path: Path) -> None:
    left_by_two(tmp_path, step=4)
    found = checkpoint.load(tmp_path, RUN)
    assert found is not None
    assert found["step"] == 4
    checkpoint.save(tmp_path, RUN, {"step": 8})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(("single", "expected"), [(2, 4), (6, 6)])
def test_of_two_kinds_the_later_checkpoint_counts(
    tmp_path: Path, single: int, expected: int
) -> None:
    """A run was killed after it had written one and before it could remove the other."""
    checkpoint.save(tmp_path, RUN, state(0, size=1, step=single) | {CUT: []})
    left_by_two(tmp_path, step=4)
    assert (checkpoint.load(tmp_path, RUN) or {})["step"] == expected


def test_without_its_naming_file_there_is_no_checkpoint(tmp_path: Path) -> None:
    left_by_two(tmp_path, step=4)
    (tmp_path / checkpoint.MARKER).unlink()
    assert checkpoint.load(tmp_path, RUN) is None
    assert sharded_checkpoint.newest(tmp_path, RUN, ALONE) is None


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "marker", "path"])
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    file = left_by_two(tmp_path, step=4) / "1-of-2.pt"
    marker = tmp_path / checkpoint.MARKER
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "marker":
        marker.write_text(marker.read_text()[:-3])
    else:
        marker.write_text(marker.read_text().replace("1-of-2.pt", "../1-of-2.pt"))
    with pytest.raises(DataError, match="damaged checkpoint"):
        checkpoint.load(tmp_path, RUN)


@pytest.mark.parametrize("field", ["key", "data"])
def test_another_runs_checkpoint_is_refused(tmp_path: Path, field: str) -> None:
    left_by_two(tmp_path, step=4)
    with pytest.raises(DataError, match="checkpoint of another run"):
        checkpoint.load(tmp_path, RUN | {field: "c" * 64})
