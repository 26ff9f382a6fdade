"""A real Airflow in a folder of its own: database, scheduler, DAG processor and API server."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.schedulers.environment import DAGS, make_environment, variables

SERVICES = ("scheduler", "dag-processor", "api-server")
LONGEST = 2400.0
ENDED = ("success", "failed")

Json = dict[str, Any]


class Airflow:
    """One Airflow, spoken to through its REST interface (/api/v2)."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.bin = make_environment("airflow")
        self.environment = variables(self.bin, settings["AFTERGLOW_COMMAND"]) | {
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": self.url.rpartition(":")[2],
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(64).hex(),
        } | settings  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        self._token = ""

    def __call__(self, *arguments: str) -> str:
        """Standard output of `airflow ARGUMENTS`."""
        done = subprocess.run(
            [self.bin / "airflow", *arguments],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """The services, after the database; returns when they answer."""
        self("db", "migrate")
        for service in SERVICES:
            with (self.folder / f"{service}.log").open("wb") as log:
                process = subprocess.Popen(
                    [self.bin / "airflow", service],
                    env=self.environment, cwd=self.folder,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            self.processes.append(process)
        self._token = _until("the API server", self._log_in)

    def stop(self) -> None:
        """Every service with the workers it has started."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            process.wait(60)

    def _log_in(self) -> str:
        try:
            with urlopen(f"{self.url}/auth/token", timeout=30) as answer:
                return json.load(answer)["access_token"]
        except URLError:
            return ""

    def ask(self, path: str, method: str = "GET", **body: object) -> Json:
        """What the REST interface answers."""
        request = Request(
            f"{self.url}/api/v2/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def unpause(self, dag: str) -> None:
        """Wait until a DAG has been parsed, and let it run."""

        def listed() -> bool:
            return dag in [one["dag_id"] for one in self.ask("dags")["dags"]]

        _until(dag, listed, lambda: str(self.ask("importErrors")))
        self.ask(f"dags/{dag}", "PATCH", is_paused=False)

    def trigger(self, dag: str, name: str, conf: Json) -> str:
        """Start a run and wait for its end; its state."""
        self.ask(f"dags/{dag}/dagRuns", "POST", dag_run_id=name, conf=conf, logical_date=None)
        return self.wait(dag, name)

    def wait(self, dag: str, name: str) -> str:
        """How a run ends."""
        return _until(f"{dag} {name}", lambda: self.state(dag, name))

    def state(self, dag: str, name: str) -> str:
        """How a run has ended; empty before."""
        state = self.ask(f"dags/{dag}/dagRuns/{name}")["state"]
        return state if state in ENDED else ""

    def runs(self, dag: str) -> list[Json]:
        """All runs of a DAG."""
        return self.ask(f"dags/{dag}/dagRuns")["dag_runs"]

    def tasks(self, dag: str, name: str) -> dict[str, Json]:
        """Task instances of a run; mapped ones have their index behind the name."""
        found = self.ask(f"dags/{dag}/dagRuns/{name}/taskInstances?limit=200")["task_instances"]
        return {
            task["task_id"] + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""): task
            for task in found
        }

    def events(self, asset: str) -> list[Json]:
        """Events of an asset, oldest first."""
        found = self.ask("assets/events?order_by=timestamp&limit=100")["asset_events"]
        return [event for event in found if event["name"] == asset]


def _until(what: str, answer: Any, why: Any = str) -> Any:
    """Ask every other second until the answer is not empty."""
    deadline = time.monotonic() + LONGEST
    while not (found := answer()):
        assert time.monotonic() < deadline, f"{what}: no end in {LONGEST:.0f} s {why()}"
        time.sleep(2)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
