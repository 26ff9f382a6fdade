"""Makes one set in this process: its missing parts, then the manifest.

A set exists once its manifest does, and the manifest is written last; so nothing here keeps state.
"""

import errno
import importlib
import logging
import re
import shutil
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from pipeline import ledger
from pipeline.planning.plan import Planned
from stages.job import Job, ShardSpec
from storage.errors import AfterglowError, DataError, RetryError
from storage.files.remote import Remote
from storage.intact import check_files
from storage.manifest import Manifest, Part, write_manifest
from storage.shard import find_part
from storage.store import Store

log = logging.getLogger(__name__)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}


def missing(planned: Iterable[Planned], store: Store) -> list[Planned]:
    """Those without a committed set."""
    return [p for p in planned if p.manifest(store) is None]


def run_node(planned: Planned, store: Store) -> Manifest:
    """Make one set in this process: run its missing parts, commit it."""
    job = planned.job(store)
    done = store.manifest(job.stage, job.key)
    if done is not None:
        return done
    start = time.time()
    with diskful(job):
        check_inputs(job)
        job.directory.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module(planned.node.stage.module)
        with ledger.timed(job.directory):
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
    with diskful(job):
        check_inputs(job)
        job.directory.mkdir(parents=True, exist_ok=True)
        specs: dict[int, ShardSpec] = {spec.index: spec for spec in module.plan(job)}
        unknown = [index for index in indices if index not in specs]
        if unknown:
            raise DataError(f"{job.name}: no shard {unknown[0]}; it has 0 to {len(specs) - 1}")
        with ledger.timed(job.directory):
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
    with diskful(job):
        return finish(planned, job, module.commit(job))


def finish(planned: Planned, job: Job[Any], manifest: Manifest) -> Manifest:
    """Provenance first, manifest last."""
    ledger.write(job.directory, job.name, planned.node.config, manifest)
    written = write_manifest(job.directory, manifest)
    _forget_work(job)
    return written


def _forget_work(job: Job[Any]) -> None:
    """Remove what a set in another store than this machine was made with."""
    if isinstance(job.directory, Remote):
        work = job.directory / ".work"
        for name in work.below():
            (work / name).unlink(missing_ok=True)
        shutil.rmtree(job.site, ignore_errors=True)


def check_inputs(job: Job[Any]) -> None:
    """Hash the models and other whole files that a node reads from the store.

    Raises:
        DamageError: one is not what was written.
    """
    for source in job.inputs.values():
        if source.key is not None:
            check_files(source.directory)


def _run_parts(module: Any, job: Job[Any], specs: list[ShardSpec]) -> None:
    todo = [spec for spec in specs if find_part(job.directory, spec.index) is None]
    if len(todo) < len(specs):
        log.info("%s: %d of %d parts are there", job.name, len(specs) - len(todo), len(specs))
    if not todo:
        return
    with module.open_engine(job) as engine:
        for spec in todo:
            part: Part = module.run_shard(job, spec, engine)
            log.info("%s: part %d, %s", job.name, spec.index, part.file)


@contextmanager
def diskful(job: Job[Any]) -> Generator[None]:
    """Turns what the disk says into one clear message; finished parts stay where they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AfterglowError) or _errno(error) not in _DISK:
            raise
        said = error.strerror if isinstance(error, OSError) else error
        where = getattr(error, "filename", None) or job.directory
        free = shutil.disk_usage(job.store.local).free >> 20 if job.store.local.exists() else 0
        raise RetryError(
            f"{job.name}: {said} ({where}; {free} MiB free). "
            "Finished parts are kept: mend the cause and run the same command again."
        ) from error


def _errno(error: BaseException | None) -> int | None:
    """What the operating system said.

    Libraries written in Rust say it in words; torch fails once more while it handles the error.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None
