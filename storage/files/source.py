"""Bytes of a part, from a file of this machine or by ranged requests from an object store.

Both have `size`, `read_at` (several threads may read at once) and `arrow`, which is what pyarrow
opens.
"""

import io
import os
from pathlib import Path
from typing import Self

from storage.files.place import Place
from storage.files.remote import Remote

_TAIL = 1 << 17
"""Bytes read from the end of an object when it is opened: the footers of most parts."""


class LocalBytes:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self.arrow = path
        self._stream = path.open("rb", buffering=0)
        self.size = self._stream.seek(0, os.SEEK_END)

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end."""
        return os.pread(self._stream.fileno(), length, start)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class RemoteBytes(io.RawIOBase):
    """An object; the end of it is kept, as that is read several times.

    Args:
        path: The object.
        size: Its bytes, where they are known: saves a request.
    """

    def __init__(self, path: Remote, size: int | None = None) -> None:
        self._path = path
        self.size = path.size() if size is None else size
        self._tail_start = max(0, self.size - _TAIL)
        self._tail = path.read_range(self._tail_start, self.size)
        self._at = 0

    @property
    def arrow(self) -> Self:
        """The object itself is a Python file."""
        return self

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end."""
        stop = min(start + length, self.size)
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : stop - self._tail_start]
        return self._path.read_range(start, stop)

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        data = self.read_at(self._at, max(0, self.size - self._at) if size < 0 else size)
        self._at += len(data)
        return data


PartBytes = LocalBytes | RemoteBytes


def open_bytes(path: Place, size: int | None = None) -> PartBytes:
    """The bytes of a part.

    Raises:
        FileNotFoundError: it is not there.
        RetryError, ConfigError: as `storage.files.remote.Remote`.
    """
    return LocalBytes(path) if isinstance(path, Path) else RemoteBytes(path, size)
