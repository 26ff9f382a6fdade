"""Models of the store are hashed before they are used."""

from pathlib import Path

import numpy as np
import pytest

from storage.copies import check_files
from storage.errors import DamageError
from storage.manifest import FILE_NAME, SetIdentity, build_manifest, write_manifest
from tests.storage.make import KEY

FLIPS, CUTS = 200, 50
IDENTITY = SetIdentity("sft", 1, KEY, "sft", "model", {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    write_manifest(tmp_path, build_manifest(tmp_path, IDENTITY, files=["model.safetensors"]))
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


def test_no_flipped_bit_and_no_cut_goes_unnoticed(model: Path) -> None:
    """Over all files of a model; the message names the file."""
    rng = np.random.default_rng(0)
    others = {"config.json": b'{"vocab_size": 9}', "tokenizer/tokenizer.json": bytes(300)}
    for name, content in others.items():
        (model.parent / name).parent.mkdir(exist_ok=True)
        (model.parent / name).write_bytes(content)
    (model.parent / FILE_NAME).unlink()
    model.write_bytes(rng.bytes(3000))
    files = [model.name, *others]
    write_manifest(model.parent, build_manifest(model.parent, IDENTITY, files=files))
    for index in range(FLIPS + CUTS):
        path = model.parent / files[index % len(files)]
        whole = path.read_bytes()
        bit, size = int(rng.integers(8 * len(whole))), int(rng.integers(len(whole)))
        flipped = bytearray(whole)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(flipped if index < FLIPS else whole[:size])
        with pytest.raises(DamageError, match=path.name):
            check_files(model.parent)
        path.write_bytes(whole)
    check_files(model.parent)
