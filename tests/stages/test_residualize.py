"""The stage: records of a foreign teacher in, corrected scores out, a student trained on them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from stages import residualize, train
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled
from stages.config.records import Residualize
from stages.config.training import Student
from stages.job import Input, Job
from stages.models.model import load_model
from storage.errors import ConfigError, DataError
from storage.manifest import read_manifest, write_manifest
from storage.rows import Rows
from storage.sets import verify_set
from storage.shard import PartWriter, find_part, read_meta, read_rows
from storage.stream import read_split
from tests.command import ROOT, afterglow
from tests.storage.make import rows_of
from tests.world import (
    commit,
    commit_model,
    identity,
    make_job,
    rollouts,
    run,
    score,
    weights,
    write_model,
)

KEY = "0f" * 32
SPLITS = ("train", "train", "train", "holdout")
PER_PART = 96


@dataclass(frozen=True)
class Foreign:
    """pi_ref of one teacher, its rollouts, and another teacher's records of them."""

    root: Path
    source: Path

    @property
    def reference(self) -> Input:
        """What a student starts from."""
        return Input(str(self.root / "reference"))


def make_foreign(root: Path, record: Record | None = None, *, same: bool = False) -> Foreign:
    """`same`: the scoring teacher is pi_ref itself, so that there is nothing to correct."""
    own, reference = write_model(root / "own", 1), write_model(root / "reference", 2)
    commit_model(reference, identity(own))
    teacher = reference if same else write_model(root / "teacher", 3)
    record = record or HeadTail(tau=0.1, candidates=0)
    written = rollouts(load_model(reference, "float32", "cpu"), PER_PART * len(SPLITS), seed=4)
    rows = score(teacher, written, record)
    parts = [rows.slice(first, first + PER_PART) for first in range(0, len(rows), PER_PART)]
    commit(
        root / "records",
        {"train": parts[:-1], "holdout": parts[-1:]},
        key=KEY,
        record=record,
        generator=identity(reference),
        teacher=identity(teacher),
        tokenizer={"tokenizer": identity(teacher).tokenizer},
    )
    return Foreign(root, root / "records")


