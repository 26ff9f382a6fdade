"""The packed layout: the same rows as in the open one, and nothing read outside the streams."""

import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.check import check_meta
from storage.codec import stored
from storage.errors import DataError
from storage.manifest import RANKS, SetMeta, read_manifest, write_manifest
from storage.packed.codec import Code, code_of, pack, unpack
from storage.packed.frequencies import read_ranks, write_ranks
from storage.rows import Rows
from storage.schema import BLOBS, BUCKET_STREAMS, Blobs, blob_names
from storage.sets import verify_set
from storage.shard import PartFile, PartWriter, find_part, read_rows, verify_part
from storage.stream import Stream
from tests.storage.make import (
    PACKABLE,
    commit,
    meta_of,
    packed,
    random_rows,
    rows_strategy,
    same_rows,
)

ROUND_TRIP = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOLDEN = Path(__file__).parents[2] / "golden"


def _write(directory: Path, rows: Rows, meta: SetMeta) -> Path:
    with PartWriter(directory, 0, meta) as writer:
        writer.write(rows)
    return directory / writer.part.file


def _code(meta: SetMeta, seed: int = 0) -> Code:
    order = np.random.default_rng(seed).permutation(meta.vocab_size)
    return code_of(order.astype(np.uint32))


@pytest.mark.parametrize("kind", PACKABLE)
@given(data=st.data())
@ROUND_TRIP
def test_the_same_rows_under_any_order_of_ids(kind: str, data: st.DataObject) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    rows, code = stored(rows), _code(meta, data.draw(st.integers(0, 9)))
    stays, blobs = pack(rows, meta, code)
    assert tuple(blobs) == blob_names(meta.record_params)
    assert not set(stays.columns) & {"ids", "cnt", "hlp", "tlp"}
    assert same_rows(unpack(stays, blobs, meta, code), rows)


@pytest.mark.parametrize("kind", PACKABLE)
@given(data=st.data())
@ROUND_TRIP
def test_parts_of_both_layouts_hold_the_same(
    kind: str, tmp_path: Path, data: st.DataObject
) -> None:
    rows, meta = data.draw(rows_strategy(kind))
    small, large = (Path(tempfile.mkdtemp(dir=tmp_path)) for _ in range(2))
    path = _write(small, rows, packed(meta, small, rows))
    assert same_rows(Rows.concat(list(read_rows(path))), stored(rows))
    _write(large, rows, meta)
    one, other = find_part(small, 0), find_part(large, 0)
    assert one is not None
    assert other is not None
    assert verify_part(small, one) == []
    assert one.row_groups == other.row_groups, "checksums are over what is read"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("counts", {"draws": 1}),
        ("counts", {"draws": 2}),
        ("counts", {"draws": 255}),
        ("counts_copies", {"draws": 60, "copies": 16, "logp": False}),
        ("top_k", {"k": 1}),
        ("top_k", {"k": 200}),
        ("head_tail_copies", {"copies": 16}),
    ],
)
@pytest.mark.parametrize("vocab_size", [1, 15, 16, 1 << 20])
def test_parameters_at_their_limits(
    kind: str, change: dict[str, Any], vocab_size: int, tmp_path: Path
) -> None:
    meta = meta_of(kind, vocab_size=vocab_size, **change)
    rows = random_rows(meta, 33, longest=3)
    path = _write(tmp_path, rows, packed(meta, tmp_path, rows))
    assert same_rows(Rows.concat(list(read_rows(path))), stored(rows))


def test_sequences_without_positions(tmp_path: Path) -> None:
    for kind in PACKABLE:
        meta = meta_of(kind)
        rows = random_rows(meta, 3).take([0, 1])
        bare = {name: [] for name in rows.columns if name not in ("prompt",)}
        row = {"seq_id": [5], "prompt_id": [0], "sample": [0], "finish": [1], "outcome": [-1]}
        empty = Rows.from_columns(
            bare | row | {"prompt": [3]}, {"prompt": [0, 1], "position": [0, 0]}
        )
        both = Rows.concat([rows, empty, rows])
        directory = tmp_path / kind
        path = _write(directory, both, packed(meta, directory, both))
        assert same_rows(next(read_rows(path)), stored(both))


