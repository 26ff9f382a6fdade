"""A store that can be read but not written, such as a shared archive."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import RetryError
from tests.command import Outcome, afterglow


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own that holds one set and is mounted read-only; needs root."""
    directory = tmp_path_factory.mktemp("archive")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", directory]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only disk needs root: run `make test` as root")
    try:
        made = corpus("run", "corpus", store=directory)
        assert made.code == 0, made.err
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def corpus(*arguments: str, store: Path, count: int = 96) -> Outcome:
    small = (f"corpus.count={count}", "corpus.sequences_per_part=32")
    extra = [part for override in small for part in ("--set", override)]
    return afterglow(*arguments, *extra, store=store)


@pytest.mark.parametrize("verb", ["run", "plan", "status", "explain"])
def test_what_is_done_is_found(archive: Path, verb: str) -> None:
    outcome = corpus(verb, "corpus", store=archive)
    assert outcome.code == 0, outcome.err


def test_a_set_is_checked(archive: Path) -> None:
    assert corpus("run", "corpus", "--check", store=archive).result["repaired"] == []


def test_what_is_missing_cannot_be_made_and_leaves_nothing(archive: Path) -> None:
    before = sorted(archive.rglob("*"))
    outcome = corpus("run", "corpus", store=archive, count=128)
    assert outcome.code == RetryError.exit_code, outcome.err
    assert "Read-only file system" in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(archive.rglob("*")) == before


def test_another_store_adopts_from_it(archive: Path, tmp_path: Path) -> None:
    (directory,) = archive.glob("corpus-*")
    adopted = afterglow("adopt", directory, store=tmp_path)
    assert adopted.code == 0, adopted.err
    assert corpus("run", "corpus", store=tmp_path).result["ran"] == []
