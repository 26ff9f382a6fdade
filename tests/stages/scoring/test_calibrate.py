"""tau from a mean number of entries: the right one, found once, the same for every part."""

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stages import teacher_logits
from stages.config.record_kinds import TAIL_FLOOR, HeadTail, Record
from stages.scoring import calibrate as calibration
from stages.scoring import sampler
from stages.scoring.calibrate import (
    FILE,
    FoundTau,
    Heads,
    calibrate,
    calibrated,
    find_tau,
    sample,
    stored_tau,
)
from stages.scoring.drawn import Records
from storage.errors import ConfigError, DataError, RetryError
from storage.kinds import MIN_TAU
from storage.rows import Rows
from storage.shard import read_meta
from tests.stages.scoring.cases import sequences, write_teacher
from tests.stages.scoring.sampler_cases import softmax
from tests.stages.test_teacher_logits import job_of, read_all, write_sequences
from tests.world import run

# 1 / tau is no whole number: of a flat row, rounding would decide between n and n + 1 entries
TAUS = (MIN_TAU, 0.0103, 0.023, 0.053, 0.21, 0.61, 0.999)


def some_logits(R: int = 400, V: int = 700) -> np.ndarray:
    rng = np.random.default_rng(0)
    spread_R1 = rng.choice([0.3, 1.0, 3.0, 6.0], (R, 1))
    return (spread_R1 * rng.standard_normal((R, V))).astype(np.float32)


def drawn(z_RV: np.ndarray, cand_RC: np.ndarray, tau: float, copies: int = 1) -> Records:
    """Records whose copies divide the uniforms of a position evenly."""
    R, V = z_RV.shape
    record = HeadTail(tau=tau, candidates=cand_RC.shape[1], copies=copies)
    u_RU = (np.arange(copies) + np.random.default_rng(4).random((R, 1))) / copies
    return sampler.on_cpu(z_RV, V, z_RV.argmax(axis=1), cand_RC, u_RU, record)


def kept(z_RV: np.ndarray, cand_RC: np.ndarray, tau: float) -> float:
    """Mean number of entries the kernel keeps of a position."""
    found = drawn(z_RV, cand_RC, tau, copies=16).nu_RM
    assert found is not None
    return float(found.mean())


def heads_of(z_RV: np.ndarray, cand_RC: np.ndarray) -> Heads:
    """As the stage forms them: from records at the least tau, in stored precision."""
    columns = drawn(z_RV, cand_RC, MIN_TAU).columns()
    R = len(z_RV)
    row = {"seq_id": [0], "prompt": [0], "tok": np.zeros(R, int)}
    rows = Rows.from_columns(row | columns, {"prompt": [0, 1], "position": [0, R]})
    return Heads.of(rows, cand_RC, TAIL_FLOOR)


@pytest.mark.parametrize("candidates", [0, 3])
@pytest.mark.parametrize("tau", TAUS)
def test_entries_are_those_the_kernel_would_keep(tau: float, candidates: int) -> None:
    z_RV = some_logits()
    cand_RC = np.random.default_rng(1).integers(0, 700, (len(z_RV), candidates))
    # half precision moves a probability near the threshold across it now and then
    expected = kept(z_RV, cand_RC, tau)
    assert heads_of(z_RV, cand_RC).mean_entries(tau) == pytest.approx(expected, rel=2e-3)


def test_entries_are_exact_where_probabilities_are() -> None:
    z_RV = some_logits()
    p_RK = -np.sort(-softmax(z_RV), axis=1)[:, :250]
    heads = Heads(p_RK, np.zeros_like(p_RK, dtype=bool), 1 - p_RK.sum(axis=1), TAIL_FLOOR)
    for tau in TAUS[1:]:
        expected = kept(z_RV, np.zeros((len(z_RV), 0), int), tau)
        assert heads.mean_entries(tau) == pytest.approx(expected, abs=1.5 / len(z_RV))


def test_a_tail_below_the_floor_counts_as_often_as_it_is_kept() -> None:
    heads = Heads(np.array([[0.99]]), np.zeros((1, 1), dtype=bool), np.array([0.01]), TAIL_FLOOR)
    assert heads.mean_entries(0.1) == pytest.approx(1 + 0.01 / (0.1 * TAIL_FLOOR))
    assert replace(heads, floor=0.0).mean_entries(0.1) == 2
    z_RV = np.log(np.array([[0.99, 0.006, 0.004]], np.float32))
    assert kept(z_RV, np.zeros((1, 0), int), 0.1) == pytest.approx(1.14, abs=1 / 16)


