"""The manifest: what a committed set is made of. Written last; without it there is no set.

Readers open manifests only, never a directory listing, so a late, killed or racing writer cannot
change what was read before. `SetMeta` is the part of a manifest that travels in every footer, so
that a part found without its manifest can be read. This module imports neither NumPy nor pyarrow.

A file may contain any number, so `RowGroup`, `Part` and `File` refuse what no set has, before
anything is allocated or opened by it. The limits are far above every real set, and low enough that
a reader which trusts them allocates no more than a row group may take.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar, cast

from storage.errors import DataError, RetryError
from storage.files.place import Place
from storage.files.write import create_once, sha256_file, size_of
from storage.kinds import KINDS, Kind

FILE_NAME = "manifest.json"
RANKS = "ranks.u32"
"""Frequencies of ids: lies beside packed parts (`storage.packed.frequencies`)."""
MANIFEST_FORMAT = 2
DIGEST = "sha256"
"""Field of a manifest that holds the digest of all others."""

_MOST_ROWS = 1 << 16
"""Sequences in a row group; this package writes 32."""
_MOST_VALUES = (1 << 31) - 1
"""Tokens or entries in a row group: Parquet libraries count the values of a list column so."""
_MOST_BYTES = 1 << 62
_PART_NAME = r"part-\d{5,9}-[0-9a-f]{16}\.parquet"
_SHA256 = r"[0-9a-f]{64}"

Json = Mapping[str, Any]
ManifestKind = Literal["sequences", "records", "model", "metrics"]
T = TypeVar("T")


@dataclass(frozen=True)
class RowGroup:
    """The unit of random access inside a part."""

    rows: int
    """Sequences."""
    tokens: int
    """Positions (response tokens)."""
    prompt_tokens: int
    entries: int
    """Stored ids of records."""
    max_tokens: int
    """Longest sequence, prompt plus response."""
    crc32: int
    """Checksum over the decoded values (`codec.checksum`); independent of Parquet."""

    def __post_init__(self) -> None:
        _check_count(self, "rows", _MOST_ROWS)
        for name in ("tokens", "prompt_tokens", "entries", "max_tokens"):
            _check_count(self, name, _MOST_VALUES)
        _check_count(self, "crc32", (1 << 32) - 1)
        if self.max_tokens > self.tokens + self.prompt_tokens:
            raise ValueError(f"max_tokens is {self.max_tokens}, more than all tokens together")


@dataclass(frozen=True)
class Part:
    """One Parquet file of a set."""

    file: str
    bytes: int
    sha256: str
    index: int
    split: str
    sequences: int
    tokens: int
    entries: int
    row_groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        _check_text(self, "file", _PART_NAME, "the name of a part")
        _check_text(self, "sha256", _SHA256, "64 hexadecimal digits")
        _check_text(self, "split", ".*", "text")
        _check_count(self, "index", 10**9)
        _check_count(self, "bytes", _MOST_BYTES)
        for name, of_group in (("sequences", "rows"), ("tokens", "tokens"), ("entries", "entries")):
            total = sum(getattr(group, of_group) for group in self.row_groups)
            if getattr(self, name) != total:
                raise ValueError(
                    f"{self.file}: {name} is {getattr(self, name)}, its row groups have {total}"
                )


@dataclass(frozen=True)
class File:
    """One file of a set that is not a part: weights, metrics, tokenizer."""

    path: str
    """Relative to the directory of the set, with forward slashes."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_text(self, "path", r"[^\\\0]*", "a path with forward slashes")
        pure = PurePosixPath(self.path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != self.path:
            raise ValueError(f"{self.path!r} does not stay inside the directory of the set")
        if self.path in (".", FILE_NAME):
            raise ValueError(f"{self.path!r} cannot be a file of a set")
        _check_text(self, "sha256", _SHA256, "64 hexadecimal digits")
        _check_count(self, "bytes", _MOST_BYTES)


def _check_count(of: object, name: str, most: int) -> None:
    value = getattr(of, name)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}; it must be a whole number from 0 to {most}")


def _check_text(of: object, name: str, pattern: str, what: str) -> None:
    value = getattr(of, name)
    if type(value) is not str or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} is {value!r:.40}; it must be {what}")


@dataclass(frozen=True)
class Totals:
    """Sums over the parts."""

    parts: int
    sequences: int
    tokens: int
    entries: int
    bytes: int
    """Of parts and files."""


@dataclass(frozen=True)
class SetMeta:
    """What a reader must know to interpret a part; stored in every footer."""

    stage: str
    key: str
    kind: Literal["sequences", "records"]
    vocab_size: int
    candidates: int = 0
    """Most candidate ids per position; with a column `nc`, positions may have fewer. A record set
    has forced them into its heads and stores no `cand` column."""
    record: Json | None = None
    """Record parameters of a record set: `kind`, and `draws`, `tau`, `temperature`, ..."""
    tokenizer: Json | None = None
    teacher: Json | None = None
    layout: Literal["open", "packed"] = "open"
    """How the columns of the record are stored; what is read is the same."""
    ranks: str | None = None
    """sha256 of the set's `ranks.u32`; packed layout only."""

    @property
    def record_kind(self) -> Kind | None:
        """What its records store; None for plain sequences."""
        return None if self.record is None else KINDS[self.record["kind"]]

    @property
    def copies(self) -> int:
        """Independent draws per position; 1 for kinds that have none or keep one."""
        kind = self.record_kind
        return int(self.record_params.get("copies", 1)) if kind and kind.drawn else 1

    @property
    def tail_floor(self) -> float:
        """Weight of a tail's one id where less mass than this is outside the head (FORMAT.md)."""
        kind = self.record_kind
        return float(self.record_params.get("tail_floor", 0.0)) if kind and kind.tail else 0.0

    @property
    def record_params(self) -> Json:
        """Record parameters; empty for plain sequences."""
        return self.record or {}

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> "SetMeta":
        """The inverse of `to_json`; unknown fields are ignored."""
        return build(cls, value)


