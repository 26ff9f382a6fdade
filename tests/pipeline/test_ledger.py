"""What a set has cost, added up over all that worked on it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pipeline import ledger
from stages.config.evaluation import Report
from storage.manifest import Manifest

JOBS = 16
SECONDS = 0.05
MANIFEST = Manifest(stage="sft", version=1, key="0", name="sft", kind="model", payload={})


def test_jobs_that_end_at_the_same_moment_are_all_counted(tmp_path: Path) -> None:
    together = Barrier(JOBS)

    def work(_: int) -> None:
        with ledger.timed(tmp_path):
            time.sleep(SECONDS)
            together.wait()

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(work, range(JOBS)))
    ledger.write(tmp_path, "sft", Report(), MANIFEST)
    cost = ledger.cost(tmp_path)
    assert cost["attempts"] == JOBS
    assert cost["seconds"] >= JOBS * SECONDS
    assert {path.name for path in tmp_path.iterdir()} == {
        "provenance.json", "config.resolved.toml",
    }  # fmt: skip


def test_a_failed_attempt_has_cost_something_too(tmp_path: Path) -> None:
    def fail() -> None:
        with ledger.timed(tmp_path):
            time.sleep(SECONDS)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    ledger.write(tmp_path, "sft", Report(), MANIFEST)
    cost = json.loads((tmp_path / "provenance.json").read_text())["cost"]
    assert (cost["attempts"], cost["seconds"] >= SECONDS) == (1, True)
