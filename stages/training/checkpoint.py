"""Resumable checkpoints of a training run: `.work/checkpoint.pt` inside the set being made.

A checkpoint holds all that the next step depends on (weights, optimiser, data position, random
state, step, running sums), so a run killed at any instant continues as if nothing had happened. It
is written to a temporary name, synced and renamed: there is always one whole checkpoint, the
latest. It names the key and the data it belongs to and is refused by any other run.
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

from stages.training.seal import check_seal, seal
from storage.errors import DataError, RetryError
from storage.files import disk_errors, sync_directory, temporary_name

log = logging.getLogger(__name__)

State = dict[str, Any]

_VERSION = 1
_FILE = "checkpoint.pt"


@contextmanager
def workspace(directory: Path) -> Iterator[Path]:
    """The `.work` directory of the set in `directory`, held by this process alone.

    The lock goes with the process, however it ends.

    Raises:
        RetryError: another process is training this very set.
    """
    work = directory / ".work"
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
    path = work / _FILE
    temporary = temporary_name(work, _FILE)
    try:
        with disk_errors(path), temporary.open("xb") as stream:
            torch.save({"version": _VERSION, "identity": dict(identity), **state}, stream)
        with disk_errors(path):
            seal(temporary)
            temporary.rename(path)
        sync_directory(work)
    finally:
        temporary.unlink(missing_ok=True)


def load(work: Path, identity: Mapping[str, str]) -> State | None:
    """The checkpoint, or None when there is none yet.

    Raises:
        DataError: it is damaged, or belongs to another run or other data.
    """
    path = work / _FILE
    if not path.exists():
        return None
    remedy = f"Remove {work} to train from the beginning."
    try:
        check_seal(path)
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: damaged checkpoint ({error}). {remedy}") from error
    if state.get("version") != _VERSION:
        raise DataError(
            f"{path}: checkpoint version {state.get('version')}, this program reads {_VERSION}. "
            + remedy
        )
    for field, expected in identity.items():
        found = state["identity"].get(field)
        if found != expected:
            raise DataError(
                f"{path}: checkpoint of another run: its {field} is {found}, this run's is "
                f"{expected}. {remedy}"
            )
    return state


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
