"""What `afterglow gc` takes for a stray, and what it leaves alone."""

import os
import time
from pathlib import Path

import pytest

from pipeline.upkeep.sweep import find_strays, remove
from storage.errors import DataError
from storage.sets import verify_set
from tests.command import Outcome, afterglow
from tests.pipeline.upkeep.sets import make_set

NOW = time.time()
DAY = 86400.0
ORPHAN = "train-0123456789ab"
PLANNED = "sft-0123456789ab"


def old(path: Path, days: float = 2.0) -> Path:
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return path


def write(path: Path, size: int = 10, days: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    old(path.parent, days)
    return old(path, days)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A committed set, and everything around it that is no part of one."""
    directory, _ = make_set(tmp_path)
    write(directory / ".part-00001.12.ab.tmp", 100)
    write(directory / "part-00001-0123456789abcdef.parquet", 200)
    write(directory / ".work" / "checkpoint.pt", 300)
    write(directory / "notes.txt")
    write(tmp_path / PLANNED / ".work" / "checkpoint.pt")
    write(tmp_path / PLANNED / ".work" / ".checkpoint.pt.9.aa.tmp", 400)
    write(tmp_path / ORPHAN / "part-00000-0123456789abcdef.parquet", 500)
    write(tmp_path / "my-own-files" / ".x.tmp")
    write(tmp_path / "train-own" / "x")
    return tmp_path


def names(root: Path, before: float = NOW - DAY) -> dict[str, int]:
    return {
        str(stray.path.relative_to(root)): stray.bytes
        for stray in find_strays(root, {PLANNED}, before)
    }


def test_strays_of_every_sort_with_their_bytes(store: Path) -> None:
    (directory,) = (path.name for path in store.glob("teacher-logits-*"))
    assert names(store) == {
        f"{directory}/.part-00001.12.ab.tmp": 100,
        f"{directory}/part-00001-0123456789abcdef.parquet": 200,
        f"{directory}/.work": 300,
        f"{PLANNED}/.work/.checkpoint.pt.9.aa.tmp": 400,
        ORPHAN: 500,
    }


def test_nothing_that_is_young_or_in_the_future(store: Path) -> None:
    """A clock that was set back leaves files of tomorrow; they may be in use."""
    for path in store.rglob("*"):
        old(path, -30.0)
    assert names(store) == {}


@pytest.mark.parametrize("young", ["part-00000-0123456789abcdef.parquet", "another"])
def test_an_unfinished_set_in_which_anything_is_young_is_kept(store: Path, young: str) -> None:
    write(store / ORPHAN / young, days=0.0)
    assert ORPHAN not in names(store)


def test_an_unfinished_set_of_a_stage_with_unknown_keys_is_kept(store: Path) -> None:
    found = find_strays(store, {"train", PLANNED}, NOW - DAY)
    assert ORPHAN not in {stray.path.name for stray in found}


def test_removed_and_sound(store: Path) -> None:
    strays = find_strays(store, {PLANNED}, NOW - DAY)
    assert remove(strays) == 1500
    assert names(store) == {}
    (directory,) = store.glob("teacher-logits-*")
    assert verify_set(directory) == []
    assert (directory / "notes.txt").exists()
    assert (store / PLANNED / ".work" / "checkpoint.pt").exists()
    assert (store / "my-own-files" / ".x.tmp").exists()


def test_a_set_that_was_finished_in_the_meantime_is_kept(store: Path) -> None:
    strays = find_strays(store, {PLANNED}, NOW - DAY)
    (store / ORPHAN / "manifest.json").write_text("{}")
    assert remove(strays) == 1000
    assert (store / ORPHAN).exists()


def test_links_are_not_followed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "precious", 1000)
    (store / ORPHAN / "link").symlink_to(elsewhere)
    os.utime(store / ORPHAN / "link", (NOW - 2 * DAY, NOW - 2 * DAY), follow_symlinks=False)
    old(store / ORPHAN)
    (store / "sft-ffffffffffff").symlink_to(elsewhere)
    assert names(store)[ORPHAN] == 500
    remove(find_strays(store, {PLANNED}, NOW - DAY))
    assert not (store / ORPHAN).exists()
    assert (elsewhere / "precious").exists()


def test_a_damaged_manifest_stops_it(store: Path) -> None:
    (directory,) = store.glob("teacher-logits-*")
    (directory / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json"):
        find_strays(store, {PLANNED}, NOW)


def gc(store: Path, *arguments: str) -> Outcome:
    return afterglow("gc", *arguments, store=store)


def test_the_command_removes_nothing_unless_told_to(store: Path) -> None:
    write(store / PLANNED / ".work" / ".checkpoint.pt.9.aa.tmp", 400, days=0.0)
    dry = gc(store)
    assert dry.code == 0, dry.err
    assert (dry.result["bytes"], dry.result["removed"]) == (1100, 0)
    assert "1,100  bytes to be removed with --yes" in dry.out
    wet = gc(store, "--yes")
    assert (wet.result["bytes"], wet.result["removed"]) == (1100, 1100)
    assert gc(store).result["strays"] == []
    assert gc(store, "--older-than", "-1").code == 2
