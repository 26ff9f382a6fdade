"""Atomic, durable writes, on this machine and on an object store."""

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from storage.errors import AfterglowError, RetryError
from storage.files.place import Place, cache_root
from storage.files.remote import Remote

log = logging.getLogger(__name__)


def temporary_name(directory: Path, stem: str) -> Path:
    """A name in `directory` no other process uses: `.stem.<pid>.<random>.tmp`."""
    return directory / f".{stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Place) -> str:
    """Hexadecimal sha256 of a file's content; all of it is read."""
    if isinstance(path, Path):
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for block in path.blocks():
        digest.update(block)
    return digest.hexdigest()


def known_sha256(path: Place) -> str:
    """Hexadecimal sha256 of a finished part.

    A file of this machine is read. An object was compared with its checksums when it was stored,
    and keeps the digest of that time: it is read only where it has none.
    """
    kept = None if isinstance(path, Path) else path.sha256()
    return kept or sha256_file(path)


def size_of(path: Place) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    return path.stat().st_size if isinstance(path, Path) else path.size()


@contextmanager
def disk_errors(path: Place) -> Generator[None]:
    """Turn an `OSError` from writing `path` into a `RetryError`."""
    try:
        yield
    except AfterglowError:
        raise
    except OSError as error:
        raise RetryError(
            f"{path}: cannot write ({error.strerror or error}). Finished parts are kept; free "
            "space or repair the disk, and run again."
        ) from error


def create_once(path: Place, content: bytes) -> bool:
    """Write a file atomically and durably, unless it is there already.

    Returns:
        Whether this call made the file. Of two racing calls at most one returns True.
    """
    if not isinstance(path, Path):
        return path.create(content)
    temporary = temporary_name(path.parent, path.name)
    try:
        with disk_errors(path):
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            made = True
            try:  # a hard link fails where the name is taken, atomically
                path.hardlink_to(temporary)
            except FileExistsError:
                made = False
            except OSError:  # no hard links here: the window between test and rename is small
                made = not path.exists()
                if made:
                    log.debug("%s: no hard links here, renaming instead", path.parent)
                    temporary.rename(path)
            sync_directory(path.parent)
            return made
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Place, content: bytes) -> None:
    """Write a file whole, in place of any other; not synced."""
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


class HashingFile:
    """A new file that hashes what is written to it, so that it need not be read again.

    Attributes:
        digest: sha256 of everything written.
        size: Bytes written.
        discard: Once true, whatever is written is dropped, so that a library can close a file that
            is no longer wanted.
    """

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0
        self.discard = False

    def write(self, data: bytes) -> int:
        """Append bytes."""
        left = memoryview(b"" if self.discard else data)
        self.digest.update(left)
        self.size += len(left)
        while left:  # the operating system may take less than it is given
            left = left[self._stream.write(left) :]
        return len(data)

    def tell(self) -> int:
        """Bytes written."""
        return self.size

    def flush(self) -> None:
        """Does nothing: `sync` does it once, at the end."""

    def sync(self) -> None:
        """Flush everything to the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close without syncing."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._stream.closed


class _LocalFile:
    """A file on its way into a directory: written beside its final name, synced and renamed."""

    def __init__(self, directory: Path, stem: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_name(directory, stem)
        # Unbuffered: nothing is left to be flushed, and to fail, while an error is being handled.
        self.content = HashingFile(self._temporary.open("xb", buffering=0))

    def finish(self, name: str) -> None:
        """Make what was written durable under its final name."""
        self.content.sync()
        self._temporary.rename(self._temporary.parent / name)
        sync_directory(self._temporary.parent)

    def close(self) -> None:
        """Drop what was not finished."""
        self.content.close()
        self._temporary.unlink(missing_ok=True)


class _RemoteFile:
    """A file on its way to an object store: written to a nameless file of this machine, then
    uploaded.

    Its name in the store holds its digest, which is known at the end only. A file without a name
    is gone with its process, however that ends.
    """

    def __init__(self, directory: Remote) -> None:
        self._directory = directory
        spool = cache_root() / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        self._stream = tempfile.TemporaryFile(dir=spool, buffering=0)  # noqa: SIM115 - see close
        self.content = HashingFile(self._stream)

    def finish(self, name: str) -> None:
        """See `_LocalFile`."""
        open_file = Path(f"/proc/self/fd/{self._stream.fileno()}")
        (self._directory / name).upload(open_file, self.content.digest.hexdigest())

    def close(self) -> None:
        """See `_LocalFile`."""
        self.content.close()


NewFile = _LocalFile | _RemoteFile


def new_file(directory: Place, stem: str) -> NewFile:
    """A new file in `directory`, which is created if it does not exist.

    Args:
        directory: Where it will be.
        stem: Part of its name until it is finished.
    """
    return _LocalFile(directory, stem) if isinstance(directory, Path) else _RemoteFile(directory)
