"""`executor = "ray"` on a real cluster of two nodes, one of whose workers dies."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.command import ROOT, afterglow
from tests.e2e.side_by_side import RECIPE, TWO, after_first_part, end, start, take_away

pytestmark = [pytest.mark.scheduler, pytest.mark.timeout(900)]

RAY = (*TWO, "--set", "teacher-logits.run.executor=ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head and a second node, one core each; the variables under which they are found."""
    ray = Path(sys.executable).with_name("ray")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "",
    }
    port = "26379"
    node = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats")
    short = f"/tmp/ray-{os.getpid()}"  # socket paths are at most 107 characters long
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={short}")
    for arguments in (head, (f"--address=127.0.0.1:{port}",)):
        subprocess.run(
            [ray, "start", *arguments, *node], check=True, env=environment, capture_output=True
        )
    try:
        yield {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        subprocess.run([ray, "stop", "--force"], check=False, env=environment, capture_output=True)
        shutil.rmtree(short, ignore_errors=True)


def test_a_ray_cluster_makes_the_set_of_one_though_a_worker_is_killed(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    store = tmp_path
    made = afterglow("run", "teacher-logits", *RECIPE, store=store)
    assert made.code == 0, made.err
    alone = take_away(made)
    process = start(store, *RAY, environment=cluster)
    after_first_part(store, process)
    tasks = [
        found
        for found in psutil.process_iter(["cmdline"])
        if (found.info["cmdline"] or [""])[0].startswith("ray::work")
    ]
    assert tasks
    os.kill(tasks[0].pid, signal.SIGKILL)
    done = end(process)
    assert done.code == 0, done.err
    assert "2 nodes" in done.err
    assert take_away(done) == alone
