"""Runs what is missing, in order, and commits.

Every stage runs in a process of its own: engines and trainers do not share a process well (thread
settings, allocators, patched libraries), and a killed stage takes nothing else with it. A set
exists once its manifest does, and the manifest is written last; so nothing here keeps state.
"""

import errno
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import groupby
from types import FrameType
from typing import Any

from pipeline import provenance
from pipeline.plan import Planned
from stages.job import Job, ShardSpec
from storage.errors import AfterglowError, DataError, RetryError
from storage.manifest import Manifest, Part, write_manifest
from storage.shard import find_part
from storage.store import Store

log = logging.getLogger(__name__)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}


class StageFailed(AfterglowError):
    """A stage's process ended with an error it has already explained."""

    def __init__(self, names: str, exit_code: int) -> None:
        super().__init__(f"{names}: stopped with exit code {exit_code}; see the message above")
        self.exit_code = exit_code


def missing(planned: Iterable[Planned], store: Store) -> list[Planned]:
    """Those without a committed set."""
    return [p for p in planned if p.manifest(store) is None]


# ---------------------------------------------------------------------------------------------
# The chain: one process per stage


def run_chain(todo: list[Planned], arguments: list[str]) -> None:
    """Run the nodes in `todo`, stage by stage, each stage in a process of its own.

    Args:
        todo: Missing nodes in order.
        arguments: Command-line arguments that select the recipe, handed on to every process.

    Raises:
        StageFailed: a process failed; its exit code becomes ours.
    """
    for stage, group in groupby(todo, key=lambda planned: planned.node.stage.name):
        names = [planned.node.name for planned in group]
        command = [sys.executable, "-m", "pipeline", "run", *names, "--here", *arguments]
        log.info("%s: starting %s", stage, ", ".join(names))
        code = _run_process(command)
        if code != 0:
            raise StageFailed(", ".join(names), code)


def _run_process(command: list[str]) -> int:
    """Run `command` with our stderr; on SIGTERM pass it on and wait. Returns the exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment())

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        process.send_signal(signum)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return RetryError.exit_code if code < 0 else code


def _environment() -> dict[str, str]:
    """Environment of a stage; what the user has set stays.

    Idle OpenMP threads that spin cost small models most of their speed as soon as anything else
    runs on the machine. Libraries' progress bars belong on a terminal only.
    """
    settings = {"OMP_WAIT_POLICY": "PASSIVE"}
    if not sys.stderr.isatty():
        settings["TQDM_DISABLE"] = "1"
    return settings | os.environ


# ---------------------------------------------------------------------------------------------
# One node, in this process


def run_node(planned: Planned, store: Store) -> Manifest:
    """Make one set in this process: run its missing parts, commit it."""
    job = planned.job(store)
    done = store.manifest(job.stage, job.key)
    if done is not None:
        return done
    start = time.time()
    with _diskful(job):
        job.directory.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module(planned.node.stage.module)
        with provenance.ledger(job.directory):
            if planned.node.stage.sharded:
                _run_parts(module, job, module.plan(job))
                manifest = module.commit(job)
            else:
                manifest = module.run(job)
        manifest = finish(planned, job, manifest)
    log.info("%s: committed %s in %.1f s", job.name, job.directory.name, time.time() - start)
    return manifest


def run_shards(planned: Planned, store: Store, indices: list[int]) -> None:
    """Make parts of a sharded stage with one engine; those that are there already are left alone.

    Raises:
        DataError: the stage has no parts, or none of such an index.
    """
    job = planned.job(store)
    if not planned.node.stage.sharded:
        raise DataError(f"{job.stage} is not sharded: run it without --shard")
    module = importlib.import_module(planned.node.stage.module)
    with _diskful(job):
        job.directory.mkdir(parents=True, exist_ok=True)
        specs: dict[int, ShardSpec] = {spec.index: spec for spec in module.plan(job)}
        unknown = [index for index in indices if index not in specs]
        if unknown:
            raise DataError(f"{job.name}: no shard {unknown[0]}; it has 0 to {len(specs) - 1}")
        with provenance.ledger(job.directory):
            _run_parts(module, job, [specs[index] for index in indices])


def commit(planned: Planned, store: Store) -> Manifest:
    """Verify all parts of a sharded stage and write its manifest."""
    job = planned.job(store)
    done = store.manifest(job.stage, job.key)
    if done is not None:
        return done
    if not planned.node.stage.sharded:
        raise DataError(f"{job.stage} commits itself when it ends: use `afterglow run`")
    module = importlib.import_module(planned.node.stage.module)
    with _diskful(job):
        return finish(planned, job, module.commit(job))


def finish(planned: Planned, job: Job[Any], manifest: Manifest) -> Manifest:
    """Provenance first, manifest last."""
    provenance.write(job.directory, job.name, planned.node.config, manifest)
    return write_manifest(job.directory, manifest)


def _run_parts(module: Any, job: Job[Any], specs: list[ShardSpec]) -> None:
    todo = [spec for spec in specs if find_part(job.directory, spec.index) is None]
    if len(todo) < len(specs):
        log.info("%s: %d of %d parts are done", job.name, len(specs) - len(todo), len(specs))
    if not todo:
        return
    with module.open_engine(job) as engine:
        for spec in todo:
            part: Part = module.run_shard(job, spec, engine)
            log.info("%s: part %d of %d, %s", job.name, spec.index + 1, len(specs), part.file)


@contextmanager
def _diskful(job: Job[Any]) -> Generator[None]:
    """Turns what the disk says into one clear message; finished parts stay where they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, AfterglowError) or error.errno not in _DISK:
            raise
        free = shutil.disk_usage(job.store.root).free >> 20 if job.store.root.exists() else 0
        raise RetryError(
            f"{job.name}: {error.strerror} ({error.filename or job.directory}; {free} MiB free). "
            "Finished parts are kept: mend the cause and run the same command again."
        ) from error
