"""Other programs can open a part; a base install can import the package."""

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from storage.codec import stored
from storage.rows import Rows
from storage.schema import COLUMNS
from storage.shard import PartWriter
from tests.storage.make import KINDS, meta_of, random_rows


@pytest.fixture(params=KINDS)
def part(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Rows]:
    meta = meta_of(request.param)
    rows = random_rows(meta, 40)
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows)
    return tmp_path / writer.part.file, stored(rows)


def test_polars(part: tuple[Path, Rows]) -> None:
    path, rows = part
    frame = pl.read_parquet(path)
    assert frame.columns == list(rows.columns)
    for name, values in rows.columns.items():
        column = frame[name]
        flat = column if COLUMNS[name].level == "row" else column.explode(empty_as_null=False)
        np.testing.assert_array_equal(flat.to_numpy(), values, err_msg=name)


def test_duckdb(part: tuple[Path, Rows]) -> None:
    path, rows = part
    found = duckdb.connect().execute("select * from read_parquet(?)", [str(path)]).fetchall()
    assert len(found) == len(rows)
    for index, row in enumerate(found):
        expected = rows.sequence(index)
        for name, value in zip(expected, row, strict=True):
            np.testing.assert_array_equal(np.array(value), expected[name], err_msg=name)


def test_datasets(tmp_path: Path) -> None:
    """In a process of its own: it brings pandas and torch with it."""
    tables = {kind: random_rows(meta_of(kind), 40) for kind in KINDS}
    paths: list[Path] = []
    for kind, rows in tables.items():
        with PartWriter(tmp_path / kind, 0, meta_of(kind)) as writer:
            writer.write(rows)
        paths.append(tmp_path / kind / writer.part.file)
    program = (
        "import sys, datasets\n"
        "for path in sys.argv[2:]:\n"
        "    found = datasets.Dataset.from_parquet(path, cache_dir=sys.argv[1])\n"
        "    print(len(found), sum(map(len, found['tok'])))"
    )
    lines = _run(program, tmp_path / "cache", *paths).splitlines()
    assert lines == [f"40 {rows.tokens}" for rows in tables.values()]


def test_storage_needs_neither_torch_nor_an_engine() -> None:
    program = (
        "import sys\n"
        "import storage.stream, storage.store, storage.kernels\n"
        "heavy = {'torch', 'transformers', 'vllm', 'polars', 'datasets', 'duckdb', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert _run(program) == "[]"


def test_neither_writing_nor_reading_imports_pandas(tmp_path: Path) -> None:
    """Arrow does so by itself where it can, and a stage would take a second longer."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from storage.shard import PartWriter, read_rows\n"
        "from tests.storage.make import meta_of, random_rows\n"
        "directory, meta = Path(sys.argv[1]), meta_of('sequences')\n"
        "with PartWriter(directory, 0, meta) as writer:\n"
        "    writer.write(random_rows(meta, 40))\n"
        "rows = sum(map(len, read_rows(directory / writer.part.file)))\n"
        "print(rows, 'pandas' in sys.modules)"
    )
    assert _run(program, tmp_path) == "40 False"


def test_reading_a_manifest_needs_no_more_than_the_standard_library() -> None:
    program = (
        "import sys\n"
        "import storage.store\n"
        "print(sorted({'numpy', 'pyarrow', 'numba'} & set(sys.modules)))"
    )
    assert _run(program) == "[]"


def _run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