@dataclass(frozen=True)
class SetIdentity:
    """What a set is, and what it descends from."""

    stage: str
    version: int
    """Version of the stage that made it."""
    key: str
    name: str
    kind: ManifestKind
    payload: Json
    """What was hashed into `key`."""
    teacher: Json | None = None
    """Identity of the teacher the set descends from."""
    tokenizer: Json | None = None
    meta: Json = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Manifest(SetIdentity):
    """A committed set."""

    parts: tuple[Part, ...] = ()
    files: tuple[File, ...] = ()
    format: int = MANIFEST_FORMAT

    @property
    def totals(self) -> Totals:
        """Sums over parts and files."""
        return Totals(
            parts=len(self.parts),
            sequences=sum(part.sequences for part in self.parts),
            tokens=sum(part.tokens for part in self.parts),
            entries=sum(part.entries for part in self.parts),
            bytes=sum(item.bytes for item in (*self.parts, *self.files)),
        )

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON: what this set *is*, byte for byte."""
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> "Manifest":
        """The inverse of `to_json`; unknown fields are ignored.

        Raises:
            ValueError: a size or a path that no set has.
            KeyError, TypeError, AttributeError: not the shape of a manifest.
        """
        parts = tuple(
            build(Part, part | {"row_groups": row_groups_from_json(part["row_groups"])})
            for part in value["parts"]
        )
        files = tuple(build(File, item) for item in value["files"])
        return build(cls, {**value, "parts": parts, "files": files})


def build(cls: type[T], value: Json) -> T:
    """A dataclass from a mapping that may hold more than its fields."""
    known = {item.name for item in fields(cast(Any, cls))}
    return cls(**{name: item for name, item in value.items() if name in known})


def row_groups_from_json(value: Iterable[Json]) -> tuple[RowGroup, ...]:
    """Row groups as stored in footers and manifests.

    Raises:
        ValueError: sizes that no row group has.
    """
    return tuple(build(RowGroup, group) for group in value)


def canonical(value: object) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_manifest(directory: Place) -> Manifest:
    """The manifest of the set in `directory`.

    Raises:
        DataError: there is none, it cannot be read, or its format is newer than this program.
    """
    path = directory / FILE_NAME
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{directory}: no {FILE_NAME}, so this is not a committed set. Finish it by running "
            "its stage again, or give another directory."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(_unreadable(path, error)) from error
    check_format(path, value, MANIFEST_FORMAT)
    try:
        expected = value.pop(DIGEST, None)
        # A manifest of format 1 may be older than digests; it has known fields only.
        known = {field.name for field in fields(Manifest)}
        if expected is None and (value["format"] > 1 or not set(value) <= known):
            raise ValueError(f"no {DIGEST}")
        if expected is not None and (found := _digest(value)) != expected:
            raise ValueError(f"its {DIGEST} is {found}, not {expected}")
        return Manifest.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(_unreadable(path, error)) from error


def _digest(value: Json) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def check_format(path: Place, value: object, newest: int) -> None:
    """Refuse a document written by a later version of this program.

    Raises:
        DataError: `value["format"]` is missing or above `newest`.
    """
    found = cast(Json, value).get("format") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise DataError(_unreadable(path, "no format number"))
    if found > newest:
        raise DataError(
            f"{path}: written in format {found}, but this version of afterglow reads up to format "
            f"{newest}. Upgrade afterglow to read it."
        )


def _unreadable(path: Place, error: object) -> str:
    return (
        f"{path}: damaged or not written by afterglow ({error}). Restore it from a copy, or delete "
        "it and run the stage again; finished parts are found and kept."
    )


def write_manifest(directory: Place, manifest: Manifest) -> Manifest:
    """Commit a set: the last write into its directory.

    A manifest that is there already is left alone: a set never changes. Of two racing writers the
    first one wins and both get its manifest.

    Returns:
        The manifest that the directory now has.

    Raises:
        DataError: the directory holds a committed set of another key.
        RetryError: writing failed.
    """
    if create_once(directory / FILE_NAME, to_text(manifest).encode()):
        return manifest
    existing = read_manifest(directory)
    if existing.key != manifest.key:
        raise DataError(
            f"{directory}: already holds set {existing.key[:12]}, not {manifest.key[:12]}. "
            "Use another directory; a committed set is never overwritten."
        )
    return existing


def to_text(manifest: Manifest) -> str:
    """A manifest as it is stored, with its digest."""
    value = json.loads(canonical(manifest.to_json()))  # as a reader will see it
    text = json.dumps(value | {DIGEST: _digest(value)}, indent=1, sort_keys=True)
    return text + "\n"


def build_manifest(
    directory: Place,
    identity: SetIdentity,
    parts: Iterable[Part] = (),
    files: Iterable[str | Place] = (),
) -> Manifest:
    """A manifest, not yet written; `files` are hashed.

    Args:
        directory: Directory of the set.
        identity: Which set it is.
        parts: Its parts, in the order of their index.
        files: Paths in `directory`, relative to it or absolute.

    Raises:
        RetryError: a file vanished.
    """
    hashed: list[File] = []
    for item in files:
        path = directory / item if isinstance(item, str) else item
        name = str(path).removeprefix(f"{directory}/")
        try:
            hashed.append(File(name, size_of(path), sha256_file(path)))
        except FileNotFoundError as error:
            raise RetryError(f"{path}: vanished before the set was committed; run again") from error
    hashed.sort(key=lambda file: file.path)
    return Manifest(**vars(identity), parts=tuple(parts), files=tuple(hashed))
