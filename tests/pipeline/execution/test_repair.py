"""Damaged parts of committed sets, made again under the same name. `corpus` needs no model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DataError
from storage.manifest import FILE_NAME, Manifest, read_manifest, to_text
from storage.sets import verify_set
from storage.shard import read_rows
from tests.command import Outcome, afterglow

SMALL = ("--set", "corpus.count=96", "--set", "corpus.sequences_per_part=32")


def corpus(*arguments: str, store: Path) -> Outcome:
    return afterglow("run", "corpus", *arguments, *SMALL, store=store)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    assert corpus(store=store).code == 0
    (directory,) = store.glob("corpus-*")
    return directory


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_just_the_damaged_part_is_made_again(made: Path, damage: str) -> None:
    manifest = read_manifest(made)
    times = {path.name: path.stat().st_mtime_ns for path in made.glob("part-*")}
    path = made / manifest.parts[1].file
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-50])
    else:
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 16]) + whole[501:])
    assert corpus(store=made.parent).result["repaired"] == []  # nobody looked
    outcome = corpus("--check", store=made.parent)
    assert outcome.code == 0, outcome.err
    assert outcome.result["repaired"] == [path.name]
    assert "2 of 3 parts are done" not in outcome.err
    assert "making damaged parts again: 1" in outcome.err
    assert path.read_bytes() == whole
    assert read_manifest(made) == manifest
    assert verify_set(made) == []
    untouched = {name: made.joinpath(name).stat().st_mtime_ns for name in times} | {path.name: 0}
    assert untouched == times | {path.name: 0}


def test_what_cannot_be_made_again_is_left_and_said(made: Path, tmp_path: Path) -> None:
    """The manifest names a part that this stage does not make: as after an engine that varies."""
    manifest = read_manifest(made)
    part = manifest.parts[1]
    other = replace(part, sha256="0" * 64, file="part-00001-" + "0" * 16 + ".parquet")
    parts = (manifest.parts[0], other, manifest.parts[2])
    (made / part.file).rename(made / other.file)
    (made / FILE_NAME).write_text(to_text(replace(manifest, parts=parts)))
    outcome = corpus("--check", store=made.parent)
    assert outcome.code == DataError.exit_code
    assert f"{other.file}: damaged, and the part made in its place differs" in outcome.err
    assert {path.name for path in made.glob("part-*")} == {one.file for one in parts}
    (made / other.file).rename(made / part.file)
    (made / FILE_NAME).write_text(to_text(manifest))


FLIPS, CUTS = 200, 50


def _refused_or_the_same(directory: Path, manifest: Manifest) -> bool:
    """A flip in the name of the field that holds the digest changes nothing that is read."""
    try:
        return read_manifest(directory) == manifest
    except DataError as error:
        return "manifest.json: damaged" in str(error) or "format" in str(error)


def test_every_flip_and_every_cut_is_detected_and_named(made: Path, tmp_path: Path) -> None:
    """Over parts and the manifest of a set; the message names the part, and the row group."""
    manifest = read_manifest(made)
    rng = np.random.default_rng(0)
    groups = 0
    for index in range(FLIPS + CUTS):
        path = made / [*(part.file for part in manifest.parts), "manifest.json"][index % 4]
        whole = path.read_bytes()
        if index < FLIPS:
            bit = int(rng.integers(8 * len(whole)))
            bad = bytearray(whole)
            bad[bit >> 3] ^= 1 << (bit & 7)
        else:
            bad = whole[: int(rng.integers(len(whole)))]
        path.write_bytes(bad)
        try:
            if path.suffix == ".json":
                assert _refused_or_the_same(made, manifest)
                continue
            problems = verify_set(made)
            assert problems
            assert all(path.name in problem for problem in problems)
            groups += any("row group" in problem for problem in problems)
        finally:
            path.write_bytes(whole)
    assert groups > FLIPS // 4
    assert sum(len(rows) for part in manifest.parts for rows in read_rows(made / part.file)) == 96
