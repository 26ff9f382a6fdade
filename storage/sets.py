"""Whole sets of parts: committing one, checking everything it lists, and what a position weighs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from storage.errors import DataError, RetryError
from storage.files.place import Place
from storage.files.write import sha256_file
from storage.manifest import RANKS, Manifest, Part, SetIdentity, build_manifest, read_manifest
from storage.parquet.reader import column_bytes
from storage.schema import FINISH, OUTCOME, column_names
from storage.shard import PartFile, find_part, read_meta, verify_part


def commit_parts(
    directory: Place, identity: SetIdentity, count: int, files: Iterable[str | Place] = ()
) -> Manifest:
    """The manifest of a sharded set, not yet written: one verified part for each index.

    Args:
        directory: Where the parts are.
        identity: Which set it is.
        count: Number of parts planned; their indices are 0 to `count` - 1.
        files: Other files of the set; `ranks.u32` of packed parts is added by itself.

    Raises:
        RetryError: parts are missing or damaged; the message names their indices.
        DataError: a part belongs to another set.
    """
    found = [find_part(directory, index) for index in range(count)]
    missing = [str(index) for index, part in enumerate(found) if part is None]
    if missing:
        shown = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise RetryError(
            f"{directory}: parts {shown} of {count} are missing or damaged "
            f"({len(missing)} in all); run the stage again, finished parts are kept"
        )
    parts = [part for part in found if part is not None]
    packed = False
    for part in parts:
        meta = read_meta(directory / part.file)
        packed |= meta.layout == "packed"
        if meta.key != identity.key:
            raise DataError(
                f"{directory / part.file}: belongs to set {meta.key[:12]}, not "
                f"{identity.key[:12]}. Move it away and run the stage again."
            )
    return build_manifest(directory, identity, parts, [*files, RANKS] if packed else files)


def outcome_counts(directory: Place, parts: Iterable[Part]) -> dict[str, int]:
    """How many sequences of a set have each outcome; empty where none was judged.

    Raises:
        DataError: a part is damaged.
    """
    counted = _counts(directory, parts, "outcome", OUTCOME)
    known = sum(counted.values()) > counted["unknown"]
    return {name: count for name, count in counted.items() if count} if known else {}


def finish_counts(directory: Place, parts: Iterable[Part]) -> dict[str, int]:
    """How many responses of a set ended by a `stop` and how many at their greatest `length`.

    Raises:
        DataError: a part is damaged.
    """
    return _counts(directory, parts, "finish", FINISH)


def _counts(
    directory: Place, parts: Iterable[Part], column: str, codes: Mapping[str, int]
) -> dict[str, int]:
    """Sequences by the name of their code in a column."""
    counted = dict.fromkeys(codes, 0)
    for part in parts:
        with PartFile(directory / part.file, part.bytes) as file:
            for group in range(len(part.row_groups)):
                found = file.read(group, [column])[column]
                for name, code in codes.items():
                    counted[name] += int((found == code).sum())
    return counted


def verify_set(directory: Place, read: Callable[[float], object] = lambda _: None) -> list[str]:
    """Everything wrong with a set: every part and file is hashed again, every row group decoded.

    Args:
        directory: Of the set.
        read: Called with the bytes of each part or file that was read.

    Returns:
        One line per problem; empty for a sound set.
    """
    try:
        manifest = read_manifest(directory)
    except DataError as error:
        return [str(error)]
    problems: list[str] = []
    for part in manifest.parts:
        problems += verify_part(directory, part)
        read(part.bytes)
    for file in manifest.files:
        path = directory / file.path
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif (digest := sha256_file(path)) != file.sha256:
            problems.append(f"{path}: sha256 is {digest}, not {file.sha256}")
        read(file.bytes)
    return problems


@dataclass(frozen=True)
class PositionBytes:
    """Mean bytes of one position (response token) on disk, compressed."""

    part: float
    """Of everything in the parts: tokens, prompts, records and footers."""
    record: float
    """Of the columns that make the record: what the set holds beyond one that keeps log p of the
    realised token and the teacher's entropy alone."""


def position_bytes(directory: Place) -> PositionBytes:
    """What a position of a committed record set takes up.

    Raises:
        DataError: not a committed set of records, or one without positions.
    """
    manifest = read_manifest(directory)
    positions = manifest.totals.tokens
    if manifest.meta.get("record") is None or not positions:
        raise DataError(f"{directory}: holds no records to weigh")
    beside = column_names("records", {"kind": "sampled"}, 0, reference=True)
    record = sum(
        size
        for part in manifest.parts
        for name, size in column_bytes(directory / part.file).items()
        if name not in beside
    )
    return PositionBytes(sum(part.bytes for part in manifest.parts) / positions, record / positions)
