"""Parts: what is written is read back bit for bit, and damage never passes."""

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.codec import stored
from storage.errors import DataError
from storage.manifest import Part, SetMeta
from storage.rows import Rows
from storage.schema import COLUMNS
from storage.shard import (
    FOOTER_KEY,
    PartFile,
    PartWriter,
    find_part,
    read_meta,
    read_rows,
    verify_part,
)
from tests.storage.make import KINDS, meta_of, random_rows, rows_strategy, same_rows

ROUND_TRIP = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _write(directory: Path, rows: Rows, meta: SetMeta, index: int = 0) -> Path:
    with PartWriter(directory, index, meta) as writer:
        writer.write(rows)
    return directory / writer.part.file


def _found(directory: Path, index: int = 0) -> Part:
    part = find_part(directory, index)
    assert part is not None
    return part


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@ROUND_TRIP
def test_round_trip(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    path = _write(tmp_path, rows, meta)
    groups = list(read_rows(path))
    assert same_rows(Rows.concat(groups), stored(rows))
    assert [len(group) for group in groups[:-1]] == [32] * (len(groups) - 1)
    assert read_meta(path) == meta
    assert verify_part(tmp_path, _found(tmp_path)) == []
    path.unlink()


@given(cuts=st.lists(st.integers(0, 100), max_size=6))
@ROUND_TRIP
def test_the_file_does_not_depend_on_how_rows_were_handed_over(
    tmp_path: Path, cuts: list[int]
) -> None:
    meta = meta_of("head_tail")
    rows = random_rows(meta, 100)
    edges = [0, *sorted(cuts), 100]
    with PartWriter(tmp_path, 0, meta) as writer:
        for low, high in pairwise(edges):
            writer.write(rows.slice(low, high))
    assert tmp_path / writer.part.file == _write(tmp_path, rows, meta)


def test_log_probabilities_are_stored_with_fifteen_mantissa_bits(tmp_path: Path) -> None:
    meta = meta_of("head_tail")
    rows = random_rows(meta, 40)
    found = Rows.concat(list(read_rows(_write(tmp_path, rows, meta))))
    for name in ("ref_lp", "lp", "rest"):
        assert not (found[name].view(np.uint32) & 0xFF).any()
        np.testing.assert_allclose(found[name], rows[name], rtol=2.0**-16)
        assert (found[name] != rows[name]).any()
    for name in ("ent", "hlp", "ids"):
        assert found[name].tobytes() == rows[name].tobytes()


def test_the_caller_may_reuse_its_buffers(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    rows = random_rows(meta, 5)
    before = stored(rows)
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows)
        rows["tok"][:] = 0
    assert same_rows(next(read_rows(tmp_path / writer.part.file)), before)


def test_the_part_describes_itself(tmp_path: Path) -> None:
    meta = meta_of("head_tail")
    rows = random_rows(meta, 70)
    with PartWriter(tmp_path, 17, meta, split="holdout") as writer:
        writer.write(rows)
    part = writer.part
    assert part.file == f"part-00017-{part.sha256[:16]}.parquet"
    assert part.bytes == (tmp_path / part.file).stat().st_size
    assert (part.index, part.split, part.sequences) == (17, "holdout", 70)
    assert part.tokens == rows.tokens
    assert part.entries == len(rows["ids"])
    assert [group.rows for group in part.row_groups] == [32, 32, 6]
    assert sum(group.prompt_tokens for group in part.row_groups) == len(rows["prompt"])
    longest = rows.lengths("prompt") + rows.lengths("position")
    assert [g.max_tokens for g in part.row_groups] == [
        longest[:32].max(),
        longest[32:64].max(),
        longest[64:].max(),
    ]
    assert find_part(tmp_path, 17) == part


@pytest.mark.parametrize("kind", KINDS)
def test_encodings_are_those_of_the_specification(tmp_path: Path, kind: str) -> None:
    rows = random_rows(meta_of(kind), 40)
    metadata = pq.ParquetFile(_write(tmp_path, rows, meta_of(kind))).metadata
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            column = COLUMNS[chunk.path_in_schema.split(".")[0]]
            plain = column.level == "row" or column.dtype == np.float16
            assert set(chunk.encodings) == {"RLE", "PLAIN" if plain else "BYTE_STREAM_SPLIT"}
            assert chunk.compression == "ZSTD"
            assert chunk.is_stats_set == (column.level == "row")
            assert not chunk.has_dictionary_page
    schema = metadata.schema.to_arrow_schema()
    assert schema.names == list(rows.columns)
    assert not any(field.nullable for field in schema)
    assert not any(f.type.value_field.nullable for f in schema if pa.types.is_list(f.type))


def test_a_flipped_bit_in_a_page_is_caught_by_its_checksum(tmp_path: Path) -> None:
    path = _write(tmp_path, random_rows(meta_of("sampled"), 40), meta_of("sampled"))
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(6)
    assert chunk.path_in_schema == "tok.list.element"
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 4
    path.write_bytes(data)
    with PartFile(path) as file:
        file.read(0)
        with pytest.raises(DataError, match=r"part-00000-.*, row group 1: damaged .*CRC"):
            file.read(1)
        with pytest.raises(DataError, match=r"row group 1: damaged .*CRC.*afterglow verify"):
            file.read(1, ["tok"])
        assert file.read(1, ["seq_id"])["seq_id"].tolist() == list(range(32, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, kind: str) -> None:
    """Anywhere, footer and page headers included: refused, or nothing that is read differs."""
    meta = meta_of(kind)
    path = _write(tmp_path, random_rows(meta, 40), meta)
    whole, expected = path.read_bytes(), list(read_rows(path))
    rng = np.random.default_rng(KINDS.index(kind))
    refused = 0
    for bit in rng.integers(0, 8 * len(whole), 600):
        damaged = bytearray(whole)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(damaged)
        assert find_part(tmp_path, 0) is None
        try:
            with PartFile(path) as file:
                found = [file.read(group) for group in range(len(file.row_groups))]
        except DataError:
            refused += 1
            continue
        assert file.meta == meta, f"bit {bit}"
        assert all(same_rows(a, b) for a, b in zip(found, expected, strict=True)), f"bit {bit}"
    assert refused > 400  # the rest hit what nobody reads: statistics, sizes, the writer's name


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.9, -9, -1])
def test_a_truncated_part_is_refused(tmp_path: Path, kept: float) -> None:
    path = _write(tmp_path, random_rows(meta_of("counts"), 40), meta_of("counts"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"part-00000-\w+\.parquet, footer: damaged"):
        list(read_rows(path))
    assert find_part(tmp_path, 0) is None


def test_a_missing_part_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"part-x\.parquet: this part is missing"):
        list(read_rows(tmp_path / "part-x.parquet"))