@pytest.mark.parametrize("entries", [4.0, 6.5, 12.0, 25.0, 50.0])
def test_bisection_meets_the_target(entries: float) -> None:
    z_RV = some_logits()
    tau = find_tau(heads_of(z_RV, np.zeros((len(z_RV), 0), int)), entries)
    assert float(f"{tau:.4g}") == pytest.approx(tau, rel=1e-12)
    # half of the rows is flat and keeps ceil(1 / tau) entries: steps of a half
    found = kept(z_RV, np.zeros((len(z_RV), 0), int), tau)
    assert found == pytest.approx(entries, abs=0.26)


@pytest.mark.parametrize("entries", [1.0, 190.0])
def test_an_unreachable_number_names_the_range(entries: float) -> None:
    heads = heads_of(some_logits(), np.zeros((400, 0), int))
    low, high = heads.mean_entries(0.999), heads.mean_entries(MIN_TAU)
    with pytest.raises(ConfigError, match=rf"between {low:.2f} .* and {high:.2f}") as caught:
        find_tau(heads, entries)
    assert f"entries = {entries:g} cannot be reached" in str(caught.value)


# ---------------------------------------------------------------------------------------------
# The sample


def test_the_sample_is_bounded_and_comes_from_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "POSITIONS", 100)
    monkeypatch.setattr(calibration, "LONGEST", 5)
    rows, read = sequences(90), list[int]()

    def groups() -> object:
        for start in range(0, 90, 6):
            read.append(start)
            yield rows.slice(start, start + 6)

    taken = sample(groups())  # type: ignore[reportArgumentType]
    assert 100 <= taken.tokens < 105
    assert len(read) == -(-len(taken) // 6) < 15
    assert int(taken.lengths("position").max()) == 5
    for index in range(len(taken)):
        one, whole = taken.sequence(index), rows.sequence(index)
        kept = min(5, len(whole["tok"]))
        np.testing.assert_array_equal(one["prompt"], whole["prompt"])
        np.testing.assert_array_equal(one["tok"], whole["tok"][:kept])
        np.testing.assert_array_equal(one["cand"], whole["cand"][: 4 * kept])


def test_few_long_sequences_are_not_enough_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "POSITIONS", 1)
    assert len(sample([sequences(90)])) == calibration.SEQUENCES
    assert len(sample([sequences(3)])) == 3


# ---------------------------------------------------------------------------------------------
# The stage


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def source(tmp_path: Path, teacher: Path) -> Path:
    rows, edges = sequences(80), (0, 40, 73, 80)
    write_sequences(tmp_path / "rollouts", [rows.slice(*e) for e in pairwise(edges)], teacher)
    return tmp_path / "rollouts"


RECORD = {"entries": 9.0, "candidates": 2, "copies": 2}


