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
from storage.parquet.reader import from_arrow
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


def test_garbage_is_not_a_page() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 30, 100):
        data = np.frombuffer(rng.bytes(size), np.uint8)
        with pytest.raises((pages.Unusual, pa.ArrowException, OSError)):
            pages.read_chunk(pages.Chunk("ids", data, 3, 7), reader.decompress)
