"""Executors make parts of a stage side by side: processes of this machine, or tasks of Ray.

An executor runs units of work (`pipeline.execution.units`) and returns their exit codes. What a
unit has finished is in the store, so a unit that died is planned again without the parts that
exist.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from stages.config import EngineRun, ScoreRun, Workers
from storage.errors import ConfigError, RetryError

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_POLL_SECONDS = 0.2

Units = list[list[str]]
Executor = Callable[[Units, Workers], list[int]]
"""Runs `afterglow UNIT` for every unit and returns the exit codes."""


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
        out = {"OMP_NUM_THREADS": str(len(self.cores))} | os.environ
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

    def failed_for_good(worker: subprocess.Popen[bytes]) -> bool:
        code = worker.poll() or 0
        return code > 0 and code != RetryError.exit_code

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
                if any(failed_for_good(worker) for worker in workers):
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()
            codes = [worker.wait() for worker in workers]
        return codes

    return run_units
