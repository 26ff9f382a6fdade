"""Bytes of a part, from a file of this machine or by ranged requests from an object store."""

import io
import os
from pathlib import Path
from typing import Protocol

from storage.files.place import Place
from storage.files.remote import Remote

_TAIL = 1 << 17
"""Bytes read from the end of an object when it is opened: the footers of most parts."""


class Source(Protocol):
    """Random access to a part; several threads may read at once."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end."""
        ...

    def arrow(self) -> "Path | io.RawIOBase":
        """What pyarrow opens."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class LocalSource:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("rb", buffering=0)
        self.size = self._stream.seek(0, os.SEEK_END)

    def read(self, start: int, length: int) -> bytes:
        """See `Source`."""
        return os.pread(self._stream.fileno(), length, start)

    def arrow(self) -> Path:
        """See `Source`."""
        return self._path

    def close(self) -> None:
        """See `Source`."""
        self._stream.close()


class RemoteSource:
    """An object; the end of it is kept, as that is read several times.

    Args:
        path: The object.
        size: Its bytes, where they are known: saves a request.
    """

    def __init__(self, path: Remote, size: int | None = None) -> None:
        self._path = path
        self.size = path.size() if size is None else size
        start = max(0, self.size - _TAIL)
        self._tail_start, self._tail = start, path.read_range(start, self.size)

    def read(self, start: int, length: int) -> bytes:
        """See `Source`."""
        stop = min(start + length, self.size)
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : stop - self._tail_start]
        return self._path.read_range(start, stop)

    def arrow(self) -> io.RawIOBase:
        """See `Source`."""
        return _Stream(self)

    def close(self) -> None:
        """Nothing is open between requests."""


def open_source(path: Place, size: int | None = None) -> Source:
    """The bytes of a part.

    Raises:
        FileNotFoundError: it is not there.
        RetryError, ConfigError: as `storage.files.remote.Remote`.
    """
    return LocalSource(path) if isinstance(path, Path) else RemoteSource(path, size)


class _Stream(io.RawIOBase):
    """A source as the file that pyarrow wants."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        length = max(0, self._source.size - self._at) if size < 0 else size
        data = self._source.read(self._at, length)
        self._at += len(data)
        return data
