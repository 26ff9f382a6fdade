"""Manifests: canonical, written once, and honest about what is missing or wrong."""

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import DataError, RetryError
from storage.manifest import (
    DIGEST,
    FILE_NAME,
    Manifest,
    SetIdentity,
    Totals,
    build_manifest,
    canonical,
    read_manifest,
    write_manifest,
)
from tests.storage.make import KEY, meta_of, write_set

META = meta_of("head_tail")


def _plain(key: str = KEY, name: str = "sft") -> Manifest:
    return Manifest(stage="sft", version=1, key=key, name=name, kind="model", payload={"a": 1})


def test_written_and_read_back(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, {0: (40, "train"), 1: (7, "holdout")})
    assert read_manifest(tmp_path) == manifest
    assert [part.split for part in manifest.parts] == ["train", "holdout"]
    totals = manifest.totals
    assert isinstance(totals, Totals)
    assert (totals.parts, totals.sequences) == (2, 47)
    assert totals.bytes == sum(p.stat().st_size for p in tmp_path.glob("*.parquet"))


def test_the_digest_follows_the_content_not_the_formatting(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [5])
    path = tmp_path / FILE_NAME
    value = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(value.items())), indent=7))
    assert read_manifest(tmp_path).digest == manifest.digest
    part = replace(manifest.parts[0], sha256="0" * 64)
    assert replace(manifest, parts=(part,)).digest != manifest.digest
    assert replace(manifest, meta={"x": 1}).digest != manifest.digest


def test_unknown_fields_of_a_later_writer_are_ignored(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [5])
    path = tmp_path / FILE_NAME
    value = json.loads(path.read_text())
    value["later"] = value["parts"][0]["later"] = value["parts"][0]["row_groups"][0]["later"] = 1
    del value[DIGEST]
    value[DIGEST] = hashlib.sha256(canonical(value).encode()).hexdigest()
    path.write_text(json.dumps(value))
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_of_before_there_was_a_digest(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [5])
    value = json.loads((tmp_path / FILE_NAME).read_text())
    del value[DIGEST]
    (tmp_path / FILE_NAME).write_text(json.dumps(value))
    with pytest.raises(DataError, match="no sha256"):
        read_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text(json.dumps(value | {"format": 1}))
    assert read_manifest(tmp_path) == replace(manifest, format=1)


def test_a_digest_under_another_name_is_missed(tmp_path: Path) -> None:
    """Two flipped bits: one in the name of the field, one in what it vouches for."""
    write_set(tmp_path, META, [5])
    text = (tmp_path / FILE_NAME).read_text()
    spoilt = text.replace(f'\n "{DIGEST}"', '\n "shb256"').replace(META.key, "1" + META.key[1:])
    assert spoilt != text
    (tmp_path / FILE_NAME).write_text(spoilt)
    with pytest.raises(DataError, match="no sha256"):
        read_manifest(tmp_path)


def test_the_digest_in_the_file_is_that_of_the_set(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [5])
    assert json.loads((tmp_path / FILE_NAME).read_text())[DIGEST] == manifest.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no manifest.json, so this is not a committed set"),
        ("", "damaged or not written by afterglow"),
        ("{", "damaged or not written by afterglow"),
        ("[]", "no format number"),
        ('{"format": 1}', "damaged or not written by afterglow"),
        ('{"format": 1, "parts": [3], "files": []}', "damaged or not written by afterglow"),
        ('{"format": 3}', "written in format 3, .* up to format 2. Upgrade afterglow"),
    ],
)
def test_unreadable_manifests(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_a_committed_set_never_changes(tmp_path: Path) -> None:
    first = write_manifest(tmp_path, _plain())
    before = (tmp_path / FILE_NAME).read_bytes()
    assert write_manifest(tmp_path, _plain(name="other")) == first
    assert (tmp_path / FILE_NAME).read_bytes() == before
    with pytest.raises(DataError, match="already holds set 0123456789ab, not ffff"):
        write_manifest(tmp_path, _plain(key="f" * 64))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_of_racing_writers_one_wins_and_all_agree(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    results: list[Manifest] = []

    def write(number: int) -> None:
        start.wait()
        results.append(write_manifest(tmp_path, _plain(name=f"writer {number}")))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert {result.name for result in results} == {read_manifest(tmp_path).name}
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_without_hard_links_a_rename_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert write_manifest(tmp_path, _plain()) == _plain()
    assert write_manifest(tmp_path, _plain(name="other")).name == "sft"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_directory_that_vanished_is_an_error_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match=r"cannot write \(No such file or directory\)"):
        write_manifest(tmp_path / "gone", _plain())


def test_files_are_hashed_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.json").write_text("{}")
    (tmp_path / "a.txt").write_text("hello")
    manifest = build_manifest(
        tmp_path,
        SetIdentity("sft", 1, KEY, "sft", "model", {}),
        files=[tmp_path / "deep" / "b.json", "a.txt"],
    )
    assert [(file.path, file.bytes) for file in manifest.files] == [
        ("a.txt", 5),
        ("deep/b.json", 2),
    ]
    assert manifest.files[0].sha256.startswith("2cf24dba5fb0a30e")
    assert manifest.totals.bytes == 7


def test_a_file_that_vanished_before_the_commit(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match=r"gone\.bin: vanished before the set was committed"):
        build_manifest(tmp_path, SetIdentity("sft", 1, KEY, "sft", "model", {}), files=["gone.bin"])
