"""Files of a set that are read whole, models above all: hashed before they are believed.

Parts check themselves row group by row group. A weight file has no checksum of its own, and a
flipped bit in it is a slightly different model.
"""

from pathlib import Path

from storage.copies import local_copy
from storage.errors import DamageError
from storage.files.place import Place
from storage.files.write import sha256_file
from storage.manifest import FILE_NAME, read_manifest


def check_files(directory: Place) -> None:
    """Hash every listed file of a set that is not a part; does nothing where there is no manifest.

    Of a set in another store than this machine its copy here is hashed, and fetched if need be.

    Raises:
        DamageError: one is missing or changed.
        DataError: the manifest is unreadable.
    """
    if not (directory / FILE_NAME).exists():
        return
    if not isinstance(directory, Path):
        local_copy(directory)
        return
    for file in read_manifest(directory).files:
        path = directory / file.path
        found = sha256_file(path) if path.is_file() else "that of no file"
        if found != file.sha256:
            raise DamageError(
                path,
                f"{path}: damaged (its sha256 is {found}, not {file.sha256}). Restore it from a "
                f"copy, or remove {directory} and run the same command: it is made again.",
            )
