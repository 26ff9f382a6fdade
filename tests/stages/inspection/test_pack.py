"""What is packed comes out again, and no character of it means anything to HTML."""

import base64
import json
import re
import zlib
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.inspection.pack import pack

TYPES = {"u1": "u1", "i1": "i1", "u2": "<u2", "u4": "<u4", "f2": "<f2", "f4": "<f4", "f8": "<f8"}


def unpack(text: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As `assets/decode.js` does it."""
    raw = zlib.decompress(base64.b64decode(text))
    size = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + size])
    assert (4 + size) % 8 == 0
    columns = {
        name: np.frombuffer(raw, TYPES[one["type"]], one["length"], 4 + size + one["offset"])
        for name, one in header["columns"].items()
    }
    assert all(one["offset"] % 8 == 0 for one in header["columns"].values())  # typed arrays ask it
    return header["meta"], columns


@given(st.lists(st.integers(-(2**53), 2**53)), st.text())
def test_integers_come_back_whole_and_text_as_it_was(values: list[int], text: str) -> None:
    packed = pack({"t": text}, {"x": np.array(values, np.int64), "y": np.array([True])})
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", packed)
    meta, columns = unpack(packed)
    assert meta == {"t": text}
    assert columns["x"].astype(np.int64).tolist() == values
    assert columns["y"].tolist() == [1]


def test_floats_have_three_digits_and_stay_finite() -> None:
    values = np.array([0.1234, -17.06, 3e9, -1e30], np.float32)
    _, columns = unpack(pack({}, {"x": values, "exact": np.array([1e15 + 1])}))
    np.testing.assert_allclose(columns["x"][:2], values[:2], rtol=1e-3)
    assert columns["x"][2:].tolist() == [65504.0, -65504.0]
    assert columns["exact"].tolist() == [1e15 + 1]
