"""The whole chain through the command: what it leaves, what it caches, what it re-runs and why."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.manifest import read_manifest
from storage.rows import Rows
from storage.sets import verify_set
from storage.shard import read_rows
from tests.command import TINY, Outcome, afterglow, sets_named

STUDENTS = ("continued-sft", "lightning", "reverse_kl")


def states(store: Path, *overrides: str) -> dict[str, bool]:
    """Node name -> whether its set is there, for the tiny recipe with overrides."""
    extra = [part for override in overrides for part in ("--set", override)]
    planned = afterglow("plan", *TINY, *extra, store=store)
    assert planned.code == 0, planned.err
    return {node["node"]: node["done"] for node in planned.result["nodes"]}


def to_do(store: Path, *overrides: str) -> set[str]:
    return {name for name, done in states(store, *overrides).items() if not done}


def test_the_table_has_a_row_for_every_model(chain: Outcome) -> None:
    for row in ("teacher", "sft", *STUDENTS):
        assert any(line.split()[:1] == [row] for line in chain.out.splitlines()), chain.out


def test_the_page_of_the_report_names_every_set(chain: Outcome, store: Path) -> None:
    (report,) = sets_named(store, "report")
    page = (report / "report.html").read_text()
    inputs = {path.parent.name.rpartition("-")[2] for path in store.glob("*/manifest.json")}
    unnamed = {key for key in inputs if f"({key})" not in page}
    assert unnamed == {report.name.rpartition("-")[2]}


def test_every_set_is_sound(chain: Outcome, store: Path) -> None:
    sets = [path.parent for path in store.glob("*/manifest.json")]
    assert len(sets) == 1 + 2 + 4 + len(STUDENTS) + 5 + 1
    for directory in sets:
        assert verify_set(directory) == []
        assert (directory / "provenance.json").exists()
        assert (directory / "config.resolved.toml").exists()


def test_the_teacher_travels_through_every_manifest(chain: Outcome, store: Path) -> None:
    teachers = {
        str((read_manifest(path.parent).teacher or {}).get("weights"))
        for stage in ("sft-data", "sft", "rollouts", "teacher-logits", "train")
        for path in store.glob(f"{stage}-*/manifest.json")
    }
    assert len(teachers) == 1
    assert "None" not in teachers


def test_the_cost_ledger_has_time_and_tokens(chain: Outcome, store: Path) -> None:
    for path in store.glob("rollouts-*/provenance.json"):
        cost = json.loads(path.read_text())["cost"]
        assert cost["seconds"] > 0
        assert cost["tokens"] > 0
        assert cost["bytes"] > 0


def test_running_again_does_nothing_and_imports_no_torch(chain: Outcome, store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*")}
    again = afterglow("run", "report", *TINY, store=store, python=("-X", "importtime"))
    assert again.code == 0, again.err
    assert again.result["ran"] == []
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*")} == before
    imported = {line.rpartition("|")[2].strip() for line in again.err.splitlines()}
    assert "pydantic" in imported
    assert imported.isdisjoint({"torch", "transformers", "vllm"})


def test_changing_the_objective_reruns_only_train_and_later(chain: Outcome, store: Path) -> None:
    changed = to_do(store, "train.objective.form=bucketed")
    assert changed == {"train.reverse_kl", "evaluate.reverse_kl", "report"}


def test_changing_tau_reruns_teacher_logits_and_later(chain: Outcome, store: Path) -> None:
    changed = to_do(store, "teacher-logits.record.tau=0.05")
    stages = {name.split(".")[0] for name in changed}
    assert stages == {"teacher-logits", "train", "evaluate", "report"}
    assert "train.continued-sft" not in changed  # it never reads a record


def test_what_is_done_is_not_checked_again(chain: Outcome, store: Path) -> None:
    impossible = ("--set", "rollouts.run.max_model_len=7")
    done = afterglow("check", *TINY, *impossible, store=store)
    assert (done.code, done.result["findings"]) == (0, []), done.out
    again = afterglow("check", *TINY, *impossible, "--set", "rollouts.n=2", store=store)
    assert again.code == 65
    assert "run.max_model_len = 7" in again.out


def test_explain_says_why(chain: Outcome, store: Path) -> None:
    why = afterglow("explain", *TINY, "--set", "teacher-logits.record.tau=0.05", store=store)
    because = {node["node"]: node.get("because") for node in why.result["nodes"]}
    assert because["teacher-logits"] == ["config.record.tau: 0.023 -> 0.05"]
    assert any("from teacher-logits" in line for line in because["train.reverse_kl"])


def test_execution_options_change_nothing(chain: Outcome, store: Path) -> None:
    overrides = ["rollouts.run.max_sequences=3", "train.run.tokens_per_microbatch=64"]
    assert to_do(store, *overrides, "name=other") == set()


def test_a_second_student_needs_no_teacher(chain: Outcome, store: Path) -> None:
    """Another student and schedule over the same records: the teacher is not even read."""
    second = ("train.init=pretrain:base", "train.steps=2", "evaluate.teacher=false")
    extra = [part for override in second for part in ("--set", override)]
    done = afterglow("run", "train.reverse_kl", *TINY, *extra, store=store)
    assert done.code == 0, done.err
    assert done.result["ran"] == ["train.reverse_kl"]


def test_a_second_round_starts_where_the_first_has_ended(chain: Outcome, store: Path) -> None:
    """Schedulers go through the stages once more: what waits for the first round comes then."""
    rounds = ("train.rounds=2", "rollouts.prompts.limit=64", "rollouts.run.engine=transformers")
    extra = [part for override in rounds for part in ("--set", override)]

    def call(*arguments: str) -> Outcome:
        done = afterglow(*arguments, *TINY, *extra, store=store)
        assert done.code == 0, done.err
        return done

    def units(stage: str) -> list[str]:
        return [unit[1] for unit in call("units", stage).result["units"]]

    assert set(units("rollouts")) == {"rollouts"}
    call("run", "train.reverse_kl")
    assert set(units("rollouts")) == {"rollouts.reverse_kl-2"}
    assert units("teacher-logits") == []
    call("commit", "teacher-logits", "--if-present")

    second = call("run", "train.reverse_kl-2")
    ran = ["rollouts.reverse_kl-2", "teacher-logits.reverse_kl-2", "train.reverse_kl-2"]
    assert second.result["ran"] == ran
    (student,) = (Path(path) for path in second.result["sets"].values())
    read = read_manifest(student)
    first = read_manifest(Path(call("run", "train.reverse_kl").result["sets"]["train.reverse_kl"]))
    assert read.teacher == first.teacher
    inputs = dict(read.payload)["inputs"]
    assert isinstance(inputs, dict)
    assert inputs["init"]["key"] == first.key


@pytest.mark.parametrize("override", ["seed=1", "rollouts.sampling.temperature=0.9"])
def test_what_decides_the_rollouts_changes_them(chain: Outcome, store: Path, override: str) -> None:
    assert "rollouts" in to_do(store, override)


@pytest.mark.engine
def test_a_student_learns_from_records_made_in_vllm(
    chain: Outcome, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers hold the teacher together; what they record is what one process records."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # one worker a NUMA node otherwise
    run = "teacher-logits.run"
    overrides = (f"{run}.engine=vllm", f"{run}.tensor_parallel=2", "teacher-logits.record.tau=0.04")
    extra = [part for override in overrides for part in ("--set", override)]
    done = afterglow("run", "train.reverse_kl", *TINY, *extra, store=store)
    assert done.code == 0, done.err
    assert done.result["ran"] == ["teacher-logits", "train.reverse_kl"]
    (student,) = (read_manifest(Path(path)) for path in done.result["sets"].values())
    made = store / f"teacher-logits-{student.payload['inputs']['data']['key'][:12]}"
    same = read_manifest(made).payload["inputs"]["sequences"]
    (plain,) = (
        path
        for path in sets_named(store, "teacher-logits")
        if path != made and read_manifest(path).payload["inputs"]["sequences"] == same
    )
    found, expected = (
        Rows.concat([r for part in read_manifest(path).parts for r in read_rows(path / part.file)])
        for path in (made, plain)
    )
    for name in ("seq_id", "prompt", "tok", "ref_lp"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["lp"], expected["lp"], atol=1e-4)
    np.testing.assert_allclose(found["ent"], expected["ent"], atol=4e-3)  # float16
    assert found["nu"].sum() < expected["nu"].sum()
    assert 'engine = "vllm"' in (made / "config.resolved.toml").read_text()
    assert 'engine = "vllm"' not in (plain / "config.resolved.toml").read_text()


def test_a_plan_takes_its_times_from_what_was_measured(chain: Outcome, store: Path) -> None:
    """Other students and record sets than those that are there, on the machine that made them."""
    other = ("--set", "train.steps=6", "--set", "teacher-logits.record.tau=0.1")
    found = afterglow("plan", "report", *TINY, *other, store=store)
    assert found.code == 0, found.err
    nodes = {one["node"]: one for one in found.result["nodes"]}
    for name in ("teacher-logits", "train.reverse_kl"):
        assert nodes[name]["time"]["basis"] == "measured"
        assert nodes[name]["time"]["source"].startswith(name.split(".")[0])
        assert 0 < nodes[name]["time"]["seconds"] < 600
    assert "measured on this machine: " in found.out
