"""Finds and removes files of a store that nothing uses: `afterglow gc`.

Committed sets are never removed, whatever recipe they belong to. Anything else is a stray when
nothing has written to it for longer than an age limit. The limit protects live writers: a writer on
this or any other machine changes its file all the time. A time in the future counts as now.
"""

import logging
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.graph import STAGES
from storage.manifest import FILE_NAME, read_manifest

log = logging.getLogger(__name__)

_STAGES = "|".join(re.escape(stage.name) for stage in STAGES)
_SET = re.compile(rf"({_STAGES})-[0-9a-f]{{12}}")
_WORK = ".work"
_DEAD = "temporary file of a dead writer"


@dataclass(frozen=True)
class Stray:
    """A file or directory that nothing uses."""

    path: Path
    bytes: int
    why: str


def find_strays(root: Path, planned: Collection[str], before: float) -> list[Stray]:
    """All strays of a store.

    Args:
        root: Directory of the store.
        planned: Names of directories, and of stages, whose unfinished sets are to be kept.
        before: Seconds since 1970; what was written to later is left alone.

    Raises:
        DataError: a manifest is damaged: what its set is made of is unknown.
    """
    out = [_stray(path, _DEAD) for path in _temporary(root, before)]
    for directory in sorted(root.glob("*-*")):
        name = directory.name
        if not _SET.fullmatch(name) or not directory.is_dir() or directory.is_symlink():
            continue
        work = directory / _WORK
        if (directory / FILE_NAME).exists():
            listed = {part.file for part in read_manifest(directory).parts}
            for path in sorted(directory.glob("part-*")):
                if path.name not in listed and _written(path) < before:
                    out.append(_stray(path, "part that the manifest does not name"))
            if work.is_dir() and _newest(work) < before:
                out.append(_stray(work, "checkpoint of a finished set"))
            out += [_stray(path, _DEAD) for path in _temporary(directory, before)]
        elif {name, name.rpartition("-")[0]}.isdisjoint(planned) and _newest(directory) < before:
            out.append(_stray(directory, "unfinished set that the recipe does not plan"))
        else:
            strays = [*_temporary(directory, before), *_temporary(work, before)]
            out += [_stray(path, "temporary file") for path in strays]
    return out


def remove(strays: list[Stray]) -> int:
    """Remove strays, but no set that was committed since; returns the bytes that were freed."""
    gone = 0
    for stray in strays:
        if stray.path.is_dir():
            if (stray.path / FILE_NAME).exists():
                log.warning("%s: was committed in the meantime, and is kept", stray.path)
                continue
            shutil.rmtree(stray.path)
        else:
            stray.path.unlink(missing_ok=True)
        gone += stray.bytes
    return gone


def _temporary(directory: Path, before: float) -> Iterator[Path]:
    """Files directly in `directory` that are named like temporary files."""
    for path in sorted(directory.glob(".*.tmp")):
        if path.is_file() and not path.is_symlink() and _written(path) < before:
            yield path


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
    except FileNotFoundError:  # removed since it was listed: a writer is active
        return float("inf")


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