def _with_footer(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write the part anew with another description, digest and all."""
    import hashlib

    table = pq.read_table(path)
    text = change(table.schema.metadata[FOOTER_KEY])
    metadata = {FOOTER_KEY: text, b"afterglow.sha256": hashlib.sha256(text).hexdigest().encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    path = _write(tmp_path, random_rows(meta_of("sampled"), 3), meta_of("sampled"))
    _with_footer(path, lambda text: text.replace(b'"format":1', b'"format":2'))
    with pytest.raises(DataError, match=r"written in format 2, .* up to format 1. Upgrade"):
        read_meta(path)


def test_values_that_were_swapped_behind_valid_pages_are_refused(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    path = _write(tmp_path, random_rows(meta, 3), meta)
    other = _write(tmp_path / "other", random_rows(meta, 3, seed=1), meta)
    footer = pq.read_schema(other).metadata[FOOTER_KEY]
    _with_footer(path, lambda _: footer)
    with pytest.raises(DataError, match=r"row group 0: damaged \(checksum of the values differs"):
        list(read_rows(path))


def test_a_missing_value_is_damage(tmp_path: Path) -> None:
    meta = meta_of("sequences")
    path = _write(tmp_path, random_rows(meta, 3), meta)
    table = pq.read_table(path)
    place = table.schema.get_field_index("outcome")
    metadata = pq.ParquetFile(path).metadata.metadata
    holed = table.set_column(place, "outcome", pa.array([1, None, 0], pa.int8()))
    pq.write_table(holed.replace_schema_metadata(metadata), path)
    with PartFile(path) as file, pytest.raises(DataError, match=r"group 0: damaged .*1 values are"):
        file.read(0)


def test_other_parquet_files_are_not_parts(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="not one written by afterglow"):
        read_meta(path)


def test_find_part_passes_over_damage_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    meta = meta_of("sampled")
    paths = [_write(tmp_path, random_rows(meta, 3, seed=seed), meta) for seed in range(2)]
    first, second = sorted(paths)
    assert _found(tmp_path).file == first.name
    first.write_bytes(first.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert _found(tmp_path).file == second.name
    assert f"{first}: damaged" in caplog.text
    assert find_part(tmp_path, 1) is None


def test_nothing_is_left_when_the_work_is_broken_off(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    writer = PartWriter(tmp_path, 0, meta)

    def fail() -> None:
        with writer:
            writer.write(random_rows(meta, 40))
            assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed without an error"):
        _ = writer.part


def test_a_part_may_be_empty(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0, meta_of("counts")) as writer:
        pass
    assert writer.part.sequences == 0
    assert list(read_rows(tmp_path / writer.part.file)) == []
    assert find_part(tmp_path, 0) == writer.part


def test_all_rows_of_a_part_have_the_same_columns(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    rows = random_rows(meta, 2)
    bare = Rows({n: v for n, v in rows.columns.items() if n != "ref_lp"}, rows.offsets)
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows)
        with pytest.raises(DataError, match="column 'ref_lp' is in some of the rows only"):
            writer.write(bare)


def test_a_selection_of_columns(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    rows = random_rows(meta, 40)
    path = _write(tmp_path, rows, meta)
    outcomes = [group["outcome"] for group in read_rows(path, ["outcome"])]
    assert np.concatenate(outcomes).tolist() == rows["outcome"].tolist()
    assert [len(group) for group in read_rows(path, ["outcome"])] == [32, 8]
    assert [group.tokens for group in read_rows(path, ["tok"])] == [
        rows.slice(0, 32).tokens,
        rows.slice(32, 40).tokens,
    ]
