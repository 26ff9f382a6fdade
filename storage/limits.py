"""Limits of a manifest and a footer, checked before anything is allocated or opened by them.

A file may contain any number. The limits are far above every real set, and
low enough that a reader that trusts them allocates no more than a row group may take.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

MOST_ROWS = 1 << 16
"""Sequences in a row group; this package writes 32."""
MOST_VALUES = (1 << 31) - 1
"""Tokens or entries in a row group: Parquet libraries count the values of a list column so."""
MOST_RANKED = 1 << 24
"""Vocabulary of a packed set, whose reader holds tables of that length."""

_PART = re.compile(r"part-\d{5,9}-[0-9a-f]{16}\.parquet")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("tokens", "prompt_tokens", "entries", "max_tokens")


def check_row_group(group: Mapping[str, Any]) -> None:
    """Refuse sizes no row group has.

    Raises:
        ValueError: naming the field and its value.
    """
    _count(group, "rows", MOST_ROWS)
    for name in _COUNTS:
        _count(group, name, MOST_VALUES)
    _count(group, "crc32", (1 << 32) - 1)
    if group["max_tokens"] > group["tokens"] + group["prompt_tokens"]:
        raise ValueError(f"max_tokens is {group['max_tokens']}, more than all tokens together")


def check_part(part: Mapping[str, Any]) -> None:
    """Refuse a part under a name that is none of a part, or whose sums are not those of its groups.

    Raises:
        ValueError: naming the field and its value.
    """
    if not _PART.fullmatch(_text(part, "file")):
        raise ValueError(f"{part['file']!r} is not the name of a part")
    _digest(part)
    _count(part, "index", 10**9)
    _count(part, "bytes", 1 << 62)
    _text(part, "split")
    groups = part["row_groups"]
    for group in groups:
        check_row_group(group)
    for name, summed in (("sequences", "rows"), ("tokens", "tokens"), ("entries", "entries")):
        total = sum(group[summed] for group in groups)
        if _count(part, name, 1 << 62) != total:
            raise ValueError(f"{part['file']}: {name} is {part[name]}, its row groups say {total}")


def check_file(file: Mapping[str, Any]) -> None:
    """Refuse a file that would lie outside the directory of its set.

    Raises:
        ValueError: naming the path.
    """
    path = _text(file, "path")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or set("\\\0") & set(path):
        raise ValueError(f"{path!r} does not stay inside the directory of the set")
    if path in (".", "manifest.json"):
        raise ValueError(f"{path!r} cannot be a file of a set")
    _digest(file)
    _count(file, "bytes", 1 << 62)


def _count(fields: Mapping[str, Any], name: str, most: int) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}; it must be a whole number from 0 to {most}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if type(value) is not str:
        raise ValueError(f"{name} is {_shown(value)}; it must be text")
    return value


def _digest(fields: Mapping[str, Any]) -> None:
    if not _DIGEST.fullmatch(_text(fields, "sha256")):
        raise ValueError(f"sha256 is {_shown(fields['sha256'])}; it must be 64 hexadecimal digits")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
