"""Local copies of models and tokenizers that lie on an object store.

Transformers and vLLM open files, so the files of a set on an object store are fetched into the
cache once. A copy is named after the set and the digest of its manifest, and every file is compared
with the manifest's sha256 before it gets its name. `check_files` does the same for sets of this
machine: a weight file has no checksum of its own, and a flipped bit in it is a slightly different
model.
"""

import hashlib
import logging
from pathlib import Path

from storage.errors import RESTORE, DamageError, DataError
from storage.files.place import Place, cache_root
from storage.files.remote import Remote
from storage.files.write import disk_errors, sha256_file, temporary_name
from storage.manifest import FILE_NAME, File, Manifest, read_manifest

log = logging.getLogger(__name__)

NEXT_ROUND = "next-round"
"""Directory in the set of a student with what the next round of its training goes on from. It is
larger than the model, and nothing else reads it."""
ATTEMPT = "model-"
"""Begins the name of the directory in a set on an object store under which a model's files lie."""


def local_copy(directory: Place, below: str = "") -> Path:
    """The directory of a set on this machine, or one below it; fetched if the set is elsewhere.

    Args:
        directory: Of a committed set.
        below: Only the files in this sub-directory; its path is returned. Without it, all files but
            those in `NEXT_ROUND`.

    Raises:
        DataError: no committed set, or a file of it is missing or damaged.
        RetryError, ConfigError: as `storage.files.remote.Remote`; writing failed.
    """
    if isinstance(directory, Path):
        return directory / below
    manifest = read_manifest(directory)
    copy = cache_root() / "sets" / f"{directory.name}-{manifest.digest[:16]}"
    for path, file in files_by_path(manifest).items():
        first = path.partition("/")[0]
        if (below and first != below) or (first == NEXT_ROUND and not below):
            continue
        source, target = directory / file.path, copy / path
        if target.exists() and sha256_file(target) == file.sha256:
            continue
        log.info("%s: fetching %s (%.1f MB)", directory, file.path, file.bytes / 1e6)
        try:
            fetch(source, target, file.sha256)
        except FileNotFoundError as error:
            raise DataError(f"{source}: missing. {RESTORE}") from error
    if not (copy / FILE_NAME).exists():
        fetch(directory / FILE_NAME, copy / FILE_NAME)
    return copy / below


def files_by_path(manifest: Manifest) -> dict[str, File]:
    """The files of a set by their path on this machine, with forward slashes.

    On an object store a model's files lie one directory deeper (`ATTEMPT`).
    """
    found: dict[str, File] = {}
    for file in manifest.files:
        first, _, inside = file.path.partition("/")
        found[inside if first.startswith(ATTEMPT) and inside else file.path] = file
    return found


def fetch(source: Remote, target: Path, sha256: str | None = None) -> None:
    """Copy an object to this machine, atomically.

    Raises:
        FileNotFoundError: there is no such object.
        DataError: its content is not what `sha256` says.
        RetryError, ConfigError: as `storage.files.remote.Remote`; writing failed.
    """
    digest = hashlib.sha256()
    temporary = temporary_name(target.parent, target.name)
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as stream:
                for block in source.blocks():
                    digest.update(block)
                    stream.write(block)
        if sha256 not in (None, found := digest.hexdigest()):
            raise DataError(f"{source}: damaged (its sha256 is {found}, not {sha256}). {RESTORE}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_files(directory: Place, manifest: Manifest | None = None, *, whole: bool = False) -> None:
    """Hash every listed file of a set that is not a part; does nothing where there is no manifest.

    Of a set on an object store the local copy is hashed, and fetched where it is missing. Files in
    `NEXT_ROUND` are left out, unless `whole`: the training that reads them compares their digests.

    Raises:
        DamageError: one is missing or changed.
        DataError: the manifest is unreadable.
    """
    if not (directory / FILE_NAME).exists():
        return
    manifest = manifest or read_manifest(directory)
    if not isinstance(directory, Path):
        local_copy(directory)
        if whole:
            local_copy(directory, NEXT_ROUND)
        return
    for name, file in files_by_path(manifest).items():
        if name.startswith(f"{NEXT_ROUND}/") and not whole:
            continue
        path = directory / file.path
        found = sha256_file(path) if path.is_file() else "that of no file"
        if found != file.sha256:
            raise DamageError(
                path,
                f"{path}: damaged (its sha256 is {found}, not {file.sha256}). Restore it from a "
                f"copy, or remove {directory} and run the same command: it is made again.",
            )
