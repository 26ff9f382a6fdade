"""A real S3 server in a process of its own, and the environment in which a client finds it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(url: str, cache: Path) -> dict[str, str]:
    """What `docs/object-stores.md` says to set, and nothing of the user's."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AFTERGLOW_CACHE": str(cache),
    }


@contextmanager
def running_server(log: Path) -> Iterator[str]:
    """An empty moto server with one bucket; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _wait_for(url, process, log)
            ask(url, BUCKET, "PUT")
            yield url
        finally:
            process.terminate()


def ask(url: str, path: str, method: str, headers: Mapping[str, str] | None = None) -> bytes:
    """One request without a client in between; moto checks no signatures."""
    signed = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
    }
    request = urllib.request.Request(
        f"{url}/{path}", method=method, headers=signed | dict(headers or {})
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the S3 server does not answer: {log.read_text()}")
