"""Parts of a stage made side by side: by processes of this machine, or by tasks of a Ray cluster.

An executor is handed units of work (`pipeline.execution.units`) and returns how each ended. What a
unit has finished is in the store, so nothing else is reported: a unit that died is planned again
without the parts that exist.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
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


def complete(ask: Callable[[], Units], run: Workers, executor: Executor) -> int:
    """Have all units done, asking again for what is left of those that died.

    Args:
        ask: What is left to do.
        run: How many workers, and what each may use.
        executor: Who does it.

    Returns:
        0, or the exit code of a unit that must not be tried again (or was, often enough).
    """
    for attempt in range(1, _ATTEMPTS + 1):
        units = ask()
        if not units:
            return 0
        with _sigterm_interrupts():
            codes = [RetryError.exit_code if code < 0 else code for code in executor(units, run)]
        final = [code for code in codes if code not in (0, RetryError.exit_code)]
        if final:
            return final[0]
        if any(codes) and attempt < _ATTEMPTS:
            died = sum(map(bool, codes))
            log.warning("%d of %d workers died: their parts are made again", died, len(codes))
    return RetryError.exit_code if ask() else 0


@contextmanager
def _sigterm_interrupts() -> Generator[None]:
    """SIGTERM ends the block as Ctrl-C does: workers that it stops are not started again."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def gpus_of_worker(run: Workers, available: float) -> float:
    """GPUs one worker takes, given how many there are."""
    if run.gpus is not None:
        return run.gpus
    together = run.tensor_parallel if isinstance(run, EngineRun | ScoreRun) else 1
    return float(together) if available else 0.0


# ---------------------------------------------------------------------------------------------
# This machine


@dataclass(frozen=True)
class WorkerSlot:
    """What one local worker may use."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Environment variables that keep a worker to its place; what the user has set stays."""
        out = {"OMP_NUM_THREADS": str(len(self.cores))} | os.environ
        return out | ({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {})


def worker_slots(run: Workers, cores: Sequence[int], gpus: Sequence[str]) -> list[WorkerSlot]:
    """One place a worker; GPUs are never shared, cores only if there are fewer than workers ask.

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
    """An executor that runs every unit as a process of its own, on its share of cores and GPUs.

    The first that fails for good stops the others; SIGTERM and Ctrl-C reach all of them.

    Args:
        arguments: Those that select the recipe.
    """

    def run_units(units: Units, run: Workers) -> list[int]:
        seats = worker_slots(run, sorted(os.sched_getaffinity(0)), visible_gpus())
        commands = [[sys.executable, "-m", "pipeline", *unit, *arguments] for unit in units]
        return _wait([_start(*pair) for pair in zip(commands, seats, strict=False)])

    return run_units


def _start(command: list[str], slot: WorkerSlot) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=slot.environment())
    os.sched_setaffinity(worker.pid, slot.cores)
    return worker


def _wait(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all; negative for a signal."""
    try:
        while any(worker.poll() is None for worker in workers):
            if any(_failed_for_good(worker) for worker in workers):
                break
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        codes = [worker.wait() for worker in workers]
    return codes


def _failed_for_good(worker: subprocess.Popen[bytes]) -> bool:
    return (worker.returncode or 0) > 0 and worker.returncode != RetryError.exit_code
