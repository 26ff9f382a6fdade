"""Parts: Parquet files that are written atomically and read without trust.

A part is written to a temporary name, synced, and renamed to a name that holds the first 16 digits
of its own sha256; on an object store it is uploaded under that name. A killed writer leaves at most
a temporary file; two writers of one part leave two valid files, and the manifest picks one.

Against damage there are a CRC on every Parquet page, a CRC over the decoded values of every row
group (`codec.checksum`, kept in footer and manifest), a sha256 over the footer's description, and
the sha256 of the file in its name and in the manifest.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from storage.check import check_meta, check_rows
from storage.codec import checksum, stored
from storage.errors import RESTORE, DamageError, DataError
from storage.files.place import Place
from storage.files.write import NewFile, disk_errors, known_sha256, new_file, sha256_file, size_of
from storage.manifest import (
    Part,
    RowGroup,
    SetMeta,
    canonical,
    check_format,
    row_groups_from_json,
)
from storage.parquet.reader import DAMAGE, UNREACHABLE, Reader, Writer
from storage.rows import Rows
from storage.schema import FORMAT_VERSION, ROW_GROUP, blob_names, column_names, replaced_columns

log = logging.getLogger(__name__)

FOOTER_KEY = b"afterglow"
FOOTER_DIGEST_KEY = b"afterglow.sha256"
_HASH_DIGITS = 16


class PartWriter:
    """Writes one part; a context manager.

    After a clean exit the part is durable and described by `part`; after an exception nothing is
    left behind.

    Args:
        directory: Directory of the set; made if it is not there.
        index: Number of the part in the plan.
        meta: What readers must know; goes into the footer.
        split: `train` or `holdout`.

    Raises:
        DataError: from `write`, for rows that break a rule of the format (`storage.check`).
        RetryError: writing failed; finished parts are kept.
    """

    def __init__(self, directory: Place, index: int, meta: SetMeta, split: str = "train") -> None:
        check_meta(meta)
        self._directory, self._index, self._meta, self._split = directory, index, meta, split
        self._replaced, self._blobs = _packed_columns(meta)
        self._pending: list[Rows] = []
        self._groups: list[RowGroup] = []
        self._names: tuple[str, ...] = ()
        self._part: Part | None = None
        self._file: NewFile
        self._parquet: Writer | None = None

    @property
    def part(self) -> Part:
        """The finished part; only after a clean exit."""
        if self._part is None:
            raise RuntimeError("the part is finished when its writer is closed without an error")
        return self._part

    def __enter__(self) -> Self:
        with disk_errors(self._directory):
            self._file = new_file(self._directory, f"part-{self._index:05d}")
        return self

    def write(self, rows: Rows) -> None:
        """Append sequences; any number at a time, row groups are cut here."""
        if not len(rows):
            return
        rows, names = stored(rows), tuple(rows.columns)
        try:
            if self._names and names != self._names:  # `ref_lp` and `nc` may be absent
                odd = sorted(set(names) ^ set(self._names))
                raise DataError(
                    f"column {odd[0]!r} is in some of the rows only; all rows of a part have the "
                    "same columns"
                )
            check_rows(rows, self._meta)
        except DataError as error:
            raise DataError(f"{self._directory}, part {self._index}: {error}") from error
        self._names = names
        self._pending.append(rows)
        if sum(map(len, self._pending)) < ROW_GROUP:
            return
        rows = Rows.concat(self._pending)
        full = len(rows) - len(rows) % ROW_GROUP
        for start in range(0, full, ROW_GROUP):
            self._write_group(rows.slice(start, start + ROW_GROUP))
        self._pending = [rows.take(np.arange(full, len(rows)))] if full < len(rows) else []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.content.discard = True
            if self._parquet is not None:
                self._parquet.close({})
            self._file.close()

    def _write_group(self, rows: Rows) -> None:
        stays, blobs = rows, {}
        if self._meta.layout == "packed":
            from storage.packed.codec import load_code, pack

            code = load_code(self._directory, self._meta.ranks, self._meta.vocab_size)
            stays, blobs = pack(rows, self._meta, code)
        with disk_errors(self._directory):
            self._opened().write(stays, blobs)
        longest = rows.lengths("prompt") + rows.lengths("position")
        self._groups.append(
            RowGroup(
                rows=len(rows),
                tokens=rows.tokens,
                prompt_tokens=int(rows.offsets["prompt"][-1]),
                entries=int(rows.offsets["entry"][-1]) if "entry" in rows.offsets else 0,
                max_tokens=int(longest.max()),
                crc32=checksum(rows),
            )
        )

    def _opened(self) -> Writer:
        if self._parquet is None:
            meta = self._meta
            names = self._names or column_names(
                meta.kind, meta.record, meta.candidates, reference=False
            )
            kept = [name for name in names if name not in self._replaced]
            self._parquet = Writer(self._file.content, kept, self._blobs)
        return self._parquet

    def _finish(self) -> None:
        if self._pending:
            self._write_group(Rows.concat(self._pending))
        footer = canonical(
            {
                "format": FORMAT_VERSION,
                **self._meta.to_json(),
                "index": self._index,
                "split": self._split,
                "row_groups": [vars(group) for group in self._groups],
            }
        ).encode()
        check = hashlib.sha256(footer).hexdigest().encode()
        with disk_errors(self._directory):
            self._opened().close({FOOTER_KEY: footer, FOOTER_DIGEST_KEY: check})
            content = self._file.content
            digest = content.digest.hexdigest()
            name = f"part-{self._index:05d}-{digest[:_HASH_DIGITS]}.parquet"
            self._file.finish(name)
        self._part = _part(name, content.size, digest, self._index, self._split, self._groups)


class PartFile:
    """An open part; several threads may read at once.

    Args:
        path: Its file.
        size: Bytes of the file, where they are known.

    Raises:
        DataError: the file is missing, damaged, newer than this program, or not a part.
    """

    def __init__(self, path: Place, size: int | None = None) -> None:
        self.path = path
        try:
            self._reader = Reader(path, size)
        except FileNotFoundError as error:
            raise DamageError(
                path,
                f"{path}: this part is missing. {RESTORE}",
            ) from error
        except UNREACHABLE:
            raise
        except DAMAGE as error:
            raise _damaged(path, "footer", error) from error
        try:
            self._read_footer()
        except BaseException:
            self.close()
            raise

    def _read_footer(self) -> None:
        """What the part is; its columns must be as described, since decoding relies on it."""
        path, text = self.path, self._reader.metadata.get(FOOTER_KEY)
        if text is None:
            raise DataError(f"{path}: a Parquet file, but not one written by afterglow")
        if hashlib.sha256(text).hexdigest().encode() != self._reader.metadata.get(
            FOOTER_DIGEST_KEY
        ):
            raise _damaged(path, "footer", "checksum of the description differs")
        try:
            footer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, "footer", error) from error
        check_format(path, footer, FORMAT_VERSION)
        try:
            self.meta = meta = SetMeta.from_json(footer)
            check_meta(meta)
            self._replaced, blobs = _packed_columns(meta)
            self.index = int(footer["index"])
            self.split = str(footer["split"])
            self.row_groups: tuple[RowGroup, ...] = row_groups_from_json(footer["row_groups"])
            rows = [group.rows for group in self.row_groups]
            if self._reader.rows != rows:
                raise ValueError(f"row groups of {self._reader.rows} rows, described as {rows}")
            found = self._reader.columns
            names = column_names(
                meta.kind, meta.record, meta.candidates, "ref_lp" in found, varying="nc" in found
            )
            expected = [*(name for name in names if name not in self._replaced), *blobs]
            if found != expected:
                raise ValueError(f"columns {', '.join(found)}, described as {', '.join(expected)}")
        except (*DAMAGE, TypeError, AttributeError) as error:
            raise _damaged(path, "footer", error) from error

    def read(self, group: int, columns: Sequence[str] | None = None) -> Rows:
        """One row group.

        Args:
            group: Its number.
            columns: Names to read; default all. The checksum over decoded values can only be
                checked for all of them; a selection is guarded by the page checksums alone, unless
                it holds a packed column: these are unpacked together or not at all.

        Raises:
            DataError: the row group is damaged, or `ranks.u32` of a packed set is.
        """
        whole = columns is None or any(name in self._replaced for name in columns)
        code = None
        if whole and self.meta.layout == "packed":
            # Numba: only readers of records pay for its import.
            from storage.packed.codec import load_code

            code = load_code(self.path.parent, self.meta.ranks, self.meta.vocab_size)
        try:
            rows, blobs = self._reader.read(group, None if whole else columns)
            if code is not None:
                from storage.packed.codec import unpack

                rows = unpack(rows, blobs, self.meta, code)
        except UNREACHABLE:
            raise
        except DAMAGE as error:
            raise _damaged(self.path, f"row group {group}", error) from error
        if whole and checksum(rows) != self.row_groups[group].crc32:
            raise _damaged(self.path, f"row group {group}", "checksum of the values differs")
        return rows if columns is None else rows.only(columns)

    def close(self) -> None:
        """Close the file; rows read from it stay valid."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_rows(path: Place, columns: Sequence[str] | None = None) -> Iterator[Rows]:
    """The rows of a part, one row group at a time, checked as by `PartFile.read`.

    Raises:
        DataError: the part is missing or damaged; the message names file and row group.
    """
    with PartFile(path) as file:
        for group in range(len(file.row_groups)):
            yield file.read(group, columns)


