"""The DAGs in a real Airflow: what runs, what is retried, what triggers what."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.graph import STAGES
from tests.command import TINY_RECIPE
from tests.schedulers.airflow import Airflow, Json
from tests.schedulers.environment import Flaky

pytestmark = [pytest.mark.scheduler, pytest.mark.timeout(3000)]

STUDENT = """
store = "{store}"
[teacher]
path = "nobody/never-read"
[train]
init = "scratch"
steps = 2
batch_size = 8
objective = {{ name = "forward_kl" }}
architecture = {{ hidden_size = 32, layers = 1, heads = 1, max_positions = 64 }}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def flaky(tmp_path_factory: pytest.TempPathFactory) -> Flaky:
    return Flaky(tmp_path_factory.mktemp("flaky"))


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, store: Path, flaky: Flaky
) -> Iterator[Airflow]:
    folder = tmp_path_factory.mktemp("airflow")
    students = [folder / "small.toml", folder / "other.toml"]
    for index, file in enumerate(students):
        file.write_text(f"seed = {index}\n" + STUDENT.format(store=store))
    running = Airflow(
        folder,
        {
            "AFTERGLOW_COMMAND": flaky.command,
            "AFTERGLOW_GPU_POOL": "gpu",
            "AFTERGLOW_STUDENTS": " ".join(map(str, students)),
        },
    )
    running.start()
    try:
        running.ask("pools", "POST", name="gpu", slots=1)
        for dag in ("afterglow", "afterglow_small", "afterglow_other"):
            running.unpause(dag)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def first(airflow: Airflow, store: Path) -> dict[str, Json]:
    """Tasks of the first run of the chain."""
    state = airflow.trigger("afterglow", "first", conf(store))
    tasks = airflow.tasks("afterglow", "first")
    assert state == "success", states(tasks)
    return tasks


def conf(store: Path) -> Json:
    return {"config": [str(TINY_RECIPE)], "overrides": [f"store={store}"]}


def states(tasks: dict[str, Json]) -> dict[str, str]:
    return {name: task["state"] for name, task in tasks.items()}


def committed(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("*/manifest.json")}


def named(folders: set[str]) -> set[str]:
    return {folder.rpartition("-")[0] for folder in folders}


def test_the_chain_runs_with_shards_side_by_side(first: dict[str, Json], store: Path) -> None:
    assert named(committed(store)) >= {s.name for s in STAGES} - {"derive", "residualize"}
    shards = [task for name, task in first.items() if name.startswith("rollouts.run[")]
    shown = [task["rendered_map_index"] for task in shards]
    assert sorted(shown) == ["rollouts 0", "rollouts 1", "rollouts 2", "rollouts 3"]
    students = [task for name, task in first.items() if name.startswith("train.run[")]
    assert len(students) == 3
    assert {task["try_number"] for task in first.values() if task["state"] == "success"} == {1}


def test_a_stage_the_recipe_lacks_is_passed_through(first: dict[str, Json]) -> None:
    assert first["residualize.units"]["state"] == "success"
    assert first["residualize.run"]["state"] == "skipped"
    assert first["residualize.commit"]["state"] == "skipped"


def test_tasks_that_use_a_gpu_wait_for_the_pool(first: dict[str, Json]) -> None:
    """The scheduler may run two tasks at once, the pool has one place."""
    gpu = {stage.name.replace("-", "_") for stage in STAGES if stage.gpu}
    pooled = {name for name, task in first.items() if task["pool"] == "gpu"}
    assert {name.partition(".")[0] for name in pooled} == gpu
    assert all(".run" in name for name in pooled)
    spans = sorted(
        (first[name]["start_date"], first[name]["end_date"])
        for name in pooled
        if first[name]["state"] == "success"
    )
    assert len(spans) > len(gpu)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_a_second_run_does_nothing_and_updates_no_asset(
    first: dict[str, Json], airflow: Airflow, store: Path, flaky: Flaky
) -> None:
    sets, worked = committed(store), len(flaky.calls("run", f"store={store}"))
    assert airflow.trigger("afterglow", "again", conf(store)) == "success"
    again = states(airflow.tasks("afterglow", "again"))
    assert {state for task, state in again.items() if ".units" in task} == {"success"}
    assert {state for task, state in again.items() if ".units" not in task} == {"skipped"}
    assert len(flaky.calls("run", f"store={store}")) == worked
    assert committed(store) >= sets
    (event,) = airflow.events("afterglow://teacher-logits")
    assert event["source_run_id"] == "first"
    (directory,) = event["extra"].values()
    assert (Path(directory) / "manifest.json").exists()


def test_committed_records_train_the_students_that_wait_for_them(
    first: dict[str, Json], airflow: Airflow, store: Path
) -> None:
    """Both, once each: one set was committed, and the run that found nothing to do added none."""
    (event,) = airflow.events("afterglow://teacher-logits")
    (records,) = event["extra"].values()
    key = json.loads((Path(records) / "manifest.json").read_text())["key"]
    for dag in ("afterglow_small", "afterglow_other"):
        (run,) = airflow.runs(dag)
        assert run["run_type"] == "asset_triggered"
        airflow.wait(dag, run["dag_run_id"])
        tasks = airflow.tasks(dag, run["dag_run_id"])
        assert {name.partition(".")[0] for name in tasks} == {
            "records", "residualize", "train", "evaluate", "report",
        }  # fmt: skip
        assert tasks["train.run[0]"]["state"] == "success", states(tasks)
    trained = [json.loads(path.read_text()) for path in store.glob("train-*/manifest.json")]
    theirs = [found for found in trained if found["name"] == "train.forward_kl"]
    assert [found["payload"]["inputs"]["data"]["key"] for found in theirs] == [key, key]


def test_exit_code_75_is_tried_again_and_65_is_not(
    airflow: Airflow, flaky: Flaky, tmp_path: Path
) -> None:
    flaky.fail("run", "corpus", f"store={tmp_path}", code=75)
    flaky.fail("commit", "corpus", f"store={tmp_path}", code=75)
    flaky.fail("units", "pretrain", f"store={tmp_path}", code=65)
    assert airflow.trigger("afterglow", "retried", conf(tmp_path)) == "failed"
    tasks = airflow.tasks("afterglow", "retried")
    ended = {name: (task["state"], task["try_number"]) for name, task in tasks.items()}
    assert ended["corpus.run[0]"] == ("success", 2)
    assert ended["corpus.commit"] == ("success", 2)
    assert named(committed(tmp_path)) == {"corpus"}
    assert ended["pretrain.units"] == ("failed", 1)
    assert len(flaky.calls("units", "pretrain", f"store={tmp_path}")) == 1
    assert ended["report.commit"][0] == "upstream_failed"


def test_a_failed_shard_is_not_followed_by_a_commit(
    airflow: Airflow, flaky: Flaky, tmp_path: Path
) -> None:
    broken = conf(tmp_path)
    broken["overrides"] += ["corpus.sequences_per_part=128"]
    flaky.fail("run", "corpus", "2", f"store={tmp_path}", code=65)
    assert airflow.trigger("afterglow", "broken", broken) == "failed"
    tasks = states(airflow.tasks("afterglow", "broken"))
    assert [tasks[f"corpus.run[{index}]"] for index in range(4)] == [
        "success", "success", "failed", "success",
    ]  # fmt: skip
    assert tasks["corpus.commit"] == "upstream_failed"
    assert flaky.calls("commit", f"store={tmp_path}") == []
    assert committed(tmp_path) == set()
    assert len(list(tmp_path.glob("corpus-*/part-*.parquet"))) == 3
