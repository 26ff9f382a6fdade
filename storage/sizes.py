"""What a set weighs: bytes per column, from the footers of its parts."""

from dataclasses import dataclass
from typing import Any

from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import read_manifest
from storage.parquet.reader import column_bytes
from storage.schema import column_names


@dataclass(frozen=True)
class Weight:
    """Mean bytes of one position (response token) on disk, compressed."""

    part: float
    """Of everything in the parts: tokens, prompts, records and footers."""
    record: float
    """Of the columns that make the record: what the set holds beyond one that keeps log p of the
    realised token and the teacher's entropy alone."""


def weight(directory: Place) -> Weight:
    """The weight of a position of a committed record set.

    Raises:
        DataError: not a committed set of records, or one without positions.
    """
    manifest = read_manifest(directory)
    record: dict[str, Any] | None = manifest.meta.get("record")
    positions = sum(part.tokens for part in manifest.parts)
    if record is None or not positions:
        raise DataError(f"{directory}: holds no records to weigh")
    beside = column_names("records", {"kind": "sampled"}, 0, True)
    own = sum(
        size
        for part in manifest.parts
        for name, size in column_bytes(directory / part.file).items()
        if name not in beside
    )
    return Weight(sum(part.bytes for part in manifest.parts) / positions, own / positions)
