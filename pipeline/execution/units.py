"""Units of work that complete a stage side by side, and the executors that run them.

Airflow, Dagster, Slurm and the executors below all ask for what is left to do of a stage, split
into at most n units. A unit is a list of arguments of `afterglow`; the units of a stage do not
depend on each other, and a sharded stage is committed after the last of them. What a unit has
finished is in the store, so a unit that died is planned again without the parts that exist.
"""

import importlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import FrameType

from pipeline.planning.plan import Planned
from stages.config.execution import Workers
from stages.config.generation import EngineRun
from stages.config.records import ScoreRun
from stages.job import ShardSpec
from stages.ranks import WORKER
from storage.errors import ConfigError, RetryError, UsageError
from storage.shard import find_part
from storage.store import Store

log = logging.getLogger(__name__)

_ITEM = re.compile(r"(\d+)(?:-(\d+))?")
_ATTEMPTS = 4
_POLL_SECONDS = 0.2

Units = list[list[str]]
Executor = Callable[[Units, Workers], list[int]]
"""Runs `afterglow UNIT` for every unit and returns the exit codes."""


def find_units(planned: Iterable[Planned], store: Store, at_most: int) -> Units:
    """Arguments of the commands that complete the nodes in `planned`.

    Committed nodes have none. Nor have nodes that read sets which are not committed yet: a recipe
    with several rounds runs a stage again when the round before has ended.

    Args:
        planned: Nodes of one stage.
        store: Where their sets go.
        at_most: Most units of one sharded node; its missing parts are spread over them evenly.
    """
    out: Units = []
    for chosen in planned:
        name, stage = chosen.node.name, chosen.node.stage
        if chosen.manifest(store) is not None:
            continue
        if waiting := chosen.waits_for(store):
            log.info("%s waits for %s: run this again once they are done", name, ", ".join(waiting))
        elif not stage.sharded:
            out.append(["run", name, "--here"])
        else:
            job = chosen.job(store)
            specs: list[ShardSpec] = importlib.import_module(stage.module).plan(job)
            left = [spec.index for spec in specs if find_part(job.directory, spec.index) is None]
            count = min(at_most, len(left))
            edges = [len(left) * unit // count for unit in range(count + 1)] if count else []
            out += [
                ["run", name, "--shard", format_shards(left[low:high])]
                for low, high in pairwise(edges)
            ]
    return out


def parse_shards(text: str, option: str = "--shard") -> list[int]:
    """`3`, `0-7` or `0-2,5` as indices.

    Raises:
        UsageError: anything else.
    """
    out: list[int] = []
    for item in text.split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None:
            raise UsageError(f"{option} {text}: give an index, a range or several: 3, 0-7, 0-2,5")
        first = int(found[1])
        last = int(found[2] or first)
        if last < first:
            raise UsageError(f"{option} {text}: the range {item} ends before it begins")
        out += range(first, last + 1)
    return list(dict.fromkeys(out))


def format_shards(indices: list[int]) -> str:
    """The inverse of `parse_shards` for ascending indices."""
    runs: list[str] = []
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ",".join(runs)


# ---------------------------------------------------------------------------------------------
# Executors


def complete(units_left: Callable[[], Units], run: Workers, executor: Executor) -> int:
    """Run all units, and again what is left of those that died.

    SIGTERM ends this as Ctrl-C does: workers that it stops are not started again.

    Args:
        units_left: What is left to do.
        run: How many workers, and what each may use.
        executor: Runs the units.

    Returns:
        0, or the exit code of a unit that must not be tried again (or was, often enough).
    """

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for attempt in range(1, _ATTEMPTS + 1):
        units = units_left()
        if not units:
            return 0
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            codes = [RetryError.exit_code if code < 0 else code for code in executor(units, run)]
        finally:
            signal.signal(signal.SIGTERM, before)
        final = [code for code in codes if code not in (0, RetryError.exit_code)]
        if final:
            return final[0]
        if any(codes) and attempt < _ATTEMPTS:
            died = sum(map(bool, codes))
            log.warning("%d of %d workers died: their parts are made again", died, len(codes))
    return RetryError.exit_code if units_left() else 0


def gpus_of_worker(run: Workers, available: float) -> float:
    """GPUs one worker takes, given how many there are."""
    if run.gpus is not None:
        return run.gpus
    parallel = run.tensor_parallel if isinstance(run, EngineRun | ScoreRun) else 1
    return float(parallel) if available else 0.0


# ---------------------------------------------------------------------------------------------
# This machine


@dataclass(frozen=True)
class WorkerSlot:
    """What one local worker may use."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Environment variables that keep a worker to its slot; what the user has set stays."""
        out = {"OMP_NUM_THREADS": str(len(self.cores)), WORKER: "1"} | os.environ
        return out | ({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {})


def worker_slots(run: Workers, cores: Sequence[int], gpus: Sequence[str]) -> list[WorkerSlot]:
    """One slot a worker; GPUs are never shared, cores only if there are fewer than workers ask.

    Raises:
        ConfigError: not enough GPUs.
    """
    each = gpus_of_worker(run, len(gpus))
    whole = int(each)
    if whole != each or whole * run.workers > len(gpus):
        raise ConfigError(
            f"run: {run.workers} workers with {each:g} GPUs each, but this machine shows "
            f'{len(gpus)}; lower `workers` or `gpus` (fractions need `executor = "ray"`)'
        )
    share = run.cpus or max(1, len(cores) // run.workers)
    return [
        WorkerSlot(
            tuple(sorted({cores[(worker * share + k) % len(cores)] for k in range(share)})),
            tuple(gpus[worker * whole : (worker + 1) * whole]),
        )
        for worker in range(run.workers)
    ]


def visible_gpus() -> list[str]:
    """Names of the GPUs that processes started here may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(ask, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def local(arguments: list[str]) -> Executor:
    """An executor that runs every unit as a process of its own, with its share of cores and GPUs.

    The first that fails for good stops the others; SIGTERM and Ctrl-C reach all of them.

    Args:
        arguments: Those that select the recipe.
    """

    def run_units(units: Units, run: Workers) -> list[int]:
        workers: list[subprocess.Popen[bytes]] = []
        slots = worker_slots(run, sorted(os.sched_getaffinity(0)), visible_gpus())
        try:
            for unit, slot in zip(units, slots, strict=False):
                command = [sys.executable, "-m", "pipeline", *unit, *arguments]
                worker = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, env=slot.environment()
                )
                workers.append(worker)
                os.sched_setaffinity(worker.pid, slot.cores)
            while any(worker.poll() is None for worker in workers):
                codes = [worker.returncode or 0 for worker in workers]
                if any(code > 0 and code != RetryError.exit_code for code in codes):
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
            codes = [worker.wait() for worker in workers]
        return codes

    return run_units
