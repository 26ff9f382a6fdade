"""Resumable checkpoints of a training run, by one process or several.

    .work/checkpoint.pt              head: whose checkpoint it is, the step, all state but tensors,
                                     and the sha256 of every file below
    .work/step-00000400/0-of-2.pt    the shards of weights and optimiser state on rank 0 of 2

A checkpoint holds all that the next step depends on, so a run killed at any instant continues as if
nothing had happened. Each rank writes and syncs its file, then rank 0 renames the head into place;
until then the previous checkpoint stands. It names the key and the data it belongs to, and any
other run refuses it.

Tensors are sharded along their first dimension, so any number of processes can continue: each rank
reads the rows it now holds from the files that have them. Digests are compared before a file is
loaded, and loading runs no code (`weights_only`).

Where a round of training follows, its start is a checkpoint too: that of the last step, in the
directory `next-round` of the set in the place of `.work` (`stages.training.rounds`).
"""

import fcntl
import io
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stages.training.group import ALONE, Group
from storage.copies import NEXT_ROUND
from storage.errors import DataError, RetryError
from storage.files.write import (
    HashingFile,
    disk_errors,
    sha256_file,
    sync_directory,
    temporary_name,
)

State = dict[str, Any]

VERSION = 2
HEAD = "checkpoint.pt"
_HEAD_1 = "checkpoint.json"
"""Head of version 1 where it had several files; otherwise it was called as today's."""


@contextmanager
def workspace(directory: Path, group: Group = ALONE) -> Iterator[Path]:
    """The `.work` directory of the set in `directory`, locked for this process (group).

    Rank 0 holds the lock, which ends with its process, however that ends.

    Raises:
        RetryError: another process is training this very set.
    """
    work = directory / ".work"
    if not group.first:
        group.broadcast(None)  # until rank 0 has the lock
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


def files_of(work: Path) -> list[Path]:
    """Files of the checkpoint in `work`, the head last."""
    return [*sorted(work.glob("step-*/*.pt")), *work.glob(HEAD)]


def discard(work: Path) -> None:
    """Remove the workspace: the final model is in place."""
    shutil.rmtree(work)


def tensors_of(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trainable weights and AdamW's state, by name; they share memory with what is trained.

    State that AdamW makes at its first step is made here if it is not there yet, with the same
    values.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        state = optimiser.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(weight) for _ in range(2))
        tensors |= {f"{kind}/{name}": value for kind, value in state.items()}
        tensors[f"weight/{name}"] = weight.detach()
    return tensors


def save(
    work: Path,
    identity: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    shared: State,
    own: State,
    group: Group = ALONE,
) -> None:
    """Write a checkpoint, atomically and durably; every process must call.

    Args:
        work: From `workspace`.
        identity: What the run is (`key`) and reads (`data`); compared by `load`.
        tensors: From `tensors_of`.
        shared: What is the same in every process; `step` is one of it.
        own: Plain values of this process; the random state is added.
        group: The processes that train.

    Raises:
        RetryError: it cannot be written; the previous checkpoint is untouched.
    """
    directory = work / f"step-{shared['step']:08d}"
    if group.first:
        with disk_errors(directory):
            shutil.rmtree(directory, ignore_errors=True)  # a killed run may have left one
            directory.mkdir()
    group.broadcast(None)
    digest = _write_tensors(directory / f"{group.rank}-of-{group.size}.pt", tensors)
    devices = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    own = {**own, "random": {"cpu": torch.get_rng_state(), "cuda": devices}}
    digests, ranks = zip(*group.all_gather((digest, own)), strict=True)
    if group.first:
        head = {"version": VERSION, "identity": dict(identity), **shared}
        with disk_errors(work / HEAD):
            sync_directory(directory)
            _write_head(work, head | {"digests": list(digests), "ranks": list(ranks)})
            for other in work.glob("step-*"):
                if other != directory:
                    shutil.rmtree(other)
    group.broadcast(None)


