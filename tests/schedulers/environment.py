"""Environments of the schedulers: each has its own, made from its own locked requirements.

A scheduler never imports Afterglow's stages; it runs the command. So its environment holds the
scheduler alone, and the definitions in `dags/` must load in it.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.command import ROOT

DAGS = ROOT / "dags"
SMALL = Path(__file__).with_name("small.toml")
"""A recipe without generation."""


def make_environment(name: str) -> Path:
    """`bin` of the environment of scheduler `name`, beside the project's own; made once, kept."""
    folder = ROOT / f".venv-{name}"
    set_up = [sys.executable, ROOT / "tools" / "setup_env.py", "--venv", folder]
    subprocess.run([*set_up, "--scheduler", name], check=True)
    return folder / "bin"


def variables(bin_directory: Path, command: str) -> dict[str, str]:
    """Environment variables under which a scheduler finds itself, the graph and the command."""
    return {
        **os.environ,
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AFTERGLOW_COMMAND": command,
        "AFTERGLOW_RETRY_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }


class Flaky:
    """The real command, which fails when told to; see flaky.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = shlex.join([sys.executable, str(Path(__file__).with_name("flaky.py"))])
        self.command += f" {shlex.quote(str(folder))}"

    def fail(self, *words: str, code: int) -> None:
        """Let the next call that has all of `words` among its arguments end with `code`."""
        file = self.folder / "faults.json"
        waiting = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps([*waiting, {"words": words, "code": code}]))

    def calls(self, *words: str) -> list[dict[str, Any]]:
        """The calls so far that had all of `words` among their arguments, with their faults."""
        file = self.folder / "calls"
        found = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        return [call for call in found if set(words) <= set(call["arguments"])]
