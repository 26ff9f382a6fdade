"""Weights that may run code are refused before anything is loaded."""

from pathlib import Path

import pytest

from stages.job import Input
from stages.models.identity import ALLOW_PICKLED, check_weights, local_directory, model_identity
from storage.errors import DataError


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_pickled_weights_are_refused_by_whoever_asks(pickled: Path) -> None:
    with pytest.raises(DataError, match=r"pytorch_model\.bin: pickled weights"):
        local_directory(Input(str(pickled)))
    with pytest.raises(DataError, match=r"pytorch_model\.bin: pickled weights"):
        model_identity(pickled, "float32")


def test_unless_asked_for(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_PICKLED, "1")
    assert local_directory(Input(str(pickled))) == pickled


def test_safetensors_beside_them_are_what_is_loaded(pickled: Path) -> None:
    (pickled / "model.safetensors").touch()
    check_weights(pickled)
