"""Writers that die, race or run out of disk: real processes, real signals, a real full disk."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import DataError, RetryError
from storage.manifest import FILE_NAME, read_manifest, write_manifest
from storage.shard import PartWriter, find_part, read_rows
from tests.storage.make import commit, meta_of, random_rows

ROOT = Path(__file__).parents[2]
META = meta_of("head_tail")


def _start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    preamble = (
        "import sys\nfrom pathlib import Path\n"
        "from storage.shard import PartWriter\n"
        "from tests.storage.make import meta_of, random_rows\n"
        "directory, META = Path(sys.argv[1]), meta_of('head_tail')\n"
    )
    command = [sys.executable, "-c", preamble + program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


FOREVER = """
with PartWriter(directory, 0, META) as writer:
    for number in range(10**9):
        writer.write(random_rows(META, 64, first=64 * number))
        print("wrote", flush=True)
"""


def test_a_killed_writer_leaves_no_part(tmp_path: Path) -> None:
    writer = _start(FOREVER, tmp_path)
    assert writer.stdout is not None
    for _ in range(3):
        assert writer.stdout.readline() == "wrote\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".part-00000.{writer.pid}.")
    assert left.suffix == ".tmp"
    assert left.stat().st_size > 0
    assert find_part(tmp_path, 0) is None
    with pytest.raises(RetryError, match=r"parts 0 of 1 are missing or damaged"):
        commit(tmp_path, META, 1)
    with pytest.raises(DataError, match=r"not a committed set"):
        read_manifest(tmp_path)
    with PartWriter(tmp_path, 0, META) as again:
        again.write(random_rows(META, 5))
    assert write_manifest(tmp_path, commit(tmp_path, META, 1)).parts == (again.part,)


ONCE = """
sys.stdin.readline()
with PartWriter(directory, 0, META) as writer:
    for number in range(10):
        writer.write(random_rows(META, 10, first=10 * number, seed=int(sys.argv[2])))
print(writer.part.file, flush=True)
"""


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["same bytes", "other bytes"])
def test_two_writers_race_on_one_part(tmp_path: Path, seeds: tuple[int, int]) -> None:
    writers = [_start(ONCE, tmp_path, seed) for seed in seeds]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    names = {writer.communicate()[0].strip() for writer in writers}
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == names
    assert len(names) == len(set(seeds))
    manifest = commit(tmp_path, META, 1)
    assert manifest.parts[0].file == min(names)
    assert sum(map(len, read_rows(tmp_path / manifest.parts[0].file))) == 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, mounted for the test; needs root."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root; the next test covers the same code")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_asks_for_space_and_keeps_finished_parts(small_disk: Path) -> None:
    with PartWriter(small_disk, 0, META) as done:
        done.write(random_rows(META, 50))
    with pytest.raises(RetryError, match=r"cannot write \(No space left on device\).*run again"):
        _write_much(small_disk, 1)
    assert [path.name for path in small_disk.iterdir()] == [done.part.file]
    assert find_part(small_disk, 0) == done.part
    (small_disk / "ballast").write_bytes(bytes(_free(small_disk)))
    with pytest.raises(RetryError, match=r"manifest.json: cannot write"):
        write_manifest(small_disk, commit(small_disk, META, 1))
    assert not (small_disk / FILE_NAME).exists()
    (small_disk / "ballast").unlink()
    assert write_manifest(small_disk, commit(small_disk, META, 1)).parts == (done.part,)


def _write_much(directory: Path, index: int) -> None:
    with PartWriter(directory, index, META) as writer:
        for number in range(100):
            writer.write(random_rows(META, 64, first=64 * number))


def _free(directory: Path) -> int:
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


LIMITED = """
import resource
from storage.errors import RetryError
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    with PartWriter(directory, 0, META) as writer:
        for number in range(100):
            writer.write(random_rows(META, 64, first=64 * number))
except RetryError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def test_a_file_that_may_not_grow_is_an_error_to_try_again(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0
    writer = _start(LIMITED, tmp_path)
    message = writer.communicate()[0]
    assert writer.returncode == 75
    assert "cannot write (File too large)" in message
    assert list(tmp_path.iterdir()) == []
