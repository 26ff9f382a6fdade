"""What is fetched of a Hub repository: against a server that answers as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

COMMIT = "c0" * 20
LOADED = {
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
}
COPIES = {
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model-q4_k_m.gguf",
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "onnx/config.json",
    "original/model.safetensors",
    "original/params.json",
    "README.md",
    "figure.png",
}
FETCH = (
    "import sys; from stages.job import Input; from stages.models.identity import local_directory; "
    "print(local_directory(Input('owner/model', revision=sys.argv[1])))"
)


class Hub:
    """A repository of one commit behind the part of the Hub's interface that downloads use."""

    def __init__(self, names: set[str]) -> None:
        self.files = {name: f"content of {name}".encode() for name in sorted(names)}
        self.sent: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/owner/model/tree/"):
                    listed = [
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in hub.files.items()
                    ]
                    self._send(200, json.dumps(listed).encode(), body=body)
                    return
                if path.startswith("/api/models/owner/model"):
                    siblings = [{"rfilename": name} for name in hub.files]
                    about = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
                    self._send(200, json.dumps(about).encode(), body=body)
                    return
                name = path.partition(f"/owner/model/resolve/{COMMIT}/")[2]
                content = hub.files.get(name)
                if body and content is not None:
                    hub.sent.append(name)
                self._send(404 if content is None else 200, content or b"", body=body)

            def _send(self, code: int, content: bytes, *, body: bool) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, daemon=True).start()

    def fetch(self, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Download in a process of its own: the address of the Hub is read on import."""
        variables = {name: value for name, value in os.environ.items() if "proxy" not in name}
        variables |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }
        return subprocess.run(
            [sys.executable, "-c", FETCH, COMMIT],
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(LOADED | COPIES)
    yield made
    made.server.shutdown()


def test_only_files_that_are_loaded_are_fetched(hub: Hub, tmp_path: Path) -> None:
    done = hub.fetch(tmp_path)
    assert done.returncode == 0, done.stderr
    directory = Path(done.stdout.strip())
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*.*")}
    assert found == set(hub.sent) == LOADED
    assert (directory / "config.json").read_text() == "content of config.json"


def test_pickled_weights_are_fetched_if_allowed_and_alone(tmp_path: Path) -> None:
    hub = Hub({"config.json", "tokenizer.json", "pytorch_model.bin", "model.onnx"})
    refused = hub.fetch(tmp_path / "a")
    assert refused.returncode != 0
    assert "no *.safetensors" in refused.stderr
    assert "pytorch_model.bin" not in hub.sent
    allowed = hub.fetch(tmp_path / "b", AFTERGLOW_PICKLED_WEIGHTS="1")
    assert allowed.returncode == 0, allowed.stderr
    assert "pytorch_model.bin" in hub.sent
    assert "model.onnx" not in hub.sent
    hub.server.shutdown()
