"""Pages decoded directly: the same rows as Arrow's, or left to Arrow."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.parquet import pages, reader
from storage.parquet.kernels import byte_strings, join_bytes, zeros_among_levels
from storage.parquet.reader import from_arrow
from storage.parquet.thrift import fields, structs
from storage.rows import Rows
from storage.shard import FOOTER_KEY, PartFile, PartWriter
from tests.storage.make import KINDS, meta_of, packed, random_rows, rows_strategy, same_rows

WITH_ENTRIES = [kind for kind in KINDS if "ids" in random_rows(meta_of(kind), 1)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the columns that were decoded directly, one after the other."""
    done: list[str] = []
    read_chunk = pages.read_chunk

    def noted(chunk: pages.Chunk, decompress: pages.Decompress) -> Any:
        out = read_chunk(chunk, decompress)
        done.append(chunk.name)
        return out

    monkeypatch.setattr(pages, "read_chunk", noted)
    return done


def _by_arrow(path: Path, group: int) -> Rows:
    return from_arrow(pq.ParquetFile(path).read_row_group(group))[0]


@pytest.mark.parametrize("kind", WITH_ENTRIES)
@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_same_rows_as_arrow(
    kind: str, tmp_path: Path, used: list[str], data: st.DataObject
) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows)
    path = tmp_path / writer.part.file
    used.clear()
    with PartFile(path) as file:
        for group in range(len(file.row_groups)):
            assert same_rows(file.read(group), _by_arrow(path, group))
    assert used == [*rows.columns] * len(file.row_groups)
    path.unlink()


@pytest.mark.parametrize("kind", WITH_ENTRIES)
def test_columns_of_bytes_are_read_as_by_arrow(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = meta_of(kind)
    rows = random_rows(meta, 40)
    with PartWriter(tmp_path, 0, packed(meta, tmp_path, rows)) as writer:
        writer.write(rows)
    opened = reader.Reader(tmp_path / writer.part.file)
    direct = [opened.read(group, None) for group in range(2)]
    monkeypatch.setattr(pages, "read_blob", _unusual)
    for group, (stays, blobs) in enumerate(direct):
        plain, expected = opened.read(group, None)
        assert same_rows(stays, plain)
        assert list(blobs) == list(expected)
        for name, (data, offsets) in expected.items():
            assert blobs[name][0].tobytes() == data.tobytes()
            assert blobs[name][1].tolist() == offsets.tolist()


def _unusual(*_: object) -> None:
    raise pages.Unusual


def test_lists_that_run_over_many_pages(
    tmp_path: Path, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list may end in the middle of a page, and a page in the middle of a list."""
    writer = pq.ParquetWriter

    def small_pages(*args: Any, **options: Any) -> pq.ParquetWriter:
        return writer(*args, data_page_size=64, write_batch_size=7, **options)

    monkeypatch.setattr(pq, "ParquetWriter", small_pages)
    meta = meta_of("head_tail_copies")
    with PartWriter(tmp_path, 0, meta) as part:
        part.write(random_rows(meta, 40, longest=60))
    path = tmp_path / part.part.file
    with PartFile(path) as file:
        assert all(same_rows(file.read(group), _by_arrow(path, group)) for group in range(2))
    assert len(used) == 2 * len(pq.read_schema(path).names)


def test_plain_sequences_are_left_to_arrow(tmp_path: Path, used: list[str]) -> None:
    meta = meta_of("sequences")
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(random_rows(meta, 3))
    with PartFile(tmp_path / writer.part.file) as file:
        file.read(0)
    assert used == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
    ],
    ids=["defaults", "dictionaries", "no checksums", "newer pages", "uncompressed"],
)
def test_parts_that_were_copied_by_other_programs(
    tmp_path: Path, options: dict[str, Any], used: list[str]
) -> None:
    """The same table under other encodings is the same table."""
    meta = meta_of("counts")
    rows = random_rows(meta, 20)
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows)
    table = pq.read_table(tmp_path / writer.part.file)
    assert FOOTER_KEY in table.schema.metadata
    pq.write_table(table, tmp_path / "copy.parquet", **options)
    with PartFile(tmp_path / "copy.parquet") as file:
        assert same_rows(file.read(0), _by_arrow(tmp_path / writer.part.file, 0))
    assert len(used) < len(rows.columns)


def test_damaged_pages_are_never_decoded(tmp_path: Path) -> None:
    """Every byte of every page, header included, under every change of one bit of it."""
    meta = meta_of("head_tail_copies")
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(random_rows(meta, 2, longest=2))
    path = tmp_path / writer.part.file
    chunks = pq.ParquetFile(path).metadata.row_group(0)
    whole = path.read_bytes()
    undetected = 0
    for index in range(chunks.num_columns):
        place = chunks.column(index)
        name = place.path_in_schema.split(".")[0]
        start = place.data_page_offset
        data = whole[start : start + place.total_compressed_size]
        raw = np.frombuffer(data, np.uint8)
        good = pages.Chunk(name, raw, 2, place.num_values)
        expected, offsets = pages.read_chunk(good, reader.decompress)
        for bit in range(8 * len(data)):
            bad = raw.copy()
            bad[bit >> 3] ^= 1 << (bit & 7)
            chunk = pages.Chunk(name, bad, 2, place.num_values)
            try:
                values, found = pages.read_chunk(chunk, reader.decompress)
            except (pages.Unusual, *reader.DAMAGE):
                continue
            undetected += 1  # in statistics, or a header field that changes nothing
            assert values.tobytes() == expected.tobytes()
            assert (found is None) == (offsets is None)
            if found is not None and offsets is not None:
                assert found.tolist() == offsets.tolist()
        for cut in range(len(data)):
            with pytest.raises((pages.Unusual, *reader.DAMAGE)):
                pages.read_chunk(
                    pages.Chunk(name, raw[:cut], 2, place.num_values),
                    reader.decompress,
                )
    assert undetected < 8 * len(whole) // 10


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


def test_garbage_is_not_a_page() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 30, 100):
        data = np.frombuffer(rng.bytes(size), np.uint8)
        with pytest.raises((pages.Unusual, pa.ArrowException, OSError)):
            pages.read_chunk(pages.Chunk("ids", data, 3, 7), reader.decompress)


@given(st.binary(min_size=1, max_size=60), st.integers(-1, 60))
def test_thrift_never_looks_outside(code: bytes, start: int) -> None:
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


def test_thrift_lists_that_contain_themselves_too_often() -> None:
    nested = np.full(1000, 0x19, np.uint8)  # a list of one list of one list of ...
    assert fields(nested, 0, np.zeros(4, np.int64)) == -1
    nested = np.full(1000, 0x1C, np.uint8)  # a struct in a struct in a struct ...
    assert fields(nested, 0, np.zeros(4, np.int64)) == -1
