"""Whatever bytes a part or a manifest is made of: refused, or read as it was written.

Seconds by default; `make test-faults` takes FUZZ_MINUTES (10) and writes how many it tried.
"""

import json
import os
import random
import time
from pathlib import Path

import pytest

from storage.errors import DataError
from storage.manifest import FILE_NAME, read_manifest
from storage.rows import Rows
from storage.shard import read_rows
from tests.faults.test_recovery import FIGURES
from tests.storage.make import meta_of, same_rows, write_set

KINDS = ("head_tail_copies", "counts", "sequences")


def spoil(rng: random.Random, whole: bytes) -> bytes:
    """One to four of: flipped bits, bytes overwritten, cut out, doubled, or the end cut off."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data)), rng.choice((1, 1, 4, 30))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case _:
                del data[max(1, at) :]
        data = data or bytearray(b"\0")
    return bytes(data)


def fuzz(directory: Path, seconds: float, most: int, seed: int) -> dict[str, int]:
    """Spoil parts and manifests in turn; a changed value that is not refused fails."""
    rng = random.Random(seed)
    found = {"parts tried": 0, "parts refused": 0, "refused without a name": 0}
    found |= {"manifests tried": 0, "manifests refused": 0}
    originals: list[tuple[Path, bytes, list[Rows]]] = []
    for kind in KINDS:
        write_set(directory / kind, meta_of(kind), [33])
        (path,) = (directory / kind).glob("part-*")
        originals.append((path, path.read_bytes(), list(read_rows(path))))
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and found["parts tried"] < most:
        path, whole, expected = rng.choice(originals)
        path.write_bytes(spoil(rng, whole))
        found["parts tried"] += 1
        try:
            read = list(read_rows(path))
        except DataError as error:
            named = path.name in str(error)
            found["parts refused" if named else "refused without a name"] += 1
        else:
            same = all(same_rows(a, b) for a, b in zip(read, expected, strict=True))
            assert same, f"{path} read otherwise: seed {seed}, try {found['parts tried']}"
        path.write_bytes(whole)
        try:
            _fuzz_manifest(path.parent, rng, found)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, try {found['parts tried']}") from error
    return found


def _fuzz_manifest(directory: Path, rng: random.Random, found: dict[str, int]) -> None:
    path = directory / FILE_NAME
    whole, expected = path.read_bytes(), read_manifest(directory)
    path.write_bytes(spoil(rng, whole))
    found["manifests tried"] += 1
    try:
        assert read_manifest(directory) == expected
    except DataError:
        found["manifests refused"] += 1
    path.write_bytes(whole)


def test_spoilt_files(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 60.0, 200, seed=0)
    assert found["parts refused"] > found["parts tried"] // 2
    assert found["refused without a name"] == 0
    assert found["manifests refused"] > found["manifests tried"] // 2


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_spoilt_files_for_long(tmp_path: Path) -> None:
    minutes = float(os.environ.get("FUZZ_MINUTES", "10"))
    found = fuzz(tmp_path, 60.0 * minutes, 1 << 40, seed=random.SystemRandom().randrange(1 << 32))
    assert found["refused without a name"] == 0
    figures = json.loads(FIGURES.read_text())
    figures["fuzz"] = found | {"minutes": minutes}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
