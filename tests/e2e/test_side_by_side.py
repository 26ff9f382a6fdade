"""Parts made by several workers, some of which are killed: the set is that of one process."""

from pathlib import Path

import psutil
import pytest

from tests.command import afterglow
from tests.e2e.side_by_side import RECIPE, TWO, after_first_part, end, start, take_away


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def alone(store: Path) -> list[str]:
    """Parts of the set as one process makes them, taken away again."""
    done = afterglow("run", "teacher-logits", *RECIPE, store=store)
    assert done.code == 0, done.err
    return take_away(done)


def test_a_killed_worker_is_replaced(store: Path, alone: list[str]) -> None:
    process = start(store, *TWO)
    after_first_part(store, process)
    workers = [p for p in psutil.Process(process.pid).children() if "--shard" in p.cmdline()]
    workers[0].kill()
    done = end(process)
    assert done.code == 0, done.err
    assert "1 of 2 workers died" in done.err
    assert take_away(done) == alone


def test_sigterm_reaches_the_workers_and_keeps_what_is_done(store: Path, alone: list[str]) -> None:
    process = start(store, *TWO)
    after_first_part(store, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert end(process).code == 75
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    kept = {path.name for path in store.glob("teacher-logits-*/part-*")}
    assert kept <= set(alone)
    done = afterglow("run", "teacher-logits", *RECIPE, *TWO, store=store)
    assert done.code == 0, done.err
    assert take_away(done) == alone


def test_what_is_refused_starts_no_worker(store: Path, alone: list[str]) -> None:
    impossible = ("--set", "teacher-logits.record.candidates=4")  # a corpus has none
    done = afterglow("run", "teacher-logits", *RECIPE, *TWO, *impossible, store=store)
    assert done.code == 78, done.err
    assert not list(store.glob("teacher-logits-*/part-*"))
