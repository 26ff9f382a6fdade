"""Files made to mislead: absurd sizes, paths that lead away, columns that are not there."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.codec import stored
from storage.errors import DataError
from storage.manifest import DIGEST, FILE_NAME, canonical, read_manifest
from storage.packed import codec, kernels
from storage.shard import FOOTER_DIGEST_KEY, FOOTER_KEY, PartWriter, read_rows
from tests.storage.make import PACKABLE, meta_of, random_rows, same_rows, write_set

ROOT = Path(__file__).parents[2]
META = meta_of("head_tail")


def _part(value: dict[str, Any]) -> dict[str, Any]:
    return value["parts"][0]


def _group(value: dict[str, Any]) -> dict[str, Any]:
    return value["parts"][0]["row_groups"][0]


def _set(where: Callable[[dict[str, Any]], dict[str, Any]], field: str, new: object) -> Any:
    def change(value: dict[str, Any]) -> None:
        where(value)[field] = new

    return change


def _files(path: str) -> Any:
    entry = {"path": path, "bytes": 3, "sha256": "0" * 64}
    return _set(lambda value: value, "files", [entry])


CHANGES = {
    "rows without end": _set(_group, "rows", 10**18),
    "rows below zero": _set(_group, "rows", -1),
    "rows of no number": _set(_group, "rows", "32"),
    "half a row": _set(_group, "rows", 0.5),
    "tokens without end": _set(_group, "tokens", 1 << 40),
    "entries without end": _set(_group, "entries", 1 << 62),
    "a sequence longer than all": _set(_group, "max_tokens", 1 << 30),
    "sums that are none": _set(_part, "sequences", 6),
    "an absolute part": _set(_part, "file", "/etc/passwd"),
    "a part outside": _set(_part, "file", "../part-00000-0123456789abcdef.parquet"),
    "a part of another name": _set(_part, "file", "manifest.json"),
    "an index of no number": _set(_part, "index", None),
    "a digest of no digits": _set(_part, "sha256", "0" * 63 + "/"),
    "a file outside": _files("../../home/user/.ssh/id_rsa"),
    "an absolute file": _files("/etc/passwd"),
    "a file behind dots": _files("model/../../x"),
    "a file of two spellings": _files("./x"),
    "a file with a backslash": _files("..\\x"),
    "the manifest itself": _files("manifest.json"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_manifests_no_set_has(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    write_set(tmp_path, META, [5])
    value = json.loads((tmp_path / FILE_NAME).read_text())
    change(value)
    del value[DIGEST]
    value[DIGEST] = hashlib.sha256(canonical(value).encode()).hexdigest()
    (tmp_path / FILE_NAME).write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"manifest.json: damaged or not written by afterglow"):
        read_manifest(tmp_path)


def test_a_manifest_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("[" * 100_000)
    with pytest.raises(DataError, match="damaged or not written by afterglow"):
        read_manifest(tmp_path)


def _write_part(directory: Path, kind: str = "head_tail") -> Path:
    meta = meta_of(kind)
    with PartWriter(directory, 0, meta) as writer:
        writer.write(random_rows(meta, 5))
    return directory / writer.part.file


def _rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, drop: str = "") -> None:
    """The part as another program would write it, with a changed description and its digest."""
    table = pq.read_table(path)
    footer = json.loads(table.schema.metadata[FOOTER_KEY])
    change(footer)
    text = json.dumps(footer).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    table = table.replace_schema_metadata({FOOTER_KEY: text, FOOTER_DIGEST_KEY: digest})
    pq.write_table(table.drop_columns([drop]) if drop else table, path, compression="zstd")


def _nothing(_: dict[str, Any]) -> None:
    pass


def _in_footer(value: dict[str, Any]) -> dict[str, Any]:
    return value


FOOTERS = {
    "rows without end": lambda value: value["row_groups"][0].update(rows=10**15),
    "rows that are not there": lambda value: value["row_groups"][0].update(rows=6),
    "tokens without end": lambda value: value["row_groups"][0].update(tokens=1 << 50),
    "no row groups": _set(_in_footer, "row_groups", []),
    "no record": _set(_in_footer, "record", None),
    "a record of no kind": _set(_in_footer, "record", {}),
    "a record that is a number": _set(_in_footer, "record", 7),
    "copies without end": lambda value: value["record"].update(copies=1 << 40),
    "copies of another kind": lambda value: value["record"].update(kind="counts"),
    "no vocabulary": _set(_in_footer, "vocab_size", 0),
    "a vocabulary in words": _set(_in_footer, "vocab_size", "many"),
    "a layout that is not its own": _set(_in_footer, "layout", "packed"),
    "an index in words": _set(_in_footer, "index", "first"),
}


@pytest.mark.parametrize("change", FOOTERS.values(), ids=FOOTERS.keys())
def test_descriptions_no_part_has(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = _write_part(tmp_path)
    _rewritten(path, _nothing)
    list(read_rows(path))
    _rewritten(path, change)
    with pytest.raises(DataError, match=r"part-00000-\w+\.parquet, footer: damaged"):
        list(read_rows(path))


@pytest.mark.parametrize("column", ["hlp", "nh", "ids", "rest", "tok", "seq_id"])
def test_a_column_that_is_missing(tmp_path: Path, column: str) -> None:
    """The loops that decode a record take its columns for granted."""
    path = _write_part(tmp_path)
    _rewritten(path, _nothing, drop=column)
    with pytest.raises(DataError, match=r"footer: damaged .*columns .*, described as"):
        list(read_rows(path))


REMOTE = """
import sys
from pathlib import Path
from storage.errors import DataError
from storage.files.remote import Remote
from storage.parquet.reader import DAMAGE, column_bytes
from storage.shard import read_rows

