"""Identity: which values decide what a set means, and the key that follows from them.

The key of a set is the sha256 of canonical JSON over the stage, its version, the identity fields of
its config table, the seed, the keys of the sets it reads and the digests of what it reads from
outside. Four kinds of config fields:

* plain fields enter by value;
* fields marked `ByContent` (paths, model names) never enter; what they name does;
* fields marked `NotInKey` never enter, nor does the nested `run` table (workers, batch sizes,
  engine limits);
* fields without effect, given the others, do not enter (`Table.unused`).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import cast

from stages.table import ByContent, KeyDefault, KeyName, NotInKey, Table

Payload = dict[str, object]


def identity(table: Table) -> Payload:
    """The fields of `table` that decide what the output means, as plain JSON values."""
    out: Payload = {}
    unused = table.unused()
    for name, field in type(table).model_fields.items():
        if (
            name == "run"
            or name in unused
            or any(isinstance(mark, ByContent | NotInKey) for mark in field.metadata)
        ):
            continue
        value = getattr(table, name)
        if value is None:
            value = next((m.value for m in field.metadata if isinstance(m, KeyDefault)), None)
        key_name = next((mark.name for mark in field.metadata if isinstance(mark, KeyName)), name)
        out[key_name] = identity(value) if isinstance(value, Table) else canonical(value, name)
    return out


def canonical(value: object, where: str) -> object:
    """`value` as JSON values with one spelling each.

    Raises:
        TypeError: a value has no canonical form (its text could differ between processes).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value} has no canonical form; use a finite number")
        return value
    if isinstance(value, Table):
        return identity(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): canonical(below, f"{where}.{key}") for key, below in items}
    if isinstance(value, list | tuple):
        return [canonical(below, where) for below in cast("list[object]", value)]
    raise TypeError(
        f"{where}: a {type(value).__name__} has no canonical form; a key must be the same in every "
        "process, so use numbers, strings, lists and tables"
    )


def digest(payload: Mapping[str, object]) -> str:
    """Key of a set: 64 hexadecimal digits."""
    text = json.dumps(canonical(payload, "payload"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def difference(old: object, new: object, path: str = "") -> list[str]:
    """Lines `path: old -> new` for every leaf in which two payloads differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        a = cast("Mapping[str, object]", old)
        b = cast("Mapping[str, object]", new)
        lines: list[str] = []
        for key in sorted(set(a) | set(b)):
            lines += difference(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        return lines
    if old == new:
        return []
    return [f"{path}: {_short(cast(object, old))} -> {_short(new)}"]


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest
        return f'"{value[:12]}"'
    text = json.dumps(value, default=str)
    return text if len(text) < 60 else text[:57] + "..."
