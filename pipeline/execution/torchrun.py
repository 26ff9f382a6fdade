"""Stages on several processes at once: how they are started, and how they end with one message.

`pretrain`, `sft` and `train` can be spread over processes (FSDP2), either because the user starts
`torchrun ... -m pipeline run STAGE --here`, or because `run.processes` asks for it, and then
`pipeline.execution.launch` does the same on this machine. The first process writes the set.
"""

import importlib
import logging
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from pipeline import ledger
from pipeline.execution.runner import check_inputs, diskful, finish
from pipeline.planning.plan import Planned
from stages.config import Training
from stages.ranks import here
from storage.errors import ConfigError
from storage.manifest import Manifest
from storage.store import Store

log = logging.getLogger(__name__)

_PATIENCE = timedelta(seconds=10)


def wanted(planned: Planned) -> int:
    """How many processes a node asks for."""
    config = planned.node.config
    return config.run.processes if isinstance(config, Training) else 1


def command(processes: int, arguments: list[str]) -> list[str]:
    """The command that runs `afterglow ARGUMENTS`, in one process or several."""
    if processes == 1:
        return [sys.executable, "-m", "pipeline", *arguments]
    return [sys.executable, "-m", "pipeline.execution.launch", str(processes), *arguments]


def run_node(planned: Planned, store: Store) -> Manifest:
    """Make one set together with the other processes; the first one keeps the books.

    Raises:
        ConfigError: the stage is one that a single process does.
    """
    if not isinstance(planned.node.config, Training):
        raise ConfigError(
            f"{planned.node.name}: only pretrain, sft and train run under torchrun. Run this stage "
            "without it; its parts can be spread over machines with --shard."
        )
    from stages.training.distributed import current  # torch

    job, group = planned.job(store), current()
    with diskful(job), group.fail_if_peer_lost():
        done = group.broadcast(store.manifest(job.stage, job.key))
        if done is not None:
            return done
        if group.first:
            job.directory.mkdir(parents=True, exist_ok=True)
            check_inputs(job)
        group.broadcast(None)
        module = importlib.import_module(planned.node.stage.module)
        with ledger.timed(job.directory) if group.first else nullcontext():
            manifest: Manifest = module.run(job)
        if group.first:
            manifest = finish(planned, job, manifest)
            log.info("%s: committed %s", job.name, job.directory.name)
        return group.broadcast(manifest)


def leave() -> None:
    """Part from the other processes, all work being done."""
    if here().size > 1:
        from stages.training.distributed import shutdown  # torch

        shutdown()


def told(code: int) -> int | None:
    """Whether another process has said already why all of them end.

    Args:
        code: Exit code of this process, should it be the one to speak.

    Returns:
        None if this process is to give its message; else the exit code of the one that did.
    """
    ranks = here()
    if ranks.size == 1:
        return None
    dist: Any = importlib.import_module("torch.distributed")
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        board = dist.TCPStore(host, port, is_master=False, timeout=_PATIENCE)
        found = board.compare_set(f"afterglow/ended/{attempt}", "", f"{ranks.rank} {code}")
    except RuntimeError:
        return None  # whoever kept the board is gone: better said twice than not at all
    speaker, said = map(int, found.decode().split())
    return None if speaker == ranks.rank else said
