"""Loops over pages: right answers on valid input, and no access outside of any other."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.parquet.kernels import byte_strings, join_bytes, zeros_among_levels


def _runs(levels: list[tuple[int, int]], packed: list[bool]) -> tuple[bytes, list[int]]:
    """Levels in the RLE / bit-packing hybrid of the Parquet specification, run by run."""
    out, flat = bytearray(), []
    for (level, count), pack in zip(levels, packed, strict=True):
        count = 8 * count if pack else count
        value = (count // 8) << 1 | 1 if pack else count << 1
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
        out += (255 * level).to_bytes() * (count // 8) if pack else level.to_bytes()
        flat += [level] * count
    return bytes(out), flat


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 300), st.booleans()), max_size=8),
    st.data(),
)
def test_zeros_among_levels(runs: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    code, flat = _runs([run[:2] for run in runs], [run[2] for run in runs])
    count = data.draw(st.integers(0, len(flat)))
    zeros = [place for place, level in enumerate(flat[:count]) if level == 0]
    found = np.empty(len(zeros), np.int64)
    raw = np.frombuffer(code, np.uint8)
    assert zeros_among_levels(raw, count, found) == len(zeros)
    assert found.tolist() == zeros
    if zeros:
        assert zeros_among_levels(raw, count, found[:-1]) == -1
    assert zeros_among_levels(raw, len(flat) + 1, np.empty(len(flat) + 1, np.int64)) == -1


@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 200))
def test_zeros_among_garbage_stay_within_bounds(code: bytes, levels: int, room: int) -> None:
    guarded = np.full(room + 8, -7, np.int64)
    count = zeros_among_levels(np.frombuffer(code, np.uint8), levels, guarded[:room])
    assert count <= room
    assert (guarded[room:] == -7).all()
    assert (guarded[: max(count, 0)] < levels).all()


@given(st.lists(st.binary(max_size=20), max_size=8), st.data())
def test_byte_strings(strings: list[bytes], data: st.DataObject) -> None:
    code = b"".join(len(each).to_bytes(4, "little") + each for each in strings)
    raw, joined = np.frombuffer(code, np.uint8), b"".join(strings)
    lengths, out = np.empty(len(strings), np.int64), np.empty(len(joined), np.uint8)
    assert byte_strings(raw, lengths, out) == len(joined)
    assert (out.tobytes(), lengths.tolist()) == (joined, [len(each) for each in strings])
    cut = data.draw(st.integers(0, max(0, len(code) - 1)))
    if code:
        assert byte_strings(raw[:cut], lengths, out) == -1
        assert byte_strings(np.append(raw, 0).astype(np.uint8), lengths, out) == -1
    if joined:
        assert byte_strings(raw, lengths, out[:-1]) == -1


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_joining_bytes(values: list[int]) -> None:
    whole = np.array(values, np.uint32)
    planes = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, 4).T).reshape(-1)
    out = np.empty(len(values), np.uint32)
    join_bytes(planes, out)
    assert out.tolist() == values
