"""Objects one by one: what is atomic, what is repeated, how a store that is away is named."""

import hashlib
import os
from pathlib import Path

import pytest

from storage.copies import fetch
from storage.errors import ConfigError, DataError, RetryError
from storage.files import remote
from storage.files.remote import Remote
from storage.files.write import create_once, sha256_file
from tests.remote.proxy import Plan
from tests.remote.server import free_port


def test_an_object_is_created_once_even_by_two_that_race(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prefix / "manifest.json"
    assert create_once(path, b"first")
    assert not create_once(path, b"second")
    monkeypatch.setattr(Remote, "is_file", lambda self: False)  # looked before the other wrote
    assert not create_once(path, b"third")
    assert path.read_bytes() == b"first"


def test_names_and_listings(prefix: Remote) -> None:
    for name in ("set-1/manifest.json", "set-1/part-00001-a.parquet", "set-2/part-00001-b.parquet"):
        (prefix / name).write_text(name)
    assert [str(path.parent.name) for path in prefix.glob("*/manifest.json")] == ["set-1"]
    assert [path.name for path in prefix.iterdir()] == ["set-1", "set-2"]
    assert [path.name for path in (prefix / "set-1").glob("part-00001-*.parquet")] == [
        "part-00001-a.parquet"
    ]
    assert (prefix / "set-1").is_dir()
    assert not (prefix / "set-1").is_file()
    assert not (prefix / "set").exists()
    (prefix / "set-1" / "manifest.json").unlink()
    assert not (prefix / "set-1" / "manifest.json").exists()
    with pytest.raises(FileNotFoundError):
        (prefix / "set-1" / "manifest.json").read_bytes()


def test_a_large_file_goes_up_in_pieces_and_comes_back_whole(
    prefix: Remote, proxy: Plan, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom((17 << 20) + 3))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (prefix / "large").upload(file, digest)
    pieces = [request for request in proxy.requests if "partNumber" in request.path]
    assert sorted(request.sent for request in pieces) == [(1 << 20) + 3, 8 << 20, 8 << 20]
    assert (prefix / "large").sha256() == sha256_file(prefix / "large") == digest
    fetch(prefix / "large", tmp_path / "copy" / "large", digest)
    assert sha256_file(tmp_path / "copy" / "large") == digest
    with pytest.raises(DataError, match="damaged"):
        fetch(prefix / "large", tmp_path / "other", "0" * 64)
    assert not (tmp_path / "other").exists()


def test_a_store_that_stays_away_is_tried_a_few_times_and_named(
    prefix: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    remote.file_system.cache_clear()
    with pytest.raises(RetryError, match=r"part-1: cannot read bytes 0 to 8 of it") as caught:
        (prefix / "part-1").read_range(0, 8)
    assert caught.value.exit_code == 75


def test_errors_of_a_server_that_stay_are_tried_five_times(prefix: Remote, proxy: Plan) -> None:
    proxy.share, proxy.faults, proxy.only = 1.0, ("500",), "part-1"
    with pytest.raises(RetryError, match=r"part-1: cannot read bytes 0 to 8 of it"):
        (prefix / "part-1").read_range(0, 8)
    assert len(proxy.requests) == 5


def test_credentials_are_asked_for_by_name(prefix: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    remote.file_system.cache_clear()
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        prefix.exists()


def test_a_protocol_without_a_client_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="install"):
        Remote("nowhere://bucket/x").exists()
