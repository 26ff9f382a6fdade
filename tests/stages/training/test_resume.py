"""A run killed by SIGKILL at bad moments ends with the very weights of an undisturbed one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages import train
from stages.training import checkpoint
from stages.training.metrics import Line, read
from storage.errors import DataError
from tests.stages.training.child import second_round, student_job
from tests.world import World, run, weights

ROOT = Path(__file__).parents[3]


def kill(world: World, store: Path, *points: str) -> None:
    """Start the run once per point, each time until it dies there."""
    command = [sys.executable, "-m", "tests.stages.training.child", world.root, store, *points]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def lines(directory: Path) -> list[Line]:
    """Metrics without times."""
    times = {"tokens_per_second", "waiting"}
    found = read(directory / "metrics.jsonl")
    return [{name: v for name, v in line.items() if name not in times} for line in found]


def test_killed_runs_end_with_bit_identical_weights(world: World, tmp_path: Path) -> None:
    """Killed in a step, while a checkpoint is written, and while the final model is written."""
    calm, rough = student_job(world, tmp_path / "calm"), student_job(world, tmp_path / "rough")
    expected = train.run(calm)

    kill(world, tmp_path / "rough", "step:7", "checkpoint.pt:2", "model.safetensors:1")
    work = rough.directory / ".work"
    assert (work / "checkpoint.pt").exists()
    assert not (rough.directory / "manifest.json").exists()
    found = train.run(rough)

    ours, theirs = weights(rough.site), weights(calm.site)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(rough.site) == lines(calm.site)
    assert [line["step"] for line in lines(rough.site)] == [5, 10, 15, 18]
    assert found.meta == expected.meta
    assert not work.exists()
    assert not list(rough.directory.glob("**/*.tmp"))


def test_a_second_round_killed_in_its_middle_and_at_its_end_gives_the_same_weights(
    world: World, tmp_path: Path
) -> None:
    """And hands the same state on to the third."""
    run(student_job(world, tmp_path / "calm", rounds=3))
    shutil.copytree(tmp_path / "calm", tmp_path / "rough")
    calm, rough = (second_round(world, tmp_path / name) for name in ("calm", "rough"))
    run(calm)
    kill(world, tmp_path / "rough", "second", "step:7", "checkpoint.pt:4", "model.safetensors:1")
    assert (rough.site / ".work" / "checkpoint.pt").exists()
    assert (rough.site / "next-round").exists()
    run(rough)
    ours, theirs = weights(rough.site), weights(calm.site)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lines(rough.site) == lines(calm.site)
    ours, theirs = (
        torch.load(one.site / "next-round" / "step-00000018" / "0-of-1.pt") for one in (rough, calm)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {int(value) for name, value in theirs.items() if name.startswith("step/")} == {36}


def test_a_set_directory_with_another_runs_checkpoint_is_refused(
    world: World, tmp_path: Path
) -> None:
    """As after a directory was copied by hand: same short name, other data behind it."""
    job = student_job(world, tmp_path / "store")
    with checkpoint.workspace(job.site) as work:
        checkpoint.save(work, {"key": job.key, "data": "d" * 64}, {}, {"step": 4}, {})
    with pytest.raises(DataError, match="its data is dddd"):
        train.run(job)
