"""Models of the store are hashed before they are used."""

from pathlib import Path

import pytest

from storage.errors import DamageError
from storage.intact import check_files
from storage.manifest import build_manifest, write_manifest
from tests.storage.make import KEY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    manifest = build_manifest(
        tmp_path,
        stage="sft",
        version=1,
        key=KEY,
        name="sft",
        kind="model",
        payload={},
        files=["model.safetensors"],
    )
    write_manifest(tmp_path, manifest)
    check_files(tmp_path)
    return tmp_path / "model.safetensors"


def test_one_bit_is_noticed(model: Path) -> None:
    model.write_bytes(bytes(999) + b"\1")
    with pytest.raises(DamageError, match=r"model\.safetensors: damaged .*made again") as caught:
        check_files(model.parent)
    assert caught.value.result == {"damaged": str(model)}


def test_a_missing_file_is_noticed(model: Path) -> None:
    model.unlink()
    with pytest.raises(DamageError, match="that of no file"):
        check_files(model.parent)


def test_a_model_from_outside_has_nothing_to_compare_with(tmp_path: Path) -> None:
    check_files(tmp_path)
