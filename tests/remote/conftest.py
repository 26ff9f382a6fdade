"""One S3 server for all tests of this directory, each with a prefix of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.files import remote
from storage.files.remote import Remote
from tests.remote.proxy import Plan, running_proxy
from tests.remote.server import BUCKET, environment, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server."""
    with running_server(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def proxy(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """The proxy in front of the server, faultless yet; clients of this process use it."""
    plan = Plan(server)
    with running_proxy(plan) as url:
        for name, value in environment(url, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        remote.file_system.cache_clear()
        yield plan
    remote.file_system.cache_clear()


@pytest.fixture
def prefix(proxy: Plan, request: pytest.FixtureRequest) -> Remote:
    """An empty prefix."""
    return Remote(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")
