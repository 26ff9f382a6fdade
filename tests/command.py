"""Runs the real command in a real process; loads neither torch nor a stage."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY_RECIPE = ROOT / "tests" / "e2e" / "tiny.toml"
"""The demo, so small that its chain takes a minute."""
TINY = ("--config", TINY_RECIPE)


@dataclass(frozen=True)
class Outcome:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The machine-readable last line of stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


def sets_named(store: Path, name: str) -> list[Path]:
    """Directories of the committed sets of a node, in the order of their keys."""
    manifests = sorted(store.glob(f"{name.partition('.')[0]}-*/manifest.json"))
    return [path.parent for path in manifests if json.loads(path.read_text())["name"] == name]


def afterglow(
    *arguments: str | Path, store: Path | str | None = None, python: tuple[str, ...] = ()
) -> Outcome:
    """Run `afterglow ARGUMENTS`, with its store at `store`; never raises for an exit code."""
    command = [sys.executable, *python, "-m", "pipeline", *map(str, arguments)]
    done = subprocess.run(
        command if store is None else [*command, "--set", f"store={store}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
