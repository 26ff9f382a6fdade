"""Stages through the command, their sets on an object store and nothing of them on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.files.remote import Remote
from storage.manifest import read_manifest
from storage.rows import Rows
from storage.shard import read_rows
from tests.command import ROOT, TINY, Outcome, afterglow
from tests.remote.proxy import FAULTS, Plan
from tests.storage.make import same_rows


def command(store: Remote, *arguments: str) -> Outcome:
    return afterglow(*arguments, *TINY, store=str(store))


def rows_of(directory: Path | Remote) -> Rows:
    manifest = read_manifest(directory)
    return Rows.concat([r for part in manifest.parts for r in read_rows(directory / part.file)])


def left_here(cache: Path) -> set[str]:
    """Kinds of files in the cache, those of the models and tokenizers left out."""
    return {
        path.relative_to(cache).parts[0]
        for path in cache.rglob("*")
        if path.is_file() and path.relative_to(cache).parts[0] != "sets"
    }


@pytest.mark.timeout(900)
@pytest.mark.e2e
def test_stages_run_on_an_object_store(prefix: Remote, proxy: Plan, tmp_path: Path) -> None:
    """A corpus and a model from it: parts, tokenizer, checkpoint and weights all go there."""
    ran = command(prefix, "run", "pretrain.teacher")
    assert ran.code == 0, ran.err
    assert ran.result["ran"] == ["corpus", "pretrain.teacher"]
    assert left_here(tmp_path / "cache") <= {".digests.json"}
    states = command(prefix, "status", "pretrain.teacher")
    assert [node["done"] for node in states.result["nodes"]] == [True, True], states.err
    sets = [path.parent for path in prefix.glob("*/manifest.json")]
    verified = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify", *map(str, sets)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert verified.returncode == 0, verified.stderr
    assert not any(path.name == ".work" for one in sets for path in one.iterdir())
    here = afterglow("run", "corpus", *TINY, store=tmp_path / "store")
    assert here.code == 0, here.err
    (corpus,) = (tmp_path / "store").glob("corpus-*")
    assert same_rows(rows_of(prefix / corpus.name), rows_of(corpus))


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.e2e
def test_the_whole_chain_runs_through_faults(prefix: Remote, proxy: Plan, tmp_path: Path) -> None:
    proxy.share, proxy.seconds = 0.02, 1.0
    ran = command(prefix, "run", "report")
    assert ran.code == 0, ran.err
    assert proxy.spoiled == set(FAULTS)
    proxy.share = 0.0
    again = command(prefix, "run", "report")
    assert (again.code, again.result["ran"]) == (0, []), again.err
    assert left_here(tmp_path / "cache") <= {".digests.json"}
    here = afterglow("run", "rollouts", *TINY, store=tmp_path / "store")
    assert here.code == 0, here.err
    for stage in ("corpus", "sft-data", "rollouts"):
        (directory,) = (tmp_path / "store").glob(f"{stage}-*")
        assert same_rows(rows_of(prefix / directory.name), rows_of(directory))


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.e2e
def test_two_runners_at_once_leave_one_valid_set(prefix: Remote) -> None:
    arguments = [sys.executable, "-m", "pipeline", "run", "corpus", *map(str, TINY)]
    arguments += ["--set", f"store={prefix}"]
    both = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    (manifest,) = prefix.glob("corpus-*/manifest.json")
    assert len(rows_of(manifest.parent)) == 512
