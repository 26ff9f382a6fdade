"""Checkpoints of several processes: one file each, and one that names them all.

    .work/checkpoint.json                 version, identity, step, and sha256 of every file
    .work/shards-00000400/0-of-2.pt       what process 0 of 2 holds after step 400

Each process writes and syncs its shards of weights and optimiser state; then the first one renames
the naming file into place. Until then the previous checkpoint stands. A tensor is cut along its
first dimension, so any number of processes can continue: each takes the rows it now holds from the
files that have them, and reads no others.

`torch.distributed.checkpoint` does the same with a pickled index, which whoever can write to the
directory could use to run code; these files are read with `weights_only`, and digests are compared
first.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from stages.training.checkpoint import (
    FILE,
    MARKER,
    VERSION,
    State,
    check_owner,
    load_file,
    remedy,
)
from stages.training.group import ALONE, Group
from stages.training.reshard import Left, local
from storage.errors import DataError
from storage.files.write import (
    HashingFile,
    disk_errors,
    sha256_file,
    sync_directory,
    temporary_name,
)

log = logging.getLogger(__name__)


def save(work: Path, identity: Mapping[str, str], state: State, group: Group) -> None:
    """Make the `state` of each process the checkpoint of all; every process must call.

    Raises:
        RetryError: it cannot be written; the previous checkpoint is untouched.
    """
    directory = work / f"shards-{state['step']:08d}"
    if group.first:
        with disk_errors(directory):
            directory.mkdir(exist_ok=True)  # a killed run may have left one
    group.broadcast(None)
    path = directory / f"{group.rank}-of-{group.size}.pt"
    digest = _write(path, {"version": VERSION, "identity": dict(identity), **local(state)})
    files = group.all_gather((path.name, digest))
    if group.first:
        with disk_errors(directory):
            sync_directory(directory)
        head = {
            "version": VERSION,
            "identity": dict(identity),
            "step": state["step"],
            "directory": directory.name,
            "files": dict(files),
        }
        _commit(work, head)
    group.broadcast(None)


def _write(path: Path, content: State) -> str:
    """Write a file durably; returns its sha256."""
    with disk_errors(path):
        path.unlink(missing_ok=True)
        stream = HashingFile(path.open("xb", buffering=0))
        try:
            torch.save(content, cast(Any, stream))
            stream.sync()
        finally:
            stream.close()
    return stream.digest.hexdigest()


def _commit(work: Path, head: Mapping[str, Any]) -> None:
    """Name the files of the checkpoint, then remove those of earlier ones."""
    temporary = temporary_name(work, MARKER)
    with disk_errors(work / MARKER):
        with temporary.open("x") as stream:
            json.dump(head, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(work / MARKER)
        sync_directory(work)
        (work / FILE).unlink(missing_ok=True)
        _sweep(work, keep=str(head["directory"]))


def remove(work: Path) -> None:
    """Remove the checkpoint of several processes: the naming file first."""
    with disk_errors(work / MARKER):
        (work / MARKER).unlink()
        sync_directory(work)
        _sweep(work, keep="")


def _sweep(work: Path, keep: str) -> None:
    for directory in work.glob("shards-*"):
        if directory.name != keep:
            shutil.rmtree(directory)


def newest(work: Path, identity: Mapping[str, str], group: Group = ALONE) -> Left | None:
    """The latest checkpoint in `work`, left by one process or several; None if there is none.

    Args:
        work: The workspace.
        identity: What it must belong to.
        group: The processes that go on: they share the comparing of digests, and all must call.

    Raises:
        DataError: it is damaged, incomplete, or of another run.
    """
    single = load_file(work / FILE, identity, mmap=group.size > 1)
    shared = _load(work, identity, group) if (work / MARKER).exists() else None
    if single is None or (shared is not None and shared.step > single["step"]):
        return shared
    return Left(single["step"], [single])  # a run was killed before it could remove the other


def _load(work: Path, identity: Mapping[str, str], group: Group) -> Left:
    """The checkpoint that several processes left."""
    head = _head(work / MARKER, identity)
    directory, names = work / Path(str(head["directory"])).name, list(head["files"])
    own = names[group.rank :: group.size]
    found = group.all_gather([n for n in own if not _sound(directory / n, head["files"][n])])
    damaged = [name for some in found for name in some]
    if damaged:
        raise DataError(
            f"{directory / damaged[0]}: damaged checkpoint (its digest is not the one in "
            f"{MARKER}). {remedy(work / MARKER)}"
        )
    states = [load_file(directory / name, identity, mmap=True, sealed=False) for name in names]
    return Left(int(head["step"]), [state for state in states if state is not None])


def _head(path: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    try:
        head = json.loads(path.read_text())
        names = [Path(str(name)).name == name for name in [head["directory"], *head["files"]]]
        if not (names and all(names) and isinstance(head["step"], int)):
            raise ValueError("fields that make no sense")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged checkpoint ({error}). {remedy(path)}") from error
    check_owner(path, head, identity)
    return head


def _sound(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
