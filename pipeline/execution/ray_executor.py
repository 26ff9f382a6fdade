"""`run.executor = "ray"`: every unit of work is a task of a Ray cluster.

The cluster is the one that `RAY_ADDRESS` names or that was started on this machine; without either
Ray starts one here. Tasks ask for the cores and GPUs of `run`. Ray moves a task that lost its
worker or node; what the task had finished is in the store. So every node needs the same store (a
shared file system or an object store), the package, and the same working directory if the recipe
names files relative to it.
"""

import contextlib
import importlib
import logging
import os
import runpy
import sys
import tempfile
from pathlib import Path

from pipeline.execution.units import Executor, Units, gpus_of_worker
from stages.config.execution import Workers
from stages.ranks import WORKER
from storage.errors import ConfigError, RetryError

log = logging.getLogger(__name__)

_LOST = 3
"""Times that Ray moves a task whose worker or node was lost."""


def cluster(recipe: str) -> Executor:
    """An executor that runs units of `recipe`, a resolved recipe as TOML, in a Ray cluster.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            '`executor = "ray"` needs Ray: install `afterglow[ray]` here and on every node'
        ) from error

    def run_units(units: Units, run: Workers) -> list[int]:
        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING)
        total, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        log.info(
            "ray: %d units over %d nodes with %g cores and %g GPUs", len(units), nodes, cpus, gpus
        )
        # A worker that held an engine is not used again: engines leave threads and memory behind.
        task = ray.remote(
            num_cpus=run.cpus or 1,
            num_gpus=gpus_of_worker(run, gpus),
            max_calls=1,
            max_retries=_LOST,
        )(work)
        tasks = [task.remote(unit, recipe, str(Path.cwd())) for unit in units]
        codes: list[int] = []
        try:
            for one in tasks:
                try:
                    codes.append(ray.get(one))
                except ray.exceptions.RayError as error:  # its nodes were lost too often
                    log.warning("ray: %s", str(error).strip().splitlines()[0])
                    codes.append(RetryError.exit_code)
        except BaseException:
            for one in tasks:
                ray.cancel(one, force=False)
            raise
        return codes

    return run_units


def work(unit: list[str], recipe: str, directory: str) -> int:
    """The task: run one unit with `python -m pipeline`, in the asker's working directory.

    Args:
        unit: Arguments of `afterglow`, without those that select the recipe.
        recipe: The resolved recipe as TOML.
        directory: Absolute; relative paths of the recipe start here.

    Returns:
        The exit code of the command.
    """
    if Path(directory).is_dir():
        os.chdir(directory)
    os.environ[WORKER] = "1"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(recipe)
        file.flush()
        sys.argv[1:] = [*unit, "--config", file.name]
        # What a task prints reaches the process that asked, whose stdout is for programs.
        with contextlib.redirect_stdout(sys.stderr):
            try:
                runpy.run_module("pipeline", run_name="__main__")
            except SystemExit as ended:
                return int(ended.code or 0)
    raise AssertionError("the command ends with SystemExit")
