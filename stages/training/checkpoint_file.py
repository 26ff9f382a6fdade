"""A digest at the end of a file, so that a changed bit in a checkpoint is found before it is used.

The zip container of `torch.save` has checksums, but `torch.load` does not look at them: nine of ten
flipped bits load without a word. Readers of zip files search for their directory from the end, so
bytes behind it do no harm.
"""

import hashlib
import os
from pathlib import Path

from storage.errors import DataError
from storage.files.write import sha256_file

_MARK = b"\nafterglow sha256 "
_LENGTH = len(_MARK) + 64
_BLOCK = 1 << 22


def seal(path: Path) -> None:
    """Append the digest of a file to it, and sync."""
    digest = sha256_file(path)
    with path.open("ab") as stream:
        stream.write(_MARK + digest.encode())
        stream.flush()
        os.fsync(stream.fileno())


def check_seal(path: Path) -> None:
    """Hash a sealed file again.

    Raises:
        DataError: it has no digest, or another one.
    """
    left = path.stat().st_size - _LENGTH
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while left > 0 and (block := stream.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
        if left < 0 or stream.read() != _MARK + digest.hexdigest().encode():
            raise DataError(f"{path}: damaged: it does not end in the digest of its content")
