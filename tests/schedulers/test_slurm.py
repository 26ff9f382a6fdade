"""The scripts and commands of docs/slurm.md, taken from the page and run."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.schedulers import slurm
from tests.schedulers.environment import SMALL, Flaky

PAGE = (ROOT / "docs" / "slurm.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def scripts() -> dict[str, str]:
    """The files of the page: each is named in the text just before it."""
    found: dict[str, str] = {}
    for block in BLOCKS:
        if block.startswith("#!"):
            before = PAGE[: PAGE.index(block)]
            found[re.findall(r"`(\w+\.(?:sbatch|sh))`", before)[-1]] = block
    return found


def commands(word: str) -> str:
    """The one block of commands of the page that holds `word`."""
    (found,) = [block for block in BLOCKS if not block.startswith("#!") and word in block]
    return found


@dataclass(frozen=True)
class Site:
    """A working directory as the page assumes it, and what it takes to run there."""

    folder: Path
    flaky: Flaky
    variables: dict[str, str]

    def run(self, command: str) -> int:
        """Exit code of a block of commands."""
        done = subprocess.run(["bash", "-euc", command], cwd=self.folder, env=self.variables)
        return done.returncode

    def manifests(self, stage: str) -> int:
        """Number of committed sets of a stage."""
        return len(list(self.folder.glob(f"store/{stage}-*/manifest.json")))

    def shards(self) -> list[str]:
        """What has been asked for with --shard, in any order."""
        calls = [call["arguments"] for call in self.flaky.calls("run", "--shard")]
        return sorted(words[words.index("--shard") + 1] for words in calls)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site without Slurm: a stand-in runs the jobs."""
    programs = tmp_path / "bin"
    state = tmp_path / "slurm"
    flaky = Flaky(tmp_path / "flaky")
    for folder in (programs, state, flaky.folder):
        folder.mkdir()
    slurm.install(programs)
    afterglow = programs / "afterglow"
    afterglow.write_text(f'#!/bin/bash\nexec {flaky.command} "$@"\n')
    afterglow.chmod(0o755)
    for name, text in scripts().items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copy(SMALL, tmp_path / "my.toml")
    variables = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AFTERGLOW_SLURM": str(state),
    }
    return Site(tmp_path, flaky, variables)


def test_the_page_holds_its_scripts() -> None:
    assert scripts().keys() == {
        "stage.sbatch", "commit.sbatch", "submit.sh", "chain.sh", "unit.sbatch",
    }  # fmt: skip


def test_an_array_is_committed_when_all_its_tasks_are_done(site: Site) -> None:
    site.flaky.fail("run", "1", code=75)
    site.flaky.fail("run", "2", code=65)
    assert site.run(commands("./submit.sh")) == 0
    assert site.shards() == ["0", "1", "1", "2"]  # put back in the queue: 75, and not 65
    assert site.flaky.calls("commit") == []
    assert site.manifests("corpus") == 0
    assert site.run(commands("./submit.sh")) == 0
    assert site.shards() == ["0", "1", "1", "2", "2"]  # only what was missing
    assert site.manifests("corpus") == 1
    submitted = [(site.folder / "slurm" / f"job-{number}").read_text() for number in range(1, 5)]
    assert [words.split()[1] for words in submitted] == [
        "--array=0-2%16", "--kill-on-invalid-dep=yes", "--array=2%16", "--kill-on-invalid-dep=yes",
    ]  # fmt: skip


def test_a_task_goes_back_into_the_queue_five_times(site: Site) -> None:
    for _ in range(9):
        site.flaky.fail("run", "--shard", code=75)
    variables = {**site.variables, "SLURM_ARRAY_TASK_ID": "0"}
    done = subprocess.run(
        [site.folder / "bin" / "sbatch", "--wait", "--array=0", "stage.sbatch", "corpus"],
        cwd=site.folder, env=variables, check=False,
    )  # fmt: skip
    assert done.returncode == 75
    assert site.shards() == ["0"] * 6


def test_the_chain_stops_where_it_fails(site: Site) -> None:
    site.flaky.fail("units", "pretrain", code=65)
    assert site.run(commands("./chain.sh")) == 65
    assert site.manifests("corpus") == 1
    assert len(site.flaky.calls("units")) == 2


def test_parts_are_made_side_by_side_without_a_scheduler(site: Site) -> None:
    assert site.run(commands("xargs")) == 0
    assert site.shards() == ["0", "1-2"]
    assert site.manifests("corpus") == 1


@pytest.mark.scheduler
def test_a_recipe_runs_from_end_to_end_and_again_for_nothing(site: Site) -> None:
    site.flaky.fail("run", "pretrain.teacher", code=75)
    assert site.run(commands("./chain.sh")) == 0
    assert site.manifests("teacher-logits") == site.manifests("train") == 1
    ran = len(site.flaky.calls("run"))
    assert site.run(commands("./chain.sh")) == 0
    assert len(site.flaky.calls("run")) == ran


@pytest.mark.scheduler
def test_a_real_slurm_gives_the_same(site: Site) -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm here; on a machine that has one: make test-schedulers")
    for name in ("sbatch", "scontrol"):
        (site.folder / "bin" / name).unlink()
    site.flaky.fail("run", "1", code=75)
    site.flaky.fail("run", "2", code=65)
    site.run(commands("./submit.sh"))
    _until_idle(site)
    assert site.shards() == ["0", "1", "1", "2"]
    assert site.manifests("corpus") == 0
    site.run(commands("./submit.sh"))
    _until_idle(site)
    assert site.shards() == ["0", "1", "1", "2", "2"]
    assert site.manifests("corpus") == 1
    assert site.run(commands("./chain.sh")) == 0
    assert site.manifests("train") == 1


def _until_idle(site: Site) -> None:
    """Wait until Slurm has no job of this user left."""
    queue = ["squeue", "--noheader", "--me"]
    deadline = time.monotonic() + 1200
    while subprocess.run(queue, env=site.variables, capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(2)
