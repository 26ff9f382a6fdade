"""Environments of the schedulers: each has its own, made from its own locked requirements.

A scheduler never imports Afterglow's stages; it runs the command. So its environment holds the
scheduler alone, and the definitions in `dags/` must load in it.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.command import ROOT

DAGS = ROOT / "dags"
COMMAND = f"{sys.executable} -m pipeline"
"""What the definitions run; its working directory need not be the repository."""


def make_environment(name: str) -> Path:
    """`bin` of the environment of scheduler `name`, beside the project's own; made once, kept."""
    folder = ROOT / f".venv-{name}"
    set_up = [sys.executable, ROOT / "tools" / "setup_env.py", "--venv", folder]
    subprocess.run([*set_up, "--scheduler", name], check=True)
    return folder / "bin"


def variables(bin_directory: Path) -> dict[str, str]:
    """Environment variables under which a scheduler finds itself, the graph and the command."""
    return {
        **os.environ,
        "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AFTERGLOW_COMMAND": COMMAND,
        "OMP_NUM_THREADS": "1",
    }
