"""Sets made elsewhere: taken in whole, or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.upkeep.adopt import adopt_set
from storage.errors import DataError
from storage.manifest import FILE_NAME, Manifest, read_manifest, to_text, write_manifest
from storage.sets import verify_set
from storage.store import Store
from tests.command import Outcome, afterglow
from tests.pipeline.upkeep.sets import make_set

SMALL = ("--set", "corpus.count=96", "--set", "corpus.sequences_per_part=32")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Manifest]:
    return make_set(tmp_path / "elsewhere")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_set_from_another_store(made: tuple[Path, Manifest], store: Store) -> None:
    source, manifest = made
    (source / "stray").write_text("not listed")
    assert adopt_set(source, store) == manifest
    directory = store.path(manifest.stage, manifest.key)
    assert verify_set(directory) == []
    assert not (directory / "stray").exists()
    assert adopt_set(source, store) == manifest


def test_the_name_of_the_directory_does_not_matter(
    made: tuple[Path, Manifest], store: Store
) -> None:
    source, manifest = made
    source.rename(source.parent / "downloaded")
    assert adopt_set(source.parent / "downloaded", store) == manifest


@pytest.mark.parametrize("damage", ["flipped", "missing", "of another set"])
def test_damaged_sets_are_refused(
    made: tuple[Path, Manifest], store: Store, damage: str, tmp_path: Path
) -> None:
    source, manifest = made
    path = source / manifest.parts[1].file
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    else:
        other, found = make_set(tmp_path / "third", seed=1)
        shutil.copy(other / found.parts[1].file, path)
    with pytest.raises(DataError, match=rf"not adopted.*{path.name}"):
        adopt_set(source, store)
    assert not store.root.exists()


def rewrite(source: Path, change: dict[str, object]) -> None:
    """A manifest whose digest is right: damage is not what it is refused for."""
    value = json.loads((source / FILE_NAME).read_text()) | change
    (source / FILE_NAME).write_text(to_text(Manifest.from_json(value)))


@pytest.mark.parametrize(
    "change",
    [{"key": "f" * 64}, {"payload": {"stage": "teacher-logits", "seed": 8}}, {"stage": "rollouts"}],
    ids=["another key", "another payload", "another stage"],
)
def test_wrong_keys_are_refused(
    made: tuple[Path, Manifest], store: Store, change: dict[str, object]
) -> None:
    rewrite(made[0], change)
    with pytest.raises(DataError, match="but that of its payload is"):
        adopt_set(made[0], store)
    assert not store.root.exists()


def test_links_are_refused(made: tuple[Path, Manifest], store: Store, tmp_path: Path) -> None:
    source, manifest = made
    path = source / manifest.parts[0].file
    path.rename(tmp_path / "hidden")
    path.symlink_to(tmp_path / "hidden")
    with pytest.raises(DataError, match="a link"):
        adopt_set(source, store)
    assert not store.root.exists()


def test_another_making_of_the_same_set_is_left_alone(
    made: tuple[Path, Manifest], store: Store
) -> None:
    source, manifest = made
    adopt_set(source, store)
    rewrite(source, {"meta": {"made": "later"}})
    with pytest.raises(DataError, match="another run of the same set"):
        adopt_set(source, store)
    assert read_manifest(store.path(manifest.stage, manifest.key)) == manifest


def test_a_directory_of_the_store_itself(made: tuple[Path, Manifest]) -> None:
    source, manifest = made
    assert adopt_set(source, Store(source.parent)) == manifest


def corpus(*arguments: str | Path, store: Path) -> Outcome:
    return afterglow(*arguments, *SMALL, store=store)


def test_bare_parts_become_the_set_of_the_recipe(tmp_path: Path) -> None:
    """Parts made on another machine; the manifest is written here."""
    one, two, bare = tmp_path / "one", tmp_path / "two", tmp_path / "bare"
    assert corpus("run", "corpus", store=one).code == 0
    (made,) = one.glob("corpus-*")
    parts = sorted(made.glob("part-*"))
    bare.mkdir()
    for part in parts[:2]:
        shutil.copy(part, bare)
    early = corpus("adopt", bare, store=two)
    assert early.code == 75
    assert "parts 2 of 3 are missing" in early.err
    shutil.copy(parts[2], bare)
    done = corpus("adopt", bare, store=two)
    assert done.code == 0, done.err
    assert read_manifest(two / made.name).parts == read_manifest(made).parts
    assert corpus("run", "corpus", store=two).result["ran"] == []
    strange = afterglow("adopt", bare, "--set", "corpus.count=97", store=tmp_path / "three")
    assert strange.code == 65
    assert "not one set of this recipe" in strange.err


def test_an_empty_directory_is_nothing_to_adopt(tmp_path: Path) -> None:
    outcome = corpus("adopt", tmp_path, store=tmp_path / "store")
    assert outcome.code == 65
    assert "neither manifest.json nor parts" in outcome.err


def test_the_command_adopts_a_committed_set(tmp_path: Path) -> None:
    source, manifest = make_set(tmp_path / "elsewhere")
    outcome = afterglow("adopt", source, store=tmp_path / "store")
    assert outcome.code == 0, outcome.err
    (target,) = outcome.result["sets"].values()
    assert write_manifest(Path(target), manifest) == manifest