(part,) = Path(sys.argv[1]).glob("part-*.parquet")
whole = part.read_bytes()
there = Remote(f"memory://sets/{part.name}")
start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for bit in range(8 * start, 8 * (start + 200)):
    damaged = bytearray(whole)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    there.write_bytes(bytes(damaged))
    try:
        list(read_rows(there))
    except DataError as error:
        assert part.name in str(error)
    try:
        column_bytes(there)
    except DAMAGE:
        pass
"""
"""Every bit of the schema in a footer flipped, in a part on an object store."""


LIMITED = """
import resource, sys
from pathlib import Path
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.shard import read_rows
from storage.stream import Stream

directory = Path(sys.argv[1])
(part,) = directory.glob("part-*.parquet")
whole = part.read_bytes()
list(read_rows(part))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (768 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
bits = range(8 * start, 8 * len(whole))
refused = 0
for bit in bits[:: int(sys.argv[2])]:
    damaged = bytearray(whole)
    damaged[bit >> 3] ^= 1 << (bit & 7)
    part.write_bytes(damaged)
    try:
        list(read_rows(part))
    except DataError as error:
        assert part.name in str(error)
        assert "row group" in str(error) or "footer" in str(error)
        refused += 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(len(bits[:: int(sys.argv[2])]), refused, grown >> 10)
"""
"""Every n-th bit of a footer flipped, with 768 MiB of address space to spare."""


def _fuzz_footer(directory: Path, kind: str, every: int) -> tuple[int, int, int]:
    meta = meta_of(kind)
    write_set(directory, meta, [40])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, directory, str(every)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    tried, refused, grown = map(int, done.stdout.split())
    return tried, refused, grown


@pytest.mark.parametrize("kind", ["head_tail", "sequences"])
def test_a_damaged_footer_neither_ends_the_process_nor_takes_its_memory(
    tmp_path: Path, kind: str
) -> None:
    tried, refused, grown = _fuzz_footer(tmp_path, kind, 101)
    assert refused > tried // 2  # the rest hit what nobody reads: statistics, the writer's name
    assert grown < 64


def test_a_damaged_footer_on_an_object_store_does_not_end_the_process(tmp_path: Path) -> None:
    write_set(tmp_path, meta_of("sequences"), [1])
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("kind", PACKABLE)
@given(seed=st.integers(0, 1 << 32), vocab_size=st.sampled_from([8, 300]))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loops_of_the_packed_layout_stay_inside_their_arrays(
    kind: str, seed: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as plain Python, where NumPy checks every index."""
    meta = meta_of(kind, vocab_size=vocab_size)
    rows = stored(random_rows(meta, 3, seed=seed, longest=3))
    code = codec.code_of(np.arange(vocab_size, dtype=np.uint32))
    stays, blobs = codec.pack(rows, meta, code)
    names = ("unpack_counts", "head_and_tail_runs", "unpack_ids")
    with monkeypatch.context() as patch, np.errstate(over="ignore"):
        for name in names:
            patch.setattr(kernels, name, getattr(kernels, name).py_func)
        found = codec.unpack(stays, blobs, meta, code)
    assert same_rows(found, rows)