def read_meta(path: Place) -> SetMeta:
    """The description of the set a part belongs to, from its footer.

    Raises:
        DataError: as `PartFile`.
    """
    with PartFile(path) as file:
        return file.meta


def find_part(directory: Place, index: int) -> Part | None:
    """The verified part of an index: its sha256 equals its name and its footer is readable.

    On an object store the sha256 is the one that was stored with the part (`known_sha256`).

    Damaged files are reported and passed over, so that running the stage again replaces them. If
    racing writers left several, the first by name is taken.
    """
    found = directory.glob(f"part-{index:05d}-*.parquet")
    for path in sorted(found, key=lambda path: path.name):
        digest = known_sha256(path)
        if path.name != f"part-{index:05d}-{digest[:_HASH_DIGITS]}.parquet":
            log.warning("%s: damaged (its sha256 is %s); it is not used", path, digest)
            continue
        try:
            with PartFile(path) as file:
                size = size_of(path)
                return _part(path.name, size, digest, index, file.split, file.row_groups)
        except DataError as error:
            log.warning("%s", error)
    return None


def verify_part(directory: Place, part: Part) -> list[str]:
    """Everything wrong with one part of a set: hash, size, description, every row group."""
    path = directory / part.file
    if not path.exists():
        return [f"{path}: missing"]
    problems: list[str] = []
    if (found := size_of(path)) != part.bytes:
        problems.append(f"{path}: {found} bytes, not {part.bytes}")
    if (digest := sha256_file(path)) != part.sha256:
        problems.append(f"{path}: sha256 is {digest}, not {part.sha256}")
    try:
        file = PartFile(path)
    except DataError as error:
        return [*problems, str(error)]
    with file:
        if file.row_groups != part.row_groups:
            problems.append(f"{path}: its row groups are not those of the manifest")
        for group in range(len(file.row_groups)):
            try:
                check_rows(file.read(group), file.meta)
            except DataError as error:
                problems.append(str(error))
    return problems


def _part(
    name: str, size: int, digest: str, index: int, split: str, groups: Sequence[RowGroup]
) -> Part:
    return Part(
        file=name,
        bytes=size,
        sha256=digest,
        index=index,
        split=split,
        sequences=sum(group.rows for group in groups),
        tokens=sum(group.tokens for group in groups),
        entries=sum(group.entries for group in groups),
        row_groups=tuple(groups),
    )


def _packed_columns(meta: SetMeta) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of `Rows` that are not in the file, and columns of bytes that are there instead."""
    if meta.layout == "open" or meta.record is None:
        return (), ()
    return replaced_columns(meta.record), blob_names(meta.record)


def _damaged(path: Place, where: str, error: object) -> DamageError:
    return DamageError(
        path,
        f"{path}, {where}: damaged ({error}). `afterglow verify {path.parent}` lists everything "
        "that is wrong; `afterglow run` of its stage with --check makes the part again.",
    )
