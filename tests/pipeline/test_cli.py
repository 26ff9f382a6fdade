"""The command: verbs, exit codes, machine-readable last line. `corpus` is the stage of choice here:
real, sharded, and without a model.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import RetryError
from tests.command import ROOT, Outcome, afterglow

SMALL = ("--set", "corpus.count=96", "--set", "corpus.sequences_per_part=32")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def corpus(*arguments: str, store: Path) -> Outcome:
    return afterglow(*arguments, *SMALL, store=store)


def test_parts_one_by_one_then_commit(store: Path) -> None:
    """What a job array does: one process a part, in any order, and a commit after them."""
    assert corpus("run", "corpus", "--shard", "2", store=store).code == 0
    early = corpus("commit", "corpus", store=store)
    assert early.code == RetryError.exit_code
    assert "0, 1" in early.err
    assert not list(store.glob("*/manifest.json"))
    for index in ("1", "0", "2"):
        assert corpus("run", "corpus", "--shard", index, store=store).code == 0
    assert len(list(store.glob("corpus-*/part-*.parquet"))) == 3
    done = corpus("commit", "corpus", store=store)
    assert done.code == 0, done.err
    status = corpus("status", "corpus", store=store).result["nodes"][0]
    assert (status["done"], status["sequences"]) == (True, 96)


def test_the_store_may_be_named_relative_to_the_working_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run", "corpus", *SMALL, "--set", "store=here"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("here/corpus-*/manifest.json"))) == 1


def test_a_shard_that_does_not_exist_is_named(store: Path) -> None:
    outcome = corpus("run", "corpus", "--shard", "3", store=store)
    assert outcome.code == 65
    assert "no shard 3; it has 0 to 2" in outcome.err


def test_verify_finds_a_flipped_bit(store: Path) -> None:
    assert corpus("run", "corpus", store=store).code == 0
    part = next(store.glob("corpus-*/part-00001-*.parquet"))
    assert afterglow_verify(part.parent).returncode == 0
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    damaged = afterglow_verify(part.parent)
    assert damaged.returncode == 65
    assert part.name in damaged.stderr


def test_a_damaged_part_is_made_again_before_commit(store: Path) -> None:
    assert corpus("run", "corpus", store=store).code == 0
    before = {path.name for path in store.glob("corpus-*/part-*.parquet")}
    directory = next(store.glob("corpus-*"))
    (directory / "manifest.json").unlink()
    part = next(directory.glob("part-00001-*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    again = corpus("run", "corpus", store=store)
    assert again.code == 0, again.err
    assert "2 of 3 parts exist" in again.err
    assert {path.name for path in directory.glob("part-*.parquet")} == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run",), 2, "required: STAGE"),
        (("fly",), 2, "invalid choice"),
        (("run", "corpse"), 78, "no such stage"),
        (("run", "corpus", "--recipe", "dema"), 78, "no recipe called `dema`"),
        (("run", "corpus", "--method", "tpi"), 78, "no method called `tpi`; did you mean `tip`"),
        (("run", "corpus", "--config", "nowhere.toml"), 78, "nowhere.toml: cannot be read"),
        (("run", "corpus", "--set", "corpus.cuont=3"), 78, "corpus.cuont: Extra inputs"),
        (
            ("run", "report", "--set", "train.compare.sft.objective.name=lightning"),
            78,
            "[train.compare.sft] and [sft] are both called `sft`",
        ),
    ],
)
def test_exit_codes(store: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    outcome = afterglow(*arguments, store=store)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert not store.exists()


def test_plan_runs_nothing(store: Path) -> None:
    outcome = afterglow("plan", "--recipe", "qwen3-4b-math", store=store)
    assert outcome.code == 0, outcome.err
    nodes = {node["node"]: node for node in outcome.result["nodes"]}
    assert nodes["rollouts"]["tokens"] == 17000 * 4096
    assert nodes["teacher-logits"]["bytes"] > nodes["rollouts"]["tokens"] * 10
    assert not store.exists()


def test_config_prints_toml_that_reads_back(store: Path, tmp_path: Path) -> None:
    printed = afterglow("config", store=store)
    (tmp_path / "again.toml").write_text(printed.out)
    again = afterglow("config", "--config", tmp_path / "again.toml", store=store)
    assert again.out == printed.out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, pipeline.cli\n"
        "try: pipeline.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyarrow', 'pydantic', 'numpy', 'vllm'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_runners_on_one_store_leave_one_valid_set(store: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run", "corpus", *SMALL, "--set", f"store={store}"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    codes = [(process.communicate()[1], process.returncode) for process in both]
    assert [code for _, code in codes] == [0, 0], codes
    manifest = json.loads(next(store.glob("corpus-*/manifest.json")).read_text())
    assert len(manifest["parts"]) == 3
    assert afterglow_verify(next(store.glob("corpus-*"))).returncode == 0


def test_a_full_disk_says_so_and_keeps_what_is_done(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs: run this test as root")
    try:
        big = ("--set", "corpus.count=60000", "--set", "corpus.sequences_per_part=1000")
        outcome = afterglow("run", "corpus", *big, store=disk / "store")
        assert outcome.code == RetryError.exit_code, outcome.err
        assert "space" in outcome.err
        assert not list(disk.glob("**/manifest.json"))
        assert not list(disk.glob("**/*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def afterglow_verify(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "verify", str(directory)]
    return subprocess.run(command, capture_output=True, text=True)
