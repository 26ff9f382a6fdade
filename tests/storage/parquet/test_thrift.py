"""Thrift structs: whatever the bytes are, nothing outside of them is read."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.parquet.thrift import fields, structs


@given(st.binary(min_size=1, max_size=60), st.integers(-1, 60))
def test_nothing_outside_the_bytes_is_read(code: bytes, start: int) -> None:
    """The same answer whatever lies behind the bytes."""
    answers: set[tuple[Any, ...]] = set()
    for behind in (0x00, 0x15, 0x7F, 0xFF):
        data = np.full(len(code) + 64, behind, np.uint8)
        data[: len(code)] = np.frombuffer(code, np.uint8)
        found, places = np.full(8, -1, np.int64), np.full(4, -1, np.int64)
        end = fields(data[: len(code)], start, found)
        count = structs(data[: len(code)], start, places)
        assert -1 <= end <= len(code)
        assert -1 <= count <= 4
        answers.add((end, *found.tolist(), count, *places.tolist()))
    assert len(answers) == 1


def test_nesting_without_end_is_refused() -> None:
    nested = np.full(1000, 0x19, np.uint8)  # a list of one list of one list of ...
    assert fields(nested, 0, np.zeros(4, np.int64)) == -1
    nested = np.full(1000, 0x1C, np.uint8)  # a struct in a struct in a struct ...
    assert fields(nested, 0, np.zeros(4, np.int64)) == -1