# ---------------------------------------------------------------------------------------------
# A second decoder, straight from FORMAT.md


class _Bytes:
    """One value of every column of bytes, used up from the front."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.left = {name: list(row[name]) for name in row if name in BLOBS}
        self.bits = int.from_bytes(bytes(self.left.pop("raw")), "little")

    def take(self, stream: str) -> int:
        return self.left[stream].pop(0)

    def take_bits(self, count: int) -> int:
        value = self.bits % (1 << count)
        self.bits >>= count
        return value


def _bucket_begins(vocab_size: int) -> list[int]:
    begins, number = [], 0
    while number < vocab_size:
        begins.append(number)
        number += 2 ** _extra(number)
    return begins


def _extra(begin: int) -> int:
    return max(0, int(np.floor(np.log2(begin + 1))) - 3)


def _counts_of_a_draw(data: _Bytes, draws: int) -> Iterator[int]:
    left = before = draws
    while left:
        most = min(left, before)
        stream = "cs0" if most < 4 else "cs1" if most < 16 else "cs2"
        before = 1 if left == 1 or before == 1 else data.take(stream)
        left -= before
        yield before


def _ids_of_a_run(data: _Bytes, count: int, by_rank: list[int], begins: list[int]) -> list[int]:
    ids: list[int] = []
    rank, largest = -1, 0
    for k in range(count):
        q = largest + (len(begins) - largest) // (count - k + 1)
        later = f"bk{2 + sum(q >= edge for edge in (31, 55, 79, 103))}"
        bucket = data.take(later if k else "bk1" if count > 1 else "bk0")
        rank += 1 + begins[bucket] + data.take_bits(_extra(begins[bucket]))
        largest = max(largest, bucket)
        ids.append(by_rank[rank])
    return sorted(ids)


def _by_rank(content: bytes, vocab_size: int) -> list[int]:
    seen = np.frombuffer(content, "<u4").tolist()
    return seen + sorted(set(range(vocab_size)) - set(seen))


def _decoded(row: dict[str, Any], record: Any, by_rank: list[int]) -> dict[str, list[Any]]:
    """What the columns of bytes of a sequence stand for."""
    data, begins = _Bytes(row), _bucket_begins(len(by_rank))
    copies = record.get("copies", 1) if record["kind"] != "top_k" else 1
    out: dict[str, list[Any]] = {"ids": []}
    runs: list[int] = []
    if record["kind"] == "counts":
        made = [list(_counts_of_a_draw(data, record["draws"])) for _ in row["tok"] * copies]
        out |= {"nu": [len(draw) for draw in made], "cnt": list(itertools.chain(*made))}
        runs = [len(list(same)) for draw in made for _, same in itertools.groupby(draw)]
    else:
        for position, nh in enumerate(row["nh"]):
            nu = row["nu"][position * copies : (position + 1) * copies]
            runs += [1] * nh + [each - nh for each in nu if each > nh]
    for count in runs:
        out["ids"] += _ids_of_a_run(data, count, by_rank, begins)
    for name in ("hlp", "tlp"):
        if f"{name}_lo" in data.left:
            low, high = data.left.pop(f"{name}_lo"), data.left.pop(f"{name}_hi")
            pairs = bytes(itertools.chain(*zip(low, high, strict=True)))
            out[name] = np.frombuffer(pairs, np.float16).tolist()
    assert not any(data.left.values())
    assert data.bits == 0
    return out


@pytest.mark.parametrize("kind", PACKABLE)
def test_the_specification_is_enough_to_read_it(kind: str, tmp_path: Path) -> None:
    meta = meta_of(kind, vocab_size=5000, draws=100)
    rows = random_rows(meta, 12)
    path = _write(tmp_path, rows, packed(meta, tmp_path, rows))
    by_rank = _by_rank((tmp_path / RANKS).read_bytes(), 5000)
    expected = stored(rows)
    for index, row in enumerate(pq.read_table(path).to_pylist()):
        one = expected.sequence(index)
        found = _decoded(row, meta.record_params, by_rank)
        assert found == {name: one[name].tolist() for name in found}


@pytest.mark.parametrize("directory", sorted(GOLDEN.glob("v*/*-packed")), ids=lambda p: p.name)
def test_golden_files_are_as_specified(directory: Path) -> None:
    (part,) = read_manifest(directory).parts
    path = directory / part.file
    with PartFile(path) as file:
        meta = file.meta
        expected = Rows.concat([file.read(group) for group in range(len(file.row_groups))])
    by_rank = _by_rank((directory / RANKS).read_bytes(), meta.vocab_size)
    for index, row in enumerate(pq.read_table(path).to_pylist()):
        one = expected.sequence(index)
        found = _decoded(row, meta.record_params, by_rank)
        assert found == {name: one[name].tolist() for name in found}


# ---------------------------------------------------------------------------------------------
# Refusals and damage


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("counts", {"ids": [7, 5], "cnt": [4, 4]}, r"'ids'\[1\]: ids must ascend"),
        ("counts", {"ids": [5, 7], "cnt": [2, 6]}, r"'cnt'\[1\]: counts must be in descending"),
        (
            "head_tail",
            {"ids": [7, 5], "nh": [0], "rest": [1.0], "hlp": []},
            r"'ids'\[1\]: ids must",
        ),
    ],
)
def test_another_order_cannot_be_packed(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    meta = meta_of(kind)
    row = {"seq_id": 41, "prompt_id": 0, "sample": 0, "finish": 0, "outcome": 0, "prompt": []}
    row |= {"tok": [1], "lp": [-1.0], "ent": [1.0], "nu": [2], **change}
    rows = Rows.from_sequences([row])
    _write(tmp_path / "open", rows, meta)
    with pytest.raises(DataError, match=rf"seq_id 41, column {message}"):
        _write(tmp_path, rows, packed(meta, tmp_path, rows))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [RANKS]


@pytest.mark.parametrize("kind", PACKABLE)
@given(data=st.data())
@ROUND_TRIP
def test_damaged_streams_are_refused_or_decoded_within_bounds(
    kind: str, data: st.DataObject
) -> None:
    """Bytes changed, moved to the next sequence, lost or put in; also ones that make no sense."""
    meta = meta_of(kind, vocab_size=data.draw(st.sampled_from([1, 20, 300, 1 << 17])))
    rows, code = stored(random_rows(meta, 4)), _code(meta)
    stays, blobs = pack(rows, meta, code)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    bad: Blobs = {}
    for name, (values, offsets) in blobs.items():
        values, offsets = values.copy(), offsets.copy()
        if len(values) and rng.random() < 0.3:
            values[rng.integers(len(values))] = rng.integers(256)
        if rng.random() < 0.2:
            offsets[1:-1] = np.sort(rng.integers(0, len(values) + 1, len(offsets) - 2))
        if rng.random() < 0.1:
            values = np.concatenate([values, rng.integers(0, 256, 4).astype(np.uint8)])
            offsets[-1] += 4
        if rng.random() < 0.1:
            offsets = np.minimum(offsets, max(0, len(values) - 4))
            values = values[: offsets[-1]]
        bad[name] = values, offsets
    try:
        found = unpack(stays, bad, meta, code)
    except DataError:
        return
    assert len(found["ids"]) == int(found.offsets["entry"][-1])
    assert (found["ids"] < meta.vocab_size).all()


@pytest.mark.parametrize("name", BUCKET_STREAMS)
def test_one_byte_more_or_less_is_refused(name: str) -> None:
    meta = meta_of("counts", vocab_size=1 << 17, draws=200)
    rows, code = stored(random_rows(meta, 6)), _code(meta)
    stays, blobs = pack(rows, meta, code)
    values, offsets = blobs[name]
    assert len(values), "no entry in this stream"
    shorter = {**blobs, name: (values[:-1], np.minimum(offsets, len(values) - 1))}
    longer = {
        **blobs,
        name: (np.append(values, values[-1]), np.append(offsets[:-1], len(values) + 1)),
    }
    for bad in (shorter, longer):
        with pytest.raises(DataError, match="do not add up"):
            unpack(stays, bad, meta, code)


@pytest.mark.parametrize("kind", ["counts", "head_tail_copies"])
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, kind: str) -> None:
    meta = meta_of(kind)
    rows = random_rows(meta, 40)
    meta = packed(meta, tmp_path, rows)
    path = _write(tmp_path, rows, meta)
    whole, expected = path.read_bytes(), list(read_rows(path))
    refused = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 300):
        damaged = bytearray(whole)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(damaged)
        try:
            with PartFile(path) as file:
                found = [file.read(group) for group in range(len(file.row_groups))]
        except DataError:
            refused += 1
            continue
        assert file.meta == meta, f"bit {bit}"
        assert all(same_rows(a, b) for a, b in zip(found, expected, strict=True)), f"bit {bit}"
    assert refused > 150


def test_a_selection_of_columns(tmp_path: Path) -> None:
    meta = meta_of("head_tail_copies")
    rows = random_rows(meta, 40)
    path = _write(tmp_path, rows, packed(meta, tmp_path, rows))
    with PartFile(path) as file:
        for names in (["outcome"], ["tok", "lp"], ["nu", "ids"], ["hlp"], ["seq_id", "tlp"]):
            found = file.read(0, names)
            assert list(found.columns) == names
            expected = stored(rows).slice(0, 32)
            assert all(found[name].tobytes() == expected[name].tobytes() for name in names)
            assert all(
                np.array_equal(found.offsets[level], expected.offsets[level])
                for level in found.offsets
            )


def test_streams_of_both_layouts_are_the_same(tmp_path: Path) -> None:
    meta = meta_of("counts_copies")
    rows = random_rows(meta, 50)
    batches: list[list[bytes]] = []
    for name, own in (("open", meta), ("packed", packed(meta, tmp_path / "packed", rows))):
        _write(tmp_path / name, rows, own)
        write_manifest(tmp_path / name, commit(tmp_path / name, own, 1))
        with Stream(tmp_path / name, seed=1, batch_size=20) as stream:
            taken = itertools.islice(stream, 6)
            batches.append([b.ids.tobytes() + b.weight.tobytes() + b.logp.tobytes() for b in taken])
    assert batches[0] == batches[1]


def test_other_programs_can_open_it(tmp_path: Path) -> None:
    meta = meta_of("head_tail_copies")
    rows = random_rows(meta, 40)
    path = _write(tmp_path, rows, packed(meta, tmp_path, rows))
    frame = pl.read_parquet(path)
    assert frame["tok"].explode(empty_as_null=False).to_numpy().tolist() == rows["tok"].tolist()
    assert frame["bk0"].dtype == pl.Binary
    found = duckdb.connect().execute("select seq_id, raw from read_parquet(?)", [str(path)])
    assert [row[0] for row in found.fetchall()] == list(range(40))


# ---------------------------------------------------------------------------------------------
# Ranks


def test_ranks_are_by_frequency_then_by_id(tmp_path: Path) -> None:
    digest = write_ranks(tmp_path, lambda: np.array([0, 3, 9, 3, 0, 1]))
    assert np.fromfile(tmp_path / RANKS, "<u4").tolist() == [2, 1, 3, 5]
    assert read_ranks(tmp_path, digest, 8).tolist() == [2, 1, 3, 5, 0, 4, 6, 7]
    assert digest == hashlib.sha256((tmp_path / RANKS).read_bytes()).hexdigest()


def test_ranks_are_written_once(tmp_path: Path) -> None:
    first = write_ranks(tmp_path, lambda: np.array([1, 2, 3]))
    assert write_ranks(tmp_path, pytest.fail) == first
    assert read_ranks(tmp_path, first, 3).tolist() == [2, 1, 0]


def test_ranks_that_are_missing_or_others_are_refused(tmp_path: Path) -> None:
    meta = meta_of("counts")
    rows = random_rows(meta, 3)
    meta = packed(meta, tmp_path, rows)
    path = _write(tmp_path, rows, meta)
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / path.name)
    with pytest.raises(DataError, match=r"moved/ranks\.u32: missing, and packed records cannot"):
        next(read_rows(tmp_path / "moved" / path.name))
    (tmp_path / "moved" / RANKS).write_bytes(b"\1\0\0\0")
    with pytest.raises(DataError, match=r"ranks\.u32: its sha256 is .*, but the set was written"):
        next(read_rows(tmp_path / "moved" / path.name))
    for content in (b"\1\0\0\0" * 2, b"\1\0\0", (1 << 20).to_bytes(4, "little")):
        (tmp_path / "moved" / RANKS).write_bytes(content)
        with pytest.raises(DataError, match="not a list of different ids below 1048576"):
            read_ranks(tmp_path / "moved", hashlib.sha256(content).hexdigest(), 1 << 20)


def test_the_manifest_lists_the_ranks(tmp_path: Path) -> None:
    meta = meta_of("head_tail")
    rows = random_rows(meta, 3)
    meta = packed(meta, tmp_path, rows)
    _write(tmp_path, rows, meta)
    manifest = write_manifest(tmp_path, commit(tmp_path, meta, 1))
    assert [file.path for file in manifest.files] == [RANKS]
    assert manifest.files[0].sha256 == meta.ranks
    assert verify_set(tmp_path) == []
    (tmp_path / RANKS).write_bytes(b"")
    assert any("ranks.u32: sha256 is" in line for line in verify_set(tmp_path))


def test_empty_parts(tmp_path: Path) -> None:
    meta = meta_of("counts_copies")
    meta = packed(meta, tmp_path, random_rows(meta, 1))
    with PartWriter(tmp_path, 0, meta) as writer:
        pass
    path = tmp_path / writer.part.file
    assert list(read_rows(path)) == []
    assert set(blob_names(meta.record_params)) < set(pq.read_schema(path).names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "boxed", "ranks": None}, "layout 'boxed' is unknown"),
        ({"layout": "packed", "ranks": None}, "ranks are given exactly when"),
        ({"layout": "open"}, "ranks are given exactly when"),
        ({"record": {"kind": "sampled"}}, "layout is packed, but sampled have no entries"),
        ({"kind": "sequences", "record": None}, "layout is packed, but sequences have no entries"),
    ],
)
def test_wrong_descriptions_are_refused(change: dict[str, Any], message: str) -> None:
    meta = replace(meta_of("counts"), layout="packed", ranks="0" * 64)
    check_meta(meta)
    with pytest.raises(DataError, match=message):
        check_meta(replace(meta, **change))


@pytest.mark.parametrize(
    ("kind", "share"), [("counts", 0.75), ("head_tail", 0.85), ("top_k", 0.88)]
)
def test_packing_pays(kind: str, share: float, tmp_path: Path) -> None:
    """Records over a large vocabulary whose ids are much unlike in frequency, as in text."""
    meta = meta_of(kind, vocab_size=1 << 17, draws=50, k=20)
    rows = random_rows(meta, 32, longest=200)
    small = packed(meta, tmp_path / "packed", rows)
    sizes = [
        _record_bytes(_write(tmp_path / own.layout, rows, own), "nu", "ids", "cnt", "hlp")
        for own in (meta, small)
    ]
    assert sizes[1] < share * sizes[0]


def _record_bytes(path: Path, *names: str) -> int:
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    wanted = {*names, *BLOBS}
    return sum(
        column.total_compressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] in wanted
    )
