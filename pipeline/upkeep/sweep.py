"""What a store holds for nothing, and its removal: `afterglow gc`.

Committed sets are never touched, whatever recipe they belong to. The rest is a stray when nothing
has written to it for longer than an age limit, which is what keeps live writers safe: a writer of
this or any other machine changes its file all the time. A time in the future counts as now.
"""

import logging
import re
import shutil
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.graph import STAGES
from storage.manifest import FILE_NAME, read_manifest

log = logging.getLogger(__name__)

_STAGES = "|".join(re.escape(stage.name) for stage in STAGES)
_SET = re.compile(rf"({_STAGES})-[0-9a-f]{{12}}")
_WORK = ".work"


@dataclass(frozen=True)
class Stray:
    """A file or directory that nothing refers to."""

    path: Path
    bytes: int
    why: str


def find_strays(root: Path, planned: Container[str], before: float) -> list[Stray]:
    """All strays of a store.

    Args:
        root: Directory of the store.
        planned: Names of directories, and of stages, whose unfinished sets are to be kept.
        before: Seconds since 1970; what was written to later is left alone.

    Raises:
        DataError: a manifest is damaged: what its set is made of is unknown.
    """
    out = [_stray(path, "temporary file of a dead writer") for path in _temporary(root, before)]
    for directory in sorted(path for path in root.glob("*-*") if _is_set(path)):
        if (directory / FILE_NAME).exists():
            out += _in_committed(directory, before)
        elif directory.name in planned or directory.name.rpartition("-")[0] in planned:
            out += [_stray(path, "temporary file") for path in _deep(directory, before)]
        elif _newest(directory) < before:
            out.append(_stray(directory, "unfinished set that the recipe does not plan"))
        else:
            out += [_stray(path, "temporary file") for path in _deep(directory, before)]
    return out


def remove(strays: list[Stray]) -> int:
    """Remove strays; a set that was committed since is kept. Returns the bytes that went."""
    gone = 0
    for stray in strays:
        if stray.path.is_dir():
            if (stray.path / FILE_NAME).exists():
                log.warning("%s: was finished in the meantime, and is kept", stray.path)
                continue
            shutil.rmtree(stray.path)
        else:
            stray.path.unlink(missing_ok=True)
        gone += stray.bytes
    return gone


def _is_set(path: Path) -> bool:
    return _SET.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def _in_committed(directory: Path, before: float) -> Iterator[Stray]:
    manifest = read_manifest(directory)
    listed = {part.file for part in manifest.parts}
    for path in sorted(directory.glob("part-*")):
        if path.name not in listed and _written(path) < before:
            yield _stray(path, "part that the manifest does not name")
    work = directory / _WORK
    if work.is_dir() and _newest(work) < before:
        yield _stray(work, "checkpoint of a finished set")
    for path in _temporary(directory, before):
        yield _stray(path, "temporary file of a dead writer")


def _temporary(directory: Path, before: float) -> Iterator[Path]:
    """Files right in `directory` under the name of a temporary file."""
    for path in sorted(directory.glob(".*.tmp")):
        if path.is_file() and not path.is_symlink() and _written(path) < before:
            yield path


def _deep(directory: Path, before: float) -> Iterator[Path]:
    """The same in `directory` and its workspace."""
    yield from _temporary(directory, before)
    yield from _temporary(directory / _WORK, before)


def _stray(path: Path, why: str) -> Stray:
    return Stray(path, sum(_size(each) for each in _below(path)), why)


def _below(path: Path) -> Iterator[Path]:
    """The path and all below it; links are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            yield from _below(child)


def _newest(path: Path) -> float:
    return max(map(_written, _below(path)))


def _written(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # gone since it was listed: somebody is at work here
        return float("inf")


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
