"""Several processes disturbed at every step, and the launcher's end of it (`make test-faults`)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command import ROOT, TINY, afterglow
from tests.stages.training.distributed_child import SETTINGS, job, run_all
from tests.world import make_world, weights

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
SAVED = {"pretrain.teacher.steps": 5000, "pretrain.teacher.run.checkpoint_every": 2}


def test_killed_at_every_step_and_continued_by_another_number(tmp_path: Path) -> None:
    """Each of two processes dies at each step in turn; one, two or three go on."""
    world = make_world(tmp_path / "world")
    listed: list[tuple[str, int, list[int] | None]] = [("calm", 1, None)]
    for step in range(1, SETTINGS["steps"] + 1):
        name = f"step-{step}"
        listed += [(name, 2, [step % 2, step]), (name, 1 + step % 3, None)]
    runs: list[dict[str, Any]] = [
        {"store": str(tmp_path / name), "processes": count, "die": die or [None]}
        for name, count, die in listed
    ]
    for (name, count, die), ended in zip(listed, run_all(world, runs), strict=True):
        if die is None:
            assert ended.codes == [0] * count, (name, ended.says)
        else:
            assert sorted(ended.codes) == [-9, 75], (name, ended.says)
    calm = weights(job(world, tmp_path / "calm").site)
    for name in {name for name, _, _ in listed}:
        found = weights(job(world, tmp_path / name).site)
        for tensor in calm:
            torch.testing.assert_close(found[tensor], calm[tensor], rtol=0, atol=3e-6)


@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_the_launcher_ends_with_75_and_leaves_no_process(tmp_path: Path, victim: str) -> None:
    """One worker gets SIGKILL, or the launcher SIGTERM, after a checkpoint was written."""
    store = tmp_path / "store"
    assert afterglow("run", "corpus", *TINY, store=store).code == 0
    sets = [part for name, value in SAVED.items() for part in ("--set", f"{name}={value}")]
    launcher = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "pipeline.execution.launch",
                "2",
                "run",
                "pretrain.teacher",
                "--here",
            ),
            *(*map(str, TINY), "--set", f"store={store}", *sets),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        workers = _wait_for_checkpoint(store, launcher)
        if victim == "worker":
            os.kill(workers[1], signal.SIGKILL)
        else:
            launcher.terminate()
        _, said = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 75, said
    assert "Traceback" not in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    if victim == "worker":
        assert "error: process 1 was killed by signal 9" in said


def _wait_for_checkpoint(store: Path, launcher: subprocess.Popen[str]) -> list[int]:
    """Wait until the run can be continued; returns the ids of its two workers."""
    deadline = time.monotonic() + 600
    while not list(store.glob("pretrain-*/.work/checkpoint.pt")):
        assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    return [int(pid) for path in children for pid in path.read_text().split()]
