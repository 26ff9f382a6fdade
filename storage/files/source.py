"""Bytes of a part, from a file of this machine or by ranged requests from an object store."""

import io
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from storage.files.place import Place
from storage.files.remote import Remote

Span = tuple[int, int]
"""First byte, and the one behind the last."""

_TAIL = 1 << 17
"""Bytes read from the end of an object when it is opened: the footers of most parts."""
_GAP = 1 << 18
"""Spans no further apart than this are read in one request: it costs less than a second one."""


class Source(Protocol):
    """Random access to a part; several threads may read at once."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer at the end."""
        ...

    def hold(self, spans: Iterable[Span]) -> "Source":
        """The same bytes; those in `spans` are about to be read."""
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

    def hold(self, spans: Iterable[Span]) -> "LocalSource":
        """Nothing to prepare: the page cache does it."""
        del spans
        return self

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
        self._held: list[tuple[int, bytes]] = [(start, path.read_range(start, self.size))]

    def read(self, start: int, length: int) -> bytes:
        """See `Source`."""
        stop = min(start + length, self.size)
        for first, data in self._held:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return self._path.read_range(start, stop)

    def hold(self, spans: Iterable[Span]) -> "RemoteSource":
        """See `Source`: neighbouring spans become one request."""
        out = object.__new__(RemoteSource)
        out._path, out.size, out._held = self._path, self.size, list(self._held)
        for start, stop in joined(spans):
            out._held.append((start, self.read(start, stop - start)))
        return out

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


@contextmanager
def opened(path: Place) -> Generator[Source]:
    """`open_source` for a block."""
    source = open_source(path)
    try:
        yield source
    finally:
        source.close()


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those with little between them as one."""
    out: list[Span] = []
    for start, stop in sorted(spans):
        if out and start - out[-1][1] <= _GAP:
            out[-1] = (out[-1][0], max(stop, out[-1][1]))
        else:
            out.append((start, stop))
    return out


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
