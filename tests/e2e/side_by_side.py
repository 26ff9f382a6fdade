"""A set made by several workers, which tests watch and disturb."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from storage.manifest import read_manifest
from tests.command import ROOT, Outcome

RECIPE = ("--config", Path(__file__).with_name("side_by_side.toml"))
TWO = ("--set", "teacher-logits.run.workers=2")


def take_away(done: Outcome) -> list[str]:
    """Names of the parts, which hold the digests of their content; the set is removed."""
    directory = Path(done.result["sets"]["teacher-logits"])
    parts = [part.file for part in read_manifest(directory).parts]
    assert sorted(parts) == sorted(path.name for path in directory.glob("part-*"))
    shutil.rmtree(directory)
    return parts


def start(store: Path, *more: str, environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipeline", "run", "teacher-logits", *map(str, RECIPE), *more]
    return subprocess.Popen(
        [*command, "--set", f"store={store}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def end(process: "subprocess.Popen[str]") -> Outcome:
    out, err = process.communicate(timeout=280)
    return Outcome(process.returncode, out, err)


def after_first_part(store: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until the work is under way."""
    while not list(store.glob("teacher-logits-*/part-*")):
        assert process.poll() is None, end(process).err
        time.sleep(0.02)
