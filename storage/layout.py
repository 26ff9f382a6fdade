"""How the columns of a part are laid out in its file: as they are, or packed."""

from functools import cached_property
from typing import TYPE_CHECKING

from storage.files.place import Place
from storage.manifest import Json, SetMeta
from storage.rows import Rows
from storage.schema import Blobs, blob_names, replaced_columns

if TYPE_CHECKING:
    from storage.packed.codec import Code


class Layout:
    """The open layout: every column by itself, readable by anyone."""

    replaced: tuple[str, ...] = ()
    """Columns of `Rows` that are not in the file."""
    blobs: tuple[str, ...] = ()
    """Columns of bytes that are there instead."""

    def load(self) -> None:
        """Read what is needed beside the parts.

        Raises:
            DataError: it is missing or damaged.
        """

    def pack(self, rows: Rows) -> tuple[Rows, Blobs]:
        """From `Rows` to what is in the file.

        Raises:
            DataError: rows this layout cannot hold.
        """
        return rows, {}

    def unpack(self, rows: Rows, blobs: Blobs) -> Rows:
        """From what is in the file to `Rows`.

        Raises:
            DataError: it does not fit together.
        """
        del blobs
        return rows


class PackedLayout(Layout):
    """Records as streams of bytes (`storage.packed.codec`); `ranks.u32` lies beside the parts."""

    def __init__(self, directory: Place, meta: SetMeta, record: Json) -> None:
        self.replaced = replaced_columns(record)
        self.blobs = blob_names(record)
        self._directory, self._meta = directory, meta

    @cached_property
    def _code(self) -> "Code":
        # Numba: only readers of records pay for its import.
        from storage.packed.codec import load_code

        return load_code(self._directory, self._meta.ranks, self._meta.vocab_size)

    def load(self) -> None:
        """Read the ranks of the set."""
        _ = self._code

    def pack(self, rows: Rows) -> tuple[Rows, Blobs]:
        """See `storage.packed.codec.pack`."""
        from storage.packed.codec import pack

        return pack(rows, self._meta, self._code)

    def unpack(self, rows: Rows, blobs: Blobs) -> Rows:
        """See `storage.packed.codec.unpack`."""
        from storage.packed.codec import unpack

        return unpack(rows, blobs, self._meta, self._code)


def layout_of(directory: Place, meta: SetMeta) -> Layout:
    """The layout of the parts of a set."""
    if meta.layout == "packed" and meta.record is not None:
        return PackedLayout(directory, meta, meta.record)
    return Layout()
