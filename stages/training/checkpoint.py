"""Resumable checkpoints of a training run: `.work/checkpoint.pt` inside the set being made.

A checkpoint holds all that the next step depends on (weights, optimiser, data position, random
state, step, running sums), so a run killed at any instant continues as if nothing had happened. It
is written to a temporary name, synced and renamed: there is always one whole checkpoint, the
latest. It names the key and the data it belongs to and is refused by any other run.

Several processes leave one file each, and a file that names them (`sharded_checkpoint`). Each
kind of run continues from what the other kind left.
"""

import fcntl
import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stages.training.checkpoint_file import check_seal, seal
from stages.training.group import ALONE, Group
from storage.errors import DataError, RetryError
from storage.files.write import disk_errors, sync_directory, temporary_name

log = logging.getLogger(__name__)

State = dict[str, Any]

VERSION = 1
"""Of the format, on one process or several."""
FILE = "checkpoint.pt"
MARKER = "checkpoint.json"
"""Names the files of a checkpoint of several processes (`stages.training.sharded_checkpoint`)."""


@contextmanager
def workspace(directory: Path, group: Group = ALONE) -> Iterator[Path]:
    """The `.work` directory of the set in `directory`, held by this process (group) alone.

    The lock goes with the process, however it ends; of a group, the first process holds it.

    Raises:
        RetryError: another process is training this very set.
    """
    work = directory / ".work"
    if not group.first:
        group.broadcast(None)  # until the first one has the lock
        yield work
        return
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RetryError(
                f"{directory}: another process is training this set. Wait for it, or stop it."
            ) from error
        for stray in work.glob(".*.tmp"):  # a writer was killed between write and rename
            stray.unlink()
        group.broadcast(None)
        yield work


def discard(work: Path) -> None:
    """Remove the workspace: the final model is in place."""
    shutil.rmtree(work)


def save(work: Path, identity: Mapping[str, str], state: State) -> None:
    """Make `state` the checkpoint, atomically and durably.

    Args:
        work: From `workspace`.
        identity: What the run is (`key`) and reads (`data`); compared by `load`.
        state: Tensors and plain values.

    Raises:
        RetryError: it cannot be written; the previous checkpoint is untouched.
    """
    path = work / FILE
    temporary = temporary_name(work, FILE)
    try:
        with disk_errors(path), temporary.open("xb") as stream:
            torch.save({"version": VERSION, "identity": dict(identity), **state}, stream)
        with disk_errors(path):
            seal(temporary)
            temporary.rename(path)
        sync_directory(work)
    finally:
        temporary.unlink(missing_ok=True)
    if (work / MARKER).exists():  # several processes went before: theirs is behind this one now
        from stages.training import sharded_checkpoint

        sharded_checkpoint.remove(work)


def load(work: Path, identity: Mapping[str, str]) -> State | None:
    """The checkpoint, or None when there is none yet; also one that several processes left.

    Raises:
        DataError: it is damaged, or belongs to another run or other data.
    """
    if not (work / MARKER).exists():
        return load_file(work / FILE, identity)
    from stages.training import sharded_checkpoint

    left = sharded_checkpoint.newest(work, identity)
    return None if left is None else left.joined()


def load_file(
    path: Path, identity: Mapping[str, str], *, mmap: bool = False, sealed: bool = True
) -> State | None:
    """The state in one file, or None when there is no such file.

    Args:
        path: The file.
        identity: What it must belong to.
        mmap: Read tensors when they are looked at, and not before.
        sealed: The file ends in its digest; otherwise the caller has compared it.

    Raises:
        DataError: it is damaged, or belongs to another run or other data.
    """
    if not path.exists():
        return None
    try:
        if sealed:
            check_seal(path)
        state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: damaged checkpoint ({error}). {remedy(path)}") from error
    check_owner(path, state, identity)
    return state


def check_owner(path: Path, head: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    """Refuse a checkpoint of another version or another run.

    Raises:
        DataError: it is one.
    """
    if head.get("version") != VERSION:
        raise DataError(
            f"{path}: checkpoint version {head.get('version')}, this program reads {VERSION}. "
            + remedy(path)
        )
    for field, expected in identity.items():
        found = head["identity"].get(field)
        if found != expected:
            raise DataError(
                f"{path}: checkpoint of another run: its {field} is {found}, this run's is "
                f"{expected}. {remedy(path)}"
            )


def remedy(path: Path) -> str:
    """What to do about a checkpoint that cannot be used; `path` lies in the workspace."""
    return f"Remove {path.parent} to train from the beginning."


def capture(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> State:
    """Weights, optimiser and random state of this process."""
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": {"cpu": torch.get_rng_state(), "cuda": devices},
    }


def restore(state: State, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put back what `capture` took."""
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"]["cpu"])
    for device in state["random"]["cuda"]:
        torch.cuda.set_rng_state(device)
