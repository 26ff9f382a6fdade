"""A stand-in for the Hub on this machine: one data set, served as the libraries ask for it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve the data set `name` with `files` at one commit; gives the value of HF_ENDPOINT."""

    def described(path: str) -> dict[str, Any]:
        content = files[path]
        return {"type": "file", "path": path, "size": len(content), "oid": digest(content)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Descriptions, listings and files."""
            path = self.path.partition("?")[0]
            api = f"/api/datasets/{name}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in files]
                self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            elif path.startswith(f"{api}/tree/"):
                folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
                below = [file for file in files if not folder or file.startswith(folder + "/")]
                self._json([described(file) for file in below])
            elif path.startswith(f"/datasets/{name}/resolve/"):
                file = path.removeprefix(f"/datasets/{name}/resolve/").partition("/")[2]
                self._file(files.get(file))
            else:
                self._error()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            """Descriptions of several files."""
            length = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(length) or b"{}")
            if self.path.startswith(f"/api/datasets/{name}/paths-info/"):
                self._json([described(path) for path in asked["paths"] if path in files])
            else:
                self._error()

        def _json(self, value: object) -> None:
            self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, content: bytes | None) -> None:
            if content is None:
                self._error("EntryNotFound")
            else:
                self._send(content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": COMMIT})

        def _error(self, code: str = "RepoNotFound") -> None:
            self._send(b"", {"X-Error-Code": code, "X-Error-Message": "no such thing"}, 404)

        def _send(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def digest(content: bytes) -> str:
    """A name for content."""
    return sha1(content).hexdigest()
