"""A training run whose store is elsewhere: its checkpoints and its model go there as well.

Training works on files of this machine (`Job.site`) whatever the store. Where the two differ, every
checkpoint is uploaded with the metrics that lead up to it, so that another machine can go on after
this one is lost; and the model is uploaded at the end, under a name that holds its digest: two runs
of one set never mix their files, and the manifest says whose are in force. Local stores do nothing
of this.
"""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.job import Job
from stages.training.checkpoint import HEAD, files_of
from stages.training.metrics import METRICS
from storage.copies import ATTEMPT, fetch
from storage.files.remote import Remote
from storage.files.write import sha256_file
from storage.manifest import Manifest

log = logging.getLogger(__name__)

_WORK = ".work"


def fetch_checkpoint(job: Job[Any], work: Path) -> None:
    """Make the checkpoint in the store that of `work`; nothing where the store has none.

    Raises:
        RetryError, ConfigError: as `storage.files.remote.Remote`.
    """
    kept = _kept(job)
    names = [] if kept is None else [name for name in kept.below() if name != METRICS]
    if kept is None or HEAD not in names:
        return
    for path in files_of(work):
        if path.relative_to(work).as_posix() not in names:
            path.unlink()
    for name in names:
        digest = (kept / name).sha256()
        if not (work / name).exists() or sha256_file(work / name) != digest:
            log.info("%s: fetching %s from %s", job.name, name, kept)
            fetch(kept / name, work / name, digest)
    fetch(kept / METRICS, job.site / METRICS)


def send_checkpoint(job: Job[Any], work: Path) -> None:
    """Make the checkpoint in `work` that of the store.

    The metrics go first: lines behind a checkpoint are dropped when it is resumed, missing ones
    would be missed. The file that names the others goes after them.

    Raises:
        RetryError, ConfigError: as `storage.files.remote.Remote`; the last checkpoint stays.
    """
    kept = _kept(job)
    if kept is None:
        return
    (kept / METRICS).upload(job.site / METRICS, sha256_file(job.site / METRICS))
    names = {METRICS}
    for path in files_of(work):
        name = path.relative_to(work).as_posix()
        (kept / name).upload(path, sha256_file(path))
        names.add(name)
    for name in kept.below():
        if name not in names:
            (kept / name).unlink(missing_ok=True)


def send_model(job: Job[Any], manifest: Manifest) -> Manifest:
    """Upload the files of a finished model.

    Args:
        job: Whose `site` holds the files.
        manifest: Of the files there.

    Returns:
        The manifest of the files where they are in the store.

    Raises:
        RetryError, ConfigError: as `storage.files.remote.Remote`.
    """
    directory = job.directory
    if not isinstance(directory, Remote):
        return manifest
    text = "".join(f"{file.path} {file.sha256}\n" for file in manifest.files)
    attempt = f"{ATTEMPT}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    for file in manifest.files:
        (directory / attempt / file.path).upload(job.site / file.path, file.sha256)
    moved = [replace(file, path=f"{attempt}/{file.path}") for file in manifest.files]
    return replace(manifest, files=tuple(moved))


def _kept(job: Job[Any]) -> Remote | None:
    """Where the store keeps the checkpoint of a set; None for a local store."""
    return job.directory / _WORK if isinstance(job.directory, Remote) else None
