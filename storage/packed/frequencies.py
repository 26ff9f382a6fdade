"""Ids by frequency: the ranks by which the packed layout stores them.

The file `ranks.u32` of a packed set holds the ids that were seen, as uint32, by descending
frequency and, where that is equal, ascending. All other ids follow, ascending. Every footer holds
its sha256.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import RESTORE, DataError
from storage.files.place import Place
from storage.files.write import create_once, disk_errors, sha256_file
from storage.manifest import RANKS


def write_ranks(directory: Place, count: Callable[[], NDArray[np.integer[Any]]]) -> str:
    """Write the file of a set, unless it is there already.

    Args:
        directory: of the set; made if it is not there.
        count: Says how often each id occurs, [V], in the data or in anything like it; not asked if
            the file is there. Which numbers these are changes the size of the set, nothing else.

    Returns:
        Its sha256: `SetMeta.ranks`.

    Raises:
        RetryError: writing failed.
    """
    path = directory / RANKS
    if not path.exists():
        count_V = count().astype(np.int64)
        order = np.argsort(-count_V, kind="stable")
        with disk_errors(path):
            directory.mkdir(parents=True, exist_ok=True)
        create_once(path, order[: np.count_nonzero(count_V)].astype("<u4").tobytes())
    return sha256_file(path)


def read_ranks(directory: Place, digest: str | None, vocab_size: int) -> NDArray[np.uint32]:
    """Ids by rank, [V].

    Raises:
        DataError: the file is missing, or is not the one the set was written with.
    """
    path = directory / RANKS
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: missing, and packed records cannot be read without it. {RESTORE}"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise DataError(
            f"{path}: its sha256 is {found}, but the set was written with {digest}. {RESTORE}"
        )
    seen = np.frombuffer(content[: len(content) // 4 * 4], "<u4").astype(np.int64)
    if len(content) % 4 or (seen >= vocab_size).any() or len(np.unique(seen)) != len(seen):
        raise DataError(f"{path}: not a list of different ids below {vocab_size}")
    unseen = np.ones(vocab_size, np.bool_)
    unseen[seen] = False
    return np.concatenate([seen, np.flatnonzero(unseen)]).astype(np.uint32)