def test_every_part_has_the_tau_that_meets_the_target(
    tmp_path: Path, teacher: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(tmp_path, teacher, source, record=RECORD)
    with caplog.at_level(logging.INFO, "stages.scoring.calibrate"):
        manifest = run(job)
    tau = manifest.meta["record"]["tau"]
    assert MIN_TAU <= tau < 1
    assert manifest.meta["record"]["entries"] == 9.0
    for part in manifest.parts:
        assert read_meta(job.directory / part.file).record == manifest.meta["record"]
    nu = np.concatenate([read_all(job.site, part)["nu"] for part in manifest.parts])
    assert nu.mean() == pytest.approx(9.0, rel=0.02)  # the sample was the whole set
    found = json.loads((job.directory / FILE).read_text())
    assert found["mean"] == pytest.approx(nu.mean(), rel=2e-3)
    assert found["positions"] == sum(part.tokens for part in manifest.parts)
    assert any(f"tau = {tau:g} keeps" in line for line in caplog.messages)
    assert FILE in {file.path for file in manifest.files}


def test_the_records_are_those_of_the_same_tau_given_outright(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path / "a", teacher, source, record=RECORD)
    manifest = run(job)
    fixed = {**RECORD, "entries": None, "tau": manifest.meta["record"]["tau"]}
    plain = job_of(tmp_path / "b", teacher, source, record=fixed)
    for one, other in zip(manifest.parts, run(plain).parts, strict=True):
        rows, same = read_all(job.site, one), read_all(plain.site, other)
        for name in rows.columns:
            np.testing.assert_array_equal(rows[name], same[name], err_msg=name)


def test_neither_batching_nor_the_seed_changes_tau(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    taus: list[float] = []
    for number, seed in enumerate((5, 6)):
        sizes = {"tokens_per_batch": 30 + 300 * number, "rows_per_chunk": 4 + 60 * number}
        job = job_of(tmp_path / str(number), teacher, source, record=RECORD, run=sizes)
        with teacher_logits.open_engine(replace(job, seed=seed)) as engine:
            taus.append(getattr(engine.record, "tau", 0))
    assert taus[0] == taus[1]


def test_the_first_runner_decides(
    tmp_path: Path, teacher: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loser of a race has found another tau (other hardware, say), but takes the winner's."""
    job = job_of(tmp_path, teacher, source, record=RECORD)

    def slow(*arguments: object) -> object:
        found = calibrate(*arguments)  # type: ignore[reportArgumentType]
        other = {"key": job.key, "entries": 9.0, "tau": 0.111, "mean": 9.1, "positions": 3}
        (job.directory / FILE).write_text(json.dumps(other))
        return found

    monkeypatch.setattr(teacher_logits, "calibrate", slow)
    with teacher_logits.open_engine(job) as engine:
        assert engine.record == HeadTail(**RECORD).calibrated(0.111)
    monkeypatch.setattr(teacher_logits, "calibrate", lambda *_: pytest.fail("already decided"))
    with teacher_logits.open_engine(job) as engine:
        assert engine.record == HeadTail(**RECORD).calibrated(0.111)


def test_parts_of_another_tau_are_refused(tmp_path: Path, teacher: Path, source: Path) -> None:
    job = job_of(tmp_path, teacher, source, record=RECORD)
    run(job)
    path = job.directory / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tau": 0.5}))
    with pytest.raises(DataError, match=r"another tau than 0\.5"):
        teacher_logits.commit(job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 7.0}, "damaged"),
        ({"tau": None}, "damaged"),
        ({"key": "x"}, "another set or another number"),
        ({"entries": 8.0}, "another set or another number"),
        (None, "damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(
    tmp_path: Path, teacher: Path, source: Path, change: dict[str, object] | None, message: str
) -> None:
    job = job_of(tmp_path, teacher, source, record=RECORD)
    job.directory.mkdir(parents=True)
    good = {"key": job.key, "entries": 9.0, "tau": 0.1, "mean": 9.1, "positions": 3}
    text = "{" if change is None else json.dumps(good | change)
    (job.directory / FILE).write_text(text)
    with pytest.raises(DataError, match=message), teacher_logits.open_engine(job):
        pass


@pytest.mark.parametrize("kind", ["counts", "top_k", "sampled"])
def test_records_of_other_kinds_are_not_calibrated(tmp_path: Path, kind: str) -> None:
    record = Record.model_validate({"kind": kind})

    def find(_: object) -> FoundTau:
        raise AssertionError("nothing to find")

    assert calibrated(tmp_path, "0" * 64, record, find) == record
    assert stored_tau(tmp_path, "0" * 64, record) == record
    assert not list(tmp_path.iterdir())


def test_without_a_calibration_there_is_no_commit(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path, teacher, source, record=RECORD)
    run(job)
    (job.directory / FILE).unlink()
    with pytest.raises(RetryError, match="calibrate tau"):
        teacher_logits.commit(job)


def test_an_unreachable_target_stops_before_anything_is_written(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path, teacher, source, record={"entries": 150.0})
    with pytest.raises(ConfigError, match="cannot be reached"), teacher_logits.open_engine(job):
        pass
    assert not (job.directory / FILE).exists()


def test_a_set_without_positions_is_refused(tmp_path: Path, teacher: Path) -> None:
    item = sequences(1).sequence(0)
    empty = {"tok": [], "ref_lp": [], "cand": []}
    write_sequences(tmp_path / "set", [Rows.from_sequences([item | empty])], teacher)
    job = job_of(tmp_path, teacher, tmp_path / "set", record=RECORD)
    with pytest.raises(DataError, match="no positions"), teacher_logits.open_engine(job):
        pass
