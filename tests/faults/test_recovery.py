"""Disturbed stages end in the set of undisturbed ones.

The quick form disturbs `corpus`, which needs no model. `make test-faults` does it to every stage,
FAULT_KILLS (50) times each, and writes what it found for docs/reliability.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.recovery import NODES

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "reliability.json"


def disturb(directory: Path, kills: int, stage: str) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.recovery", directory, str(kills), stage],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])[stage]


def check(found: dict[str, dict[str, int]]) -> None:
    assert len(found) == 5
    for disturbance, row in found.items():
        assert row["lost"] == 0, (disturbance, found)
        assert row["recovered"] > 0, (disturbance, found)
        assert row.get("parts made again", 0) == 0, (disturbance, found)


def test_the_corpus(tmp_path: Path) -> None:
    check(disturb(tmp_path, 3, "corpus"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store: each stage finds what it reads made already."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", NODES)
def test_every_stage(shared: Path, stage: str) -> None:
    kills = int(os.environ.get("FAULT_KILLS", "50"))
    found = disturb(shared, kills, stage)
    figures = json.loads(FIGURES.read_text())
    figures.setdefault("recovery", {})[stage] = found
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    check(found)
