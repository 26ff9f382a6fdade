"""Columns as one compressed text inside a page, which `assets/decode.js` takes apart again.

    base64( zlib( length of the header, uint32 | header, JSON | columns, each at a multiple of 8 ) )

The alphabet of base64 has no character that means anything to HTML. Text of unknown origin is in
here and nowhere else, so it cannot end the element it is in.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from storage.schema import Array

_TYPES = {"f2": "<u2", "f4": "<f4", "f8": "<f8", "u1": "u1", "i1": "i1", "u2": "<u2", "u4": "<u4"}


def pack(meta: Mapping[str, Any], columns: Mapping[str, Array]) -> str:
    """The text of a page's data.

    Args:
        meta: JSON-ready; must be finite.
        columns: By name. float32 is kept as float16 (three digits, up to 65,504), integers in the
            smallest type that holds them, or as float64.
    """
    described: dict[str, Any] = {}
    body = bytearray()
    for name, values in columns.items():
        kind, raw = _small(np.asarray(values).reshape(-1))
        body += bytes(-len(body) % 8)
        described[name] = {"type": kind, "offset": len(body), "length": len(raw)}
        body += raw.astype(_TYPES[kind], copy=False).tobytes()
    header = json.dumps({"meta": meta, "columns": described}, allow_nan=False).encode()
    header += b" " * (-(len(header) + 4) % 8)
    start = len(header).to_bytes(4, "little")
    return base64.b64encode(zlib.compress(start + header + bytes(body), 6)).decode()


def _small(values: Array) -> tuple[str, Array]:
    if values.dtype == np.float64:
        return "f8", values
    if values.dtype.kind == "f":
        limit = float(np.finfo(np.float16).max)
        halves = np.clip(values, -limit, limit).astype(np.float16)
        return "f2", halves.view(np.uint16)
    if values.dtype == np.bool_:
        return "u1", values
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind, least, most in (
        ("u1", 0, 2**8),
        ("i1", -128, 128),
        ("u2", 0, 2**16),
        ("u4", 0, 2**32),
    ):
        if least <= low and high < most:
            return kind, values
    return "f8", values
