"""The few file operations everything durable goes through; an object store would replace these."""

import hashlib
import logging
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import RetryError

log = logging.getLogger(__name__)

_BLOCK = 1 << 22


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


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn the operating system's refusal to write `path` into a `RetryError`."""
    try:
        yield
    except RetryError:
        raise
    except OSError as error:
        raise RetryError(
            f"{path}: cannot write ({error.strerror or error}). Finished parts are kept; free "
            "space or mend the disk, and run again."
        ) from error


def create_once(path: Path, content: bytes) -> bool:
    """Write a file atomically and durably, unless it is there already.

    Returns:
        Whether this call made the file. Of two racing calls one returns True.
    """
    temporary = temporary_name(path.parent, path.name)
    try:
        with disk_errors(path):
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            made = _link(temporary, path)
            sync_directory(path.parent)
            return made
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Give `temporary` its final name; a hard link fails where the name is taken, atomically."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: the window between test and rename is small
        if path.exists():
            return False
        log.debug("%s: no hard links here, renaming instead", path.parent)
        temporary.rename(path)
    return True


class HashingFile:
    """A new file that hashes what is written to it, so that it need not be read again.

    Attributes:
        digest: sha256 of everything written.
        size: Bytes written.
        discard: Once true, whatever is written is dropped: a library can be made to let go of a
            file that is not wanted any more.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: nothing is left to be flushed, and to fail, while an error is being handled.
        self._stream = path.open("xb", buffering=0)
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
        """Nothing yet: `sync` does it once, at the end."""

    def sync(self) -> None:
        """Put everything on the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close without syncing."""
        self._stream.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._stream.closed
