"""The store: a set is there when its manifest is, under its own key only."""

from pathlib import Path

import pytest

from storage.errors import DataError
from storage.manifest import Manifest, write_manifest
from storage.store import Store

KEY = "a" * 64


def _commit(store: Store, stage: str, key: str) -> Manifest:
    path = store.path(stage, key)
    path.mkdir(parents=True)
    return write_manifest(
        path, Manifest(stage=stage, version=1, key=key, name=stage, kind="model", payload={})
    )


def test_a_directory_alone_is_not_a_set(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.path("sft-data", KEY) == tmp_path / "sft-data-aaaaaaaaaaaa"
    assert store.manifest("sft", KEY) is None
    store.path("sft", KEY).mkdir()
    assert store.manifest("sft", KEY) is None
    assert list(store.sets()) == []


def test_committed_sets_are_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sft, train = _commit(store, "sft", KEY), _commit(store, "train", "b" * 64)
    assert store.manifest("sft", KEY) == sft
    assert list(store.sets()) == [
        (store.path("sft", KEY), sft),
        (store.path("train", "b" * 64), train),
    ]
    assert [manifest for _, manifest in store.sets("train")] == [train]


def test_a_key_that_agrees_in_its_first_digits_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _commit(store, "sft", KEY)
    other = "a" * 63 + "b"
    with pytest.raises(DataError, match=f"holds set {KEY}, but {other} was asked for"):
        store.manifest("sft", other)


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    assert list(Store(tmp_path / "none").sets()) == []