def load(
    work: Path,
    identity: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    group: Group = ALONE,
) -> State | None:
    """Read the checkpoint of one process or several; every process must call.

    Args:
        work: From `workspace`.
        identity: What the checkpoint must belong to.
        tensors: From `tensors_of`; overwritten with what was saved.
        group: The processes that go on; they share the comparing of digests.

    Returns:
        What was `shared` by `save`, and `own`: a list of those whose sums this process takes over.
        Its own if the number of processes is the same; otherwise rank 0 takes over all of them.
        The random state is set. None when there is no checkpoint yet.

    Raises:
        DataError: it is damaged, or belongs to another run, other data or another version.
    """
    path = work / HEAD
    if (work / _HEAD_1).exists():
        raise DataError(_other_version(work / _HEAD_1, 1))
    if not path.exists():
        return None
    head = _read_head(path, identity)
    digests, ranks = head.pop("digests"), head.pop("ranks")
    files = [
        work / f"step-{head['step']:08d}" / f"{rank}-of-{len(digests)}.pt"
        for rank in range(len(digests))
    ]
    mine = range(group.rank, len(files), group.size)
    sound = {i: files[i].is_file() and sha256_file(files[i]) == digests[i] for i in mine}
    for part in group.all_gather(sound):
        for index in (i for i, is_sound in part.items() if not is_sound):
            raise DataError(_damaged(files[index], f"its sha256 is not the one in {HEAD}"))
    shards = [torch.load(f, map_location="cpu", weights_only=True, mmap=True) for f in files]
    for name, target in tensors.items():
        _fill(target, [shard[name] for shard in shards], group)
    random = ranks[group.rank % len(ranks)]["random"]
    torch.set_rng_state(random["cpu"])
    for device in random["cuda"]:
        torch.cuda.set_rng_state(device)
    if len(ranks) == group.size:
        return head | {"own": [ranks[group.rank]]}
    return head | {"own": ranks if group.first else []}


def _fill(target: Tensor, pieces: list[Tensor], group: Group) -> None:
    """Copy into `target` the rows it holds; each of the `pieces` has some of the full tensor's."""
    local = target.to_local() if isinstance(target, DTensor) else target
    if local.ndim == 0:  # the same in every process
        local.copy_(pieces[0])
    elif len(local):
        # FSDP shards evenly; the last ranks have fewer rows or none.
        first = group.rank * -(-target.shape[0] // group.size)
        local.copy_(rows_of(pieces, first, first + len(local)))


def rows_of(pieces: list[Tensor], first: int, last: int) -> Tensor:
    """Rows `first` to `last` of the concatenation of `pieces`, of which others are not read."""
    found: list[Tensor] = []
    start = 0
    for piece in pieces:
        a, b = max(first - start, 0), min(last - start, len(piece))
        if a < b:
            found.append(piece[a:b])
        start += len(piece)
    return torch.cat(found) if found else pieces[0][:0]


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the shards of this process durably; returns the sha256 of the file."""
    local = {
        name: value.to_local() if isinstance(value, DTensor) else value
        for name, value in tensors.items()
    }
    with disk_errors(path):
        stream = HashingFile(path.open("xb", buffering=0))
        try:
            torch.save(local, cast(Any, stream))
            stream.sync()
        finally:
            stream.close()
    return stream.digest.hexdigest()


def _write_head(work: Path, head: State) -> None:
    """Put the head in place; it ends in the digest of what precedes."""
    content = io.BytesIO()
    torch.save(head, content)
    temporary = temporary_name(work, HEAD)
    try:
        with temporary.open("xb") as stream:
            stream.write(content.getvalue() + _seal(content.getvalue()))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(work / HEAD)
        sync_directory(work)
    finally:
        temporary.unlink(missing_ok=True)


def _seal(content: bytes) -> bytes:
    """What follows the content of a head. Readers of zip files ignore bytes behind the archive."""
    return b"\nafterglow sha256 " + sha256(content).hexdigest().encode()


def _read_head(path: Path, identity: Mapping[str, str]) -> State:
    """The head, if it is whole and of this run.

    `torch.load` does not look at the checksums of its zip container: nine of ten flipped bits would
    load without an error. Hence the digest.
    """
    whole = path.read_bytes()
    size = len(_seal(b""))
    content = whole[:-size]
    if whole[-size:] != _seal(content):
        raise DataError(_damaged(path, "it does not end in the digest of its content"))
    try:
        head: State = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(_damaged(path, str(error))) from error
    if head.get("version") != VERSION:
        raise DataError(_other_version(path, head.get("version")))
    for field, expected in identity.items():
        if head["identity"].get(field) != expected:
            raise DataError(
                f"{path}: checkpoint of another run: its {field} is "
                f"{head['identity'].get(field)}, this run's is {expected}. {_remedy(path.parent)}"
            )
    return head


def _other_version(path: Path, version: object) -> str:
    return f"{path}: checkpoint version {version}, this program reads {VERSION}. " + _remedy(
        path.parent
    )


def _damaged(path: Path, reason: str) -> str:
    work = path.parent if path.name == HEAD else path.parent.parent
    return f"{path}: damaged checkpoint ({reason}). {_remedy(work)}"


def _remedy(work: Path) -> str:
    if work.name == NEXT_ROUND:
        return (
            f"Restore it from a copy, or remove {work.parent} and run the same command: the round "
            "before is made again."
        )
    return f"Remove {work} to train from the beginning."
