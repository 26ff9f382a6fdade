"""Sets on an object store: the same rows as here, read in ranges, through faults, after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DataError
from storage.files import source
from storage.files.remote import Remote
from storage.manifest import read_manifest
from storage.parquet.reader import column_bytes
from storage.rows import Rows
from storage.sets import verify_set
from storage.shard import find_part, read_rows
from storage.stream import Stream
from tests.command import ROOT
from tests.remote.proxy import FAULTS, Plan
from tests.storage.make import meta_of, same_rows, write_set

SIZES = (100, 70)
GROUPS = 4 + 3


def all_rows(directory: Path | Remote) -> Rows:
    manifest = read_manifest(directory)
    return Rows.concat([r for part in manifest.parts for r in read_rows(directory / part.file)])


@pytest.mark.parametrize("kind", ["sequences", "head_tail"])
def test_a_set_is_the_same_here_and_there(prefix: Remote, tmp_path: Path, kind: str) -> None:
    here = write_set(tmp_path / "set", meta_of(kind), SIZES)
    there = write_set(prefix, meta_of(kind), SIZES)
    assert there == here
    assert same_rows(all_rows(prefix), all_rows(tmp_path / "set"))
    assert verify_set(prefix) == []
    assert list((tmp_path / "cache" / "spool").iterdir()) == []
    for part in here.parts:
        assert column_bytes(prefix / part.file) == column_bytes(tmp_path / "set" / part.file)


@pytest.mark.parametrize("kind", ["sequences", "head_tail"])
def test_a_row_group_is_one_request(
    prefix: Remote, proxy: Plan, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(source, "_TAIL", 1 << 16)  # these parts are small
    manifest = write_set(prefix, meta_of(kind), SIZES, longest=1500 if kind == "sequences" else 150)
    with Stream(prefix, seed=0, batch_size=10) as stream:
        seen = np.concatenate([next(stream).seq_id for _ in range(17)])
    assert sorted(seen.tolist()) == list(range(170))
    proxy.requests.clear()
    all_rows(prefix)
    reads = proxy.gets("part-")
    assert all(request.range is not None for request in reads)
    # The last groups of a part may have come with its footer.
    assert len(SIZES) + GROUPS // 2 < len(reads) <= len(SIZES) + GROUPS
    total = sum(part.bytes for part in manifest.parts)
    assert sum(request.received for request in reads) <= total + len(SIZES) * source._TAIL
    assert not [request for request in proxy.requests if request.method == "PUT"]


def test_faults_of_the_store_are_overcome(prefix: Remote, proxy: Plan, tmp_path: Path) -> None:
    proxy.share, proxy.seconds = 0.3, 0.2
    here = write_set(tmp_path / "set", meta_of("head_tail"), SIZES)
    assert write_set(prefix, meta_of("head_tail"), SIZES) == here
    for _ in range(2):
        assert same_rows(all_rows(prefix), all_rows(tmp_path / "set"))
    assert proxy.spoiled == set(FAULTS)


def test_damage_is_found_in_a_stored_part(prefix: Remote) -> None:
    manifest = write_set(prefix, meta_of("head_tail"), (40,))
    part = prefix / manifest.parts[0].file
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(bytes(content))
    assert find_part(prefix, 0) is None  # written by another hand: it is hashed
    with pytest.raises(DataError, match=part.name):
        all_rows(prefix)
    assert any("sha256" in problem for problem in verify_set(prefix))


CHILD = """
import sys
import numpy as np
from storage.files import remote
from storage.files.remote import Remote
from storage.rows import Rows
from storage.shard import PartWriter
from tests.storage.make import meta_of, random_rows
remote._BLOCK = 5 << 20
meta = meta_of("sequences")
with PartWriter(Remote(sys.argv[1]), 0, meta) as writer:
    writer.write(random_rows(meta, 64, longest=80_000))
print(writer.part.file)
"""


def test_killed_in_the_middle_of_an_upload_it_leaves_no_part(
    prefix: Remote, proxy: Plan, tmp_path: Path
) -> None:
    proxy.share, proxy.faults, proxy.seconds, proxy.only = 1.0, ("slow",), 20.0, "partNumber=2"
    command = [sys.executable, "-c", CHILD, str(prefix)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not any("partNumber=1" in request.path for request in proxy.requests):
            assert process.poll() is None, "it ended without an upload in pieces"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert list(prefix.iterdir()) == []
    assert find_part(prefix, 0) is None
    assert list((tmp_path / "cache" / "spool").iterdir()) == []
    proxy.share = 0.0
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    part = find_part(prefix, 0)
    assert part is not None
    assert part.file == done.stdout.strip()
