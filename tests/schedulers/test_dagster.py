"""The assets in a real Dagster: materialised, then again for nothing; what is tried again."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.graph import STAGES
from tests.schedulers.environment import DAGS, SMALL, Flaky, make_environment, variables

pytestmark = [pytest.mark.scheduler, pytest.mark.timeout(3000)]

ONE_IN_A_POOL = "concurrency:\n  pools:\n    default_limit: 1\ntelemetry:\n  enabled: false\n"


class Dagster:
    """One Dagster instance in a folder of its own."""

    def __init__(self, folder: Path, flaky: Flaky) -> None:
        self.bin = make_environment("dagster")
        self.environment = variables(self.bin, flaky.command) | {"DAGSTER_HOME": str(folder)}
        self.environment["PYTHONPATH"] += f"{os.pathsep}{DAGS}"
        self.folder = folder
        (folder / "dagster.yaml").write_text(ONE_IN_A_POOL)

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of Dagster's environment."""
        return subprocess.run(
            [self.bin / arguments[0], *arguments[1:]],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def program(self, *arguments: str) -> dict[str, Any]:
        """What dagster_program.py prints."""
        done = self("python", Path(__file__).with_name("dagster_program.py"), *arguments)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    def materialize(self, asset: str, partition: str) -> dict[str, Any]:
        """The command of the documentation, a process for each step; the run it made."""
        self.program("add", partition)
        file = DAGS / "dagster_afterglow.py"
        selected = ("--select", asset, "--partition", partition)
        self("dagster", "asset", "materialize", "-f", file, *selected)
        return self.program("runs")["runs"][-1]


@pytest.fixture(scope="module")
def flaky(tmp_path_factory: pytest.TempPathFactory) -> Flaky:
    return Flaky(tmp_path_factory.mktemp("flaky"))


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory, flaky: Flaky) -> Dagster:
    return Dagster(tmp_path_factory.mktemp("dagster"), flaky)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def partition(store: Path, *overrides: str) -> str:
    return " ".join([str(SMALL), f"store={store}", *overrides])


def count(run: dict[str, Any], event: str, step: str) -> int:
    return sum(one["event"] == event and one["step"].endswith(step) for one in run["steps"])


@pytest.fixture(scope="module")
def chain(dagster: Dagster, store: Path) -> dict[str, Any]:
    """The whole chain, twice."""
    dagster.program("add", partition(store))
    dagster.program("materialize", partition(store))
    return dagster.program("materialize", partition(store))


def test_every_stage_is_materialised(chain: dict[str, Any]) -> None:
    first = chain["runs"][0]
    assert first["status"] == "SUCCESS"
    names = {stage.name.replace("-", "_") for stage in STAGES}
    assert chain["sets"].keys() == names
    assert {name for name, sets in chain["sets"].items() if sets} == {
        "corpus", "pretrain", "teacher_logits", "train",
    }  # fmt: skip
    assert sum(count(first, "STEP_SUCCESS", f"corpus_run[{index}]") for index in range(9)) == 3
    for sets in chain["sets"].values():
        assert all((Path(directory) / "manifest.json").exists() for directory in sets.values())


def test_a_second_materialisation_does_nothing(chain: dict[str, Any], flaky: Flaky) -> None:
    second = chain["runs"][1]
    assert second["status"] == "SUCCESS"
    ran = [one["step"] for one in second["steps"] if "_run" in one["step"]]
    assert ran == []
    calls = [json.dumps(call) for call in flaky.calls("run")]
    assert len(calls) == len(set(calls))


def test_steps_that_use_a_gpu_wait_for_the_pool(
    chain: dict[str, Any], dagster: Dagster, store: Path
) -> None:
    """Two models to be made from one corpus, one place in the pool."""
    more = "pretrain.other={steps=2,batch_size=8}"
    both = partition(store, "pretrain.teacher.seed=5", more)
    run = dagster.materialize("pretrain", both)
    assert run["status"] == "SUCCESS"
    spans: dict[str, list[float]] = {}
    for one in run["steps"]:
        if "_run[" in one["step"]:
            spans.setdefault(one["step"], []).append(one["at"])
    assert len(spans) == 2
    earlier, later = sorted(spans.values())
    assert earlier[-1] <= later[0]


def test_exit_code_75_is_tried_again(dagster: Dagster, flaky: Flaky, tmp_path: Path) -> None:
    flaky.fail("run", "corpus", "0", f"store={tmp_path}", code=75)
    run = dagster.materialize("corpus", partition(tmp_path))
    assert run["status"] == "SUCCESS"
    assert count(run, "STEP_UP_FOR_RETRY", "corpus_run[0]") == 1
    assert len(list(tmp_path.glob("corpus-*/manifest.json"))) == 1


def test_a_failed_shard_is_neither_tried_again_nor_committed(
    dagster: Dagster, flaky: Flaky, tmp_path: Path
) -> None:
    flaky.fail("run", "corpus", "1", f"store={tmp_path}", code=65)
    run = dagster.materialize("corpus", partition(tmp_path))
    assert run["status"] == "FAILURE"
    assert count(run, "STEP_SUCCESS", "corpus_run[0]") == 1
    assert count(run, "STEP_FAILURE", "corpus_run[1]") == 1
    assert count(run, "STEP_UP_FOR_RETRY", "corpus_run[1]") == 0
    assert flaky.calls("commit", f"store={tmp_path}") == []
    assert list(tmp_path.glob("corpus-*/manifest.json")) == []
