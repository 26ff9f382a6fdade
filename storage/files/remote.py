"""Paths on an object store: as much of `pathlib.Path` as the storage layer needs, on fsspec.

`s3://bucket/prefix` goes through s3fs (the extra `s3`), other protocols through their own fsspec
package. Writes are atomic: an upload becomes visible when its last request has succeeded. There are
no directories; a name with objects below it counts as one.

Clients repeat failed requests themselves (docs/object-stores.md states how often). A request that
still fails becomes a `RetryError`; refused or missing credentials become a `ConfigError`.
"""
# fsspec ships no types, so strict checking would say "unknown" about every line.
# pyright: basic

import errno
import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import AfterglowError, ConfigError, RetryError

_BLOCK = 1 << 23
"""Bytes of one request where an object is read or written as a whole."""
_AT_ONCE = 4
"""Such requests under way together."""
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "DefaultCredentialsError",
)


class Remote:
    """One object, or the prefix of several.

    Every method may raise `RetryError` (the store cannot be reached, or keeps failing) and
    `ConfigError` (it refuses the credentials, or there are none).
    """

    def __init__(self, url: str) -> None:
        self.protocol, _, path = url.partition("://")
        self._path = path.strip("/")

    def __str__(self) -> str:
        return f"{self.protocol}://{self._path}"

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str | PurePosixPath) -> "Remote":
        return Remote(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last component."""
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> "Remote":
        """The prefix this lies under."""
        return Remote(f"{self.protocol}://{self._path.rpartition('/')[0]}")

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return str(self._info()["type"])
        except FileNotFoundError:
            return None

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        return int(self._info()["size"])

    def _info(self) -> dict[str, Any]:
        with self._reaching("look at") as fs:
            return fs.info(self._path)

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """What matches a pattern of components with `*`; sorted by name."""
        first, _, rest = pattern.partition("/")
        for name in self._names(first.partition("*")[0]):
            if fnmatchcase(name, first):
                yield from (self / name).glob(rest) if rest else (self / name,)

    def iterdir(self) -> Iterator["Remote"]:
        """What lies right below this name."""
        return self.glob("*")

    def below(self) -> list[str]:
        """Names of all objects below this one, relative to it."""
        with self._reaching("list") as fs:
            found = fs.find(self._path)
        return sorted(str(path).strip("/").removeprefix(f"{self._path}/") for path in found)

    def _names(self, start: str) -> list[str]:
        """Names right below this one that begin with `start`: one listing, of no more than those.

        Without `start` whole directories are listed by name alone; with it, what is in them too.
        """
        with self._reaching("list") as fs:
            try:
                found = (
                    fs.find(self._path, prefix=start)
                    if start
                    else fs.ls(self._path, detail=False, refresh=True)
                )
            except FileNotFoundError:
                return []
        below = (str(path).strip("/").removeprefix(f"{self._path}/") for path in found)
        return sorted({name.partition("/")[0] for name in below if name})

    def read_bytes(self) -> bytes:
        """The whole object, which must fit into memory."""
        with self._reaching("read") as fs:
            return fs.cat_file(self._path)

    def read_text(self) -> str:
        """The whole object as UTF-8."""
        return self.read_bytes().decode()

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`: one request."""
        with self._reaching(f"read bytes {start} to {stop} of") as fs:
            return fs.cat_file(self._path, start=start, end=stop) if start < stop else b""

    def blocks(self) -> Iterator[bytes]:
        """The whole object in order, a few blocks of it in memory."""
        size = self.size()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ahead: list[Future[bytes]] = []
            for start in range(0, size, _BLOCK):
                ahead.append(pool.submit(self.read_range, start, min(start + _BLOCK, size)))
                if len(ahead) == _AT_ONCE:
                    yield ahead.pop(0).result()
            for block in ahead:
                yield block.result()

    def sha256(self) -> str | None:
        """The digest that was stored with the object by `upload`; None where there is none."""
        with self._reaching("look at") as fs:
            kept = fs.metadata(self._path) if hasattr(fs, "metadata") else {}
            return kept.get("sha256") if isinstance(kept, dict) else None

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: names need no directories."""

    def write_bytes(self, content: bytes) -> int:
        """Make `content` the object, in place of any other."""
        with self._reaching("write") as fs:
            fs.pipe_file(self._path, content)
        return len(content)

    def write_text(self, content: str) -> int:
        """Make `content` the object, in place of any other."""
        return self.write_bytes(content.encode())

    def create(self, content: bytes) -> bool:
        """Make `content` the object unless there is one; returns whether it was made.

        Of two that race, the store lets one through (a conditional request, `If-None-Match: *`).
        A store without such requests leaves a short time between looking and writing, in which
        the later one wins. The answer to a request that was repeated may be False for the one
        who made it.
        """
        if self.is_file():
            return False
        with self._reaching("create") as fs:
            try:
                fs.pipe_file(self._path, content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                response = getattr(error.__cause__, "response", None) or {}
                code = response.get("Error", {}).get("Code")
                if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                    return False
                if error.errno != errno.ENOSYS:
                    raise
                fs.pipe_file(self._path, content)
        return True

    def upload(self, file: Path, sha256: str) -> None:
        """Make a local file the object; large ones in several requests, and visible at the end.

        Args:
            file: What to upload.
            sha256: Its digest, stored beside the object where that can be.
        """
        options: dict[str, Any] = {}
        if self.protocol in ("s3", "s3a"):
            metadata = {"sha256": sha256}
            options = {"chunksize": _BLOCK, "max_concurrency": _AT_ONCE, "Metadata": metadata}
        with self._reaching("upload") as fs:
            fs.put_file(str(file), self._path, **options)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        with self._reaching("remove") as fs:
            try:
                fs.rm_file(self._path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    @contextmanager
    def _reaching(self, operation: str) -> Generator[Any]:
        """The file system; what a client raises in the block becomes one of our errors."""
        try:
            yield file_system(self.protocol, os.getpid())
        except (FileNotFoundError, FileExistsError, AfterglowError):
            raise
        except Exception as error:
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if isinstance(error, PermissionError) or kinds.intersection(_NO_CREDENTIALS):
                raise ConfigError(
                    f"{self}: not allowed to {operation} it ({said}). Set the credentials of the "
                    "store (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
                    "FSSPEC_S3_ENDPOINT_URL for a server of your own), or ask its owner for access."
                ) from error
            raise RetryError(
                f"{self}: cannot {operation} it ({said}). The client has tried again and given up; "
                "finished parts are kept, so run the same command once the store answers."
            ) from error


@lru_cache(maxsize=8)
def file_system(protocol: str, pid: int) -> Any:
    """One client for all threads of a process. Listings are not kept: others write as well."""
    del pid  # a forked process makes its own
    try:
        import fsspec

        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{protocol}://: no client for this kind of store ({error}). For s3:// install "
            "`afterglow[s3]`, for others the fsspec package of the protocol (gcsfs, adlfs)."
        ) from error
