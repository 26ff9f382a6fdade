"""Sets of every format version ever released stay readable, value for value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.codec import to_batch
from storage.manifest import read_manifest
from storage.rows import Rows
from storage.schema import FORMAT_VERSION
from storage.sets import verify_set
from storage.shard import PartFile
from tests.golden.make import GOLDEN, golden_meta, offsets, shortest, write_golden_set

HERE = Path(__file__).parent
SETS = sorted(path.parent for path in HERE.glob("v*/*/manifest.json"))


def _expected(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "expected.json").read_text())


def _draws(expected: dict[str, Any]) -> list[dict[str, Any]]:
    """By draw; the oldest sets were written when there was only one."""
    only = {name: expected.get(name) for name in ("entry_off", "weight")}
    return expected.get("draws", [only | {"ids": expected["columns"].get("ids", [])}])


def _read(directory: Path) -> Rows:
    (part,) = read_manifest(directory).parts
    with PartFile(directory / part.file) as file:
        return Rows.concat([file.read(group) for group in range(len(part.row_groups))])


def test_every_version_has_a_set_of_every_kind() -> None:
    found = {(path.parent.name, path.name) for path in SETS}
    versions = range(1, FORMAT_VERSION + 1)
    assert found == {(f"v{version}", kind) for version in versions for kind in GOLDEN}


def test_golden_files_stay_small() -> None:
    for version in HERE.glob("v*"):
        assert sum(path.stat().st_size for path in version.rglob("*.*")) < 250_000


@pytest.mark.parametrize("directory", SETS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_golden_sets_are_read_value_for_value(directory: Path) -> None:
    assert verify_set(directory) == []
    expected, rows = _expected(directory), _read(directory)
    assert {name: shortest(values) for name, values in rows.columns.items()} == expected["columns"]
    assert offsets(rows) == expected["offsets"]
    meta = golden_meta(directory.name)
    assert len(_draws(expected)) == meta.copies
    for draw, there in enumerate(_draws(expected)):
        batch = to_batch(rows, meta, draw)
        assert batch.entry_off.tolist() == there["entry_off"]
        assert batch.ids.tolist() == there["ids"]
        np.testing.assert_allclose(batch.weight, there["weight"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GOLDEN)
def test_what_is_written_today_is_the_current_version(kind: str, tmp_path: Path) -> None:
    """The same rows give the same checksums and metadata: a change of format raises the version."""
    golden = HERE / f"v{FORMAT_VERSION}" / kind
    manifest = write_golden_set(tmp_path, kind, _read(golden))
    before = read_manifest(golden)
    assert manifest.parts[0].row_groups == before.parts[0].row_groups
    with (
        PartFile(tmp_path / manifest.parts[0].file) as new,
        PartFile(golden / before.parts[0].file) as old,
    ):
        assert new.meta == old.meta
        assert list(new.read(0).columns) == list(old.read(0).columns)
