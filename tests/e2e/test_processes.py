"""The command on several processes: torchrun underneath, one voice, exit codes that survive."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT, TINY, afterglow


@pytest.mark.e2e
def test_two_processes_make_one_set_and_end_with_one_message(tmp_path: Path) -> None:
    """The teacher is made; then the shape of the base is refused, by the process that builds it."""
    store = tmp_path / "store"
    assert afterglow("run", "corpus", *TINY, store=store).code == 0
    done = launched(
        "run", "pretrain.teacher", "pretrain.base", "--here", *TINY,
        "--set", f"store={store}", "--set", "pretrain.base.architecture.heads=3",
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "architecture: hidden_size 32, heads 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("pretrain.teacher: step 8/8") == 1
    (manifest,) = store.glob("pretrain-*/manifest.json")
    assert json.loads(manifest.read_text())["name"] == "pretrain.teacher"
    provenance = json.loads((manifest.parent / "provenance.json").read_text())
    assert provenance["processes"] == 2


def launched(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Two processes that run `afterglow ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.execution.launch", "2", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )
