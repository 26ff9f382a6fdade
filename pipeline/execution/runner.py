"""Makes one set: its missing parts, then the manifest.

A set exists once its manifest does, and the manifest is written last, so nothing here keeps state.
`pretrain`, `sft` and `train` can also run in several processes (FSDP2), which torchrun starts; rank
0 then checks the inputs, keeps the account and writes the manifest.
"""

import errno
import importlib
import logging
import re
import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from typing import Any

from pipeline import ledger
from pipeline.planning.plan import Planned
from stages.config.training import Training
from stages.job import Job, ShardSpec
from stages.models.environment import prepare_process
from stages.progress import Progress, duration
from stages.ranks import here
from stages.training.group import ALONE
from storage.copies import check_files
from storage.errors import AfterglowError, ConfigError, DataError, RetryError
from storage.files.remote import Remote
from storage.manifest import Manifest, Part, write_manifest
from storage.shard import find_part
from storage.store import Store

log = logging.getLogger(__name__)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}


def missing(planned: Iterable[Planned], store: Store) -> list[Planned]:
    """Those without a committed set."""
    return [p for p in planned if p.manifest(store) is None]


def needed(targets: Iterable[Planned], planned: list[Planned], store: Store) -> list[Planned]:
    """The sets to be made so that `targets` are there, in order.

    A committed set needs nothing of what it was made from: where one was adopted, its sources are
    made only if another missing set reads them.

    Args:
        targets: What is asked for.
        planned: The targets and all that they descend from, in order.
        store: Where the sets are.
    """
    by_name = {one.node.name: one for one in planned}
    wanted: set[str] = set()
    left = list(targets)
    while left:
        one = left.pop()
        if one.node.name not in wanted and one.manifest(store) is None:
            wanted.add(one.node.name)
            left += [by_name[source.name] for source in one.node.upstream()]
    return [one for one in planned if one.node.name in wanted]


def run_node(planned: Planned, store: Store) -> Manifest:
    """Make one set, or return the manifest if it is committed.

    Raises:
        ConfigError: torchrun started several processes, but the stage runs in one.
    """
    prepare_process()
    job, group, start = planned.job(store), ALONE, time.time()
    told = Progress(job.name)
    if here().size > 1:
        if not isinstance(job.config, Training):
            raise ConfigError(
                f"{job.name}: only pretrain, sft and train run under torchrun. Run this stage "
                "without it; its parts can be spread over machines with --shard."
            )
        from stages.training.distributed import current  # torch

        group = current()
    with errors_of_disk(job), group.fail_if_peer_lost(), told:
        done = group.broadcast(store.manifest(job.stage, job.key) if group.first else None)
        if done is not None:
            return done
        if group.first:
            _check_inputs(job)
            job.directory.mkdir(parents=True, exist_ok=True)
        group.broadcast(None)  # the other ranks wait until the inputs are checked
        module = importlib.import_module(planned.node.stage.module)
        with ledger.timed(job.directory) if group.first else nullcontext():
            if planned.node.stage.sharded:
                specs: list[ShardSpec] = module.plan(job)
                _run_parts(module, job, specs, {spec.index for spec in specs})
                manifest = module.commit(job)
            else:
                manifest = module.run(job)
        if group.first:
            manifest = _finish(planned, job, manifest)
            took = ", ".join(filter(None, (duration(time.time() - start), told.rate)))
            log.info("%s: committed %s in %s", job.name, job.directory.name, took)
        return group.broadcast(manifest)


def run_shards(planned: Planned, store: Store, indices: list[int]) -> None:
    """Make parts of a sharded stage with one engine; parts that exist are left alone.

    Raises:
        DataError: the stage is not sharded, or has no part of such an index.
    """
    prepare_process()
    job = planned.job(store)
    if not planned.node.stage.sharded:
        raise DataError(f"{job.stage} is not sharded: run it without --shard")
    module = importlib.import_module(planned.node.stage.module)
    with errors_of_disk(job), Progress(job.name):
        _check_inputs(job)
        job.directory.mkdir(parents=True, exist_ok=True)
        with ledger.timed(job.directory):
            specs: dict[int, ShardSpec] = {spec.index: spec for spec in module.plan(job)}
            unknown = [index for index in indices if index not in specs]
            if unknown:
                raise DataError(f"{job.name}: no shard {unknown[0]}; it has 0 to {len(specs) - 1}")
            _run_parts(module, job, list(specs.values()), set(indices))


def commit(planned: Planned, store: Store) -> Manifest:
    """Verify all parts of a sharded stage and write its manifest."""
    job = planned.job(store)
    done = store.manifest(job.stage, job.key)
    if done is not None:
        return done
    if not planned.node.stage.sharded:
        raise DataError(f"{job.stage} commits itself when it ends: use `afterglow run`")
    module = importlib.import_module(planned.node.stage.module)
    with errors_of_disk(job), Progress(job.name):
        manifest = _finish(planned, job, module.commit(job))
    seconds = float(ledger.cost(job.directory).get("seconds", 0.0))
    tokens = f", {manifest.totals.tokens / seconds:,.0f} tokens/s" if seconds else ""
    name, took = job.directory.name, duration(seconds)
    log.info("%s: committed %s, made in %s of its workers%s", job.name, name, took, tokens)
    return manifest


def _finish(planned: Planned, job: Job[Any], manifest: Manifest) -> Manifest:
    """Write the provenance first and the manifest last; then remove a remote set's workspace."""
    ledger.write(job.directory, job.name, planned.node.config, manifest)
    written = write_manifest(job.directory, manifest)
    if isinstance(job.directory, Remote):
        work = job.directory / ".work"
        for name in work.below():
            (work / name).unlink(missing_ok=True)
        shutil.rmtree(job.site, ignore_errors=True)
    return written


def _check_inputs(job: Job[Any]) -> None:
    """Hash the models and other whole files that a node reads from the store.

    Raises:
        DamageError: a file is not what was written.
    """
    for source in job.inputs.values():
        if source.key is not None:
            check_files(source.directory, source.manifest)


def _run_parts(
    module: Any, job: Job[Any], specs: list[ShardSpec], wanted: AbstractSet[int]
) -> None:
    """Make the `wanted` ones of the parts `specs`; those that exist are left alone."""
    chosen = [spec for spec in specs if spec.index in wanted]
    todo = [spec for spec in chosen if find_part(job.directory, spec.index) is None]
    if len(todo) < len(chosen):
        log.info("%s: %d of %d parts exist", job.name, len(chosen) - len(todo), len(chosen))
    if not todo:
        return
    count_of = {spec.index: spec.count for spec in specs}
    others = count_of.keys() - {spec.index for spec in todo}

    def elsewhere() -> int:
        names = [path.name for path in job.directory.glob("part-*-*.parquet")]
        return sum(count_of[index] for index in others & {int(n.split("-")[1]) for n in names})

    with module.open_engine(job) as engine:
        total = sum(count_of.values())
        with Progress(job.name, total, "sequences", elsewhere=elsewhere) as progress:
            finished = 0
            for part in _make_parts(module, job, todo, engine):
                finished += count_of[part.index]
                progress.reach(finished)
                log.debug("%s: part %d, %s", job.name, part.index, part.file)


def _make_parts(module: Any, job: Job[Any], specs: list[ShardSpec], engine: Any) -> Iterator[Part]:
    """The finished parts: of `run_shards` where the stage makes several at a time."""
    if hasattr(module, "run_shards"):
        yield from module.run_shards(job, specs, engine)
    else:
        for spec in specs:
            yield module.run_shard(job, spec, engine)


@contextmanager
def errors_of_disk(job: Job[Any]) -> Generator[None]:
    """Turn errors of the disk into one clear message; finished parts stay where they are.

    Raises:
        RetryError: the disk is full, read-only or broken.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AfterglowError) or _errno(error) not in _DISK:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        where = getattr(error, "filename", None) or job.directory
        free = shutil.disk_usage(job.store.local).free >> 20 if job.store.local.exists() else 0
        raise RetryError(
            f"{job.name}: {reason} ({where}; {free} MiB free). "
            "Finished parts are kept: fix the cause and run the same command again."
        ) from error


def _errno(error: BaseException | None) -> int | None:
    """The error number of the operating system behind an exception.

    Libraries written in Rust put it into words; torch fails once more while it handles the error.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None