def job(foreign: Foreign, store: Path, **fields: object) -> Job[Residualize]:
    inputs = {"records": Input(str(foreign.source), KEY)}
    return make_job(store, "residualize", Residualize.model_validate(fields), inputs)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return make_foreign(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def done(foreign: Foreign, tmp_path_factory: pytest.TempPathFactory) -> Job[Residualize]:
    made = job(foreign, tmp_path_factory.mktemp("store"))
    run(made)
    return made


# ---------------------------------------------------------------------------------------------
# What it writes


def test_the_set_holds_the_same_sequences_with_corrected_scores(
    foreign: Foreign, done: Job[Residualize]
) -> None:
    assert verify_set(done.directory) == []
    before, after = rows_of(foreign.source), rows_of(done.site)
    assert set(before.columns) - set(after.columns) == {"nu", "nh", "rest", "ids", "hlp"}
    for name in set(after.columns) - {"lp"}:
        assert np.array_equal(before[name], after[name]), name
    with residualize.open_engine(done) as correction:
        wanted = before["lp"] - correction.recurring(before)
    assert np.allclose(after["lp"], wanted, atol=1e-3)
    d_before, d_after = before["lp"] - before["ref_lp"], after["lp"] - after["ref_lp"]
    assert abs(d_after.mean()) < 0.1 < abs(d_before.mean())
    assert d_after.var() < 0.9 * d_before.var()


def test_the_manifest_says_what_was_done(foreign: Foreign, done: Job[Residualize]) -> None:
    source, made = read_manifest(foreign.source), read_manifest(done.directory)
    assert made.teacher == source.teacher
    assert [p.split for p in made.parts] == list(SPLITS)
    record = made.meta["record"]
    assert (record["kind"], record["temperature"]) == ("sampled", 1.0)
    assert record["correction"] == {
        "folds": 5,
        "token_share": 0.5,
        "pseudo_count": 20.0,
        "position_bins": 16,
        "surprisal_bins": 8,
        "records": KEY,
        "seed": 0,
    }
    assert made.meta["generator"] == source.meta["generator"]


def test_held_out_prompts_do_not_take_part_in_the_estimate(
    foreign: Foreign, tmp_path: Path
) -> None:
    """The same training parts with other held-out scores give the same corrected training parts."""
    other = tmp_path / "records"
    source = read_manifest(foreign.source)
    meta = read_meta(foreign.source / source.parts[0].file)
    for part in source.parts:
        rows = Rows.concat(list(read_rows(foreign.source / part.file)))
        if part.split == "holdout":
            rows = Rows(rows.columns | {"lp": rows["lp"] - 3.0}, rows.offsets)
        with PartWriter(other, part.index, meta, part.split) as writer:
            writer.write(rows)
    parts = [find_part(other, index) for index in range(len(SPLITS))]
    write_manifest(other, replace(source, parts=tuple(p for p in parts if p)))
    moved = job(Foreign(foreign.root, other), tmp_path / "store")
    run(moved)
    plain = job(foreign, tmp_path / "plain")
    run(plain)
    first, second = rows_of(moved.site, "train"), rows_of(plain.site, "train")
    assert np.array_equal(first["lp"], second["lp"])
    shift = rows_of(moved.site, "holdout")["lp"] - rows_of(plain.site, "holdout")["lp"]
    assert np.allclose(shift, -3.0, atol=1e-3)


@pytest.mark.parametrize("record", [Sampled(), Counts(draws=8)])
def test_any_kind_of_record_will_do(tmp_path: Path, record: Record) -> None:
    foreign = make_foreign(tmp_path, record)
    made = job(foreign, tmp_path / "store")
    assert run(made).meta["record"]["kind"] == "sampled"
    assert {"lp", "ent", "ref_lp"} <= set(rows_of(made.site).columns)


def test_pi_ref_as_its_own_teacher_leaves_next_to_nothing(tmp_path: Path) -> None:
    """d is rounding only, and so is what is taken out."""
    foreign = make_foreign(tmp_path, same=True)
    made = job(foreign, tmp_path / "store")
    run(made)
    after = rows_of(made.site)
    assert np.abs(after["lp"] - rows_of(foreign.source)["lp"]).max() < 1e-3
    assert np.abs(after["lp"] - after["ref_lp"]).max() < 2e-3


# ---------------------------------------------------------------------------------------------
# Training


def student(data: Path, store: Path, foreign: Foreign, **fields: object) -> Job[Student]:
    settings = {"steps": 12, "batch_size": 16, "learning_rate": 3e-3, "run": {"log_every": 6}}
    config = Student.model_validate(settings | {"objective": {"name": "lightning"}} | fields)
    return make_job(store, "train", config, {"data": Input(str(data)), "init": foreign.reference})


def test_a_student_of_another_teacher_may_read_it(
    foreign: Foreign, done: Job[Residualize], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="its teacher is"):
        train.run(student(foreign.source, tmp_path / "refused", foreign))
    made = student(done.site, tmp_path / "store", foreign)
    manifest = train.run(made)
    assert not [r for r in caplog.records if "its teacher is" in r.message]
    assert manifest.meta["guarantee"]["level"] == "exact"
    start, end = weights(foreign.root / "reference"), weights(made.site)
    assert any(not np.array_equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [({"name": "forward_kl"}, "refused"), ({"form": "bucketed"}, "refused"), ({}, "biased")],
)
def test_only_what_reads_the_realised_token_can_be_trained(
    foreign: Foreign,
    done: Job[Residualize],
    tmp_path: Path,
    objective: dict[str, str],
    expected: str,
) -> None:
    made = student(done.site, tmp_path, foreign, objective=objective, steps=1)
    if expected == "refused":
        with pytest.raises(ConfigError, match="cannot be trained on `sampled` records"):
            train.run(made)
    else:
        assert train.run(made).meta["guarantee"]["level"] == expected


def test_scores_above_zero_reach_the_trainer(foreign: Foreign, tmp_path: Path) -> None:
    made = job(foreign, tmp_path)
    with residualize.open_engine(made) as engine:
        raised = replace(engine, token_KV=engine.token_KV - 30, context_KPS=engine.context_KPS - 30)
    run(made, engine=raised)
    assert verify_set(made.directory) == []
    batch = next(read_split(made.directory, "train"))
    assert batch.lp is not None
    assert batch.lp.min() > 0


# ---------------------------------------------------------------------------------------------
# Interruptions and refusals


CHILD = """
import sys, time
from pathlib import Path
from stages import residualize
from tests.stages.test_residualize import Foreign, job
made = job(Foreign(Path(sys.argv[1]), Path(sys.argv[1]) / "records"), Path(sys.argv[2]))
with residualize.open_engine(made) as engine:
    for spec in residualize.plan(made)[:2]:
        residualize.run_shard(made, spec, engine)
time.sleep(300)
"""


def test_killed_half_way_it_leaves_no_set_and_goes_on(foreign: Foreign, tmp_path: Path) -> None:
    made = job(foreign, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(foreign.root), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        for _ in _until(120):
            if find_part(made.directory, 1) is not None or process.poll() is not None:
                break
        process.send_signal(signal.SIGKILL)
    with pytest.raises(DataError, match="not a committed set"):
        read_manifest(made.directory)
    before = {path: path.stat().st_mtime_ns for path in made.site.glob("part-*")}
    assert len(before) == 2
    run(made)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = job(foreign, tmp_path / "whole")
    run(whole)
    assert [p.sha256 for p in read_manifest(made.directory).parts] == [
        p.sha256 for p in read_manifest(whole.directory).parts
    ]


def _until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def test_what_cannot_be_corrected_is_refused(
    foreign: Foreign, done: Job[Residualize], tmp_path: Path
) -> None:
    twice = job(Foreign(foreign.root, done.site), tmp_path)
    with pytest.raises(DataError, match="is corrected already"):
        residualize.plan(twice)
    with pytest.raises(DataError, match="holds model, not records"):
        residualize.plan(job(Foreign(foreign.root, foreign.root / "reference"), tmp_path))


def test_through_the_command(foreign: Foreign, tmp_path: Path) -> None:
    """A set from elsewhere is corrected without its teacher being read."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [teacher]
        path = "{foreign.root / "teacher"}"
        [student]
        path = "{foreign.root / "reference"}"
        [residualize]
        source = "{foreign.source}"
        [train]
        data = "residualize"
        steps = 2
        batch_size = 16
        objective = {{ name = "lightning" }}
        """
    )
    outcome = afterglow("run", "residualize", "--config", recipe, store=tmp_path / "store")
    assert outcome.code == 0, outcome.err
    assert outcome.result["ran"] == ["residualize"]
    made = Path(outcome.result["sets"]["residualize"])
    assert read_manifest(made).meta["record"]["correction"]["records"] == KEY
    more = afterglow(
        "plan", "--config", recipe, "--set", "residualize.folds=4", store=tmp_path / "store"
    )
    nodes = {node["node"]: node for node in more.result["nodes"]}
    assert not nodes["residualize"]["done"]
