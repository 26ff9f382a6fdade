"""Starts one `afterglow` command in several processes on this machine, by way of torchelastic.

    python -m pipeline.execution.launch PROCESSES run train --here ...

torchelastic provides the rendezvous, ends all processes when one ends, and collects the error that
each process recorded (`pipeline.cli`). This module logs the one that caused the others and returns
its exit code.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import logs
from storage.errors import RetryError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Run `argv[1:]` in `argv[0]` processes; returns their exit code."""
    count, *arguments = argv
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(count))))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs.configure()
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are logged below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pipeline", *arguments)
    except SignalException:
        log.error("interrupted; finished checkpoints are kept, run the same command again")
        return RetryError.exit_code
    except ChildFailedError as error:
        return explain(error.failures)
    return 0


def explain(failures: "Mapping[int, ProcessFailure]") -> int:
    """Log the failure that caused the others (they are given by rank); returns its exit code.

    A process that loses another ends with exit code 75, and torchelastic sends SIGTERM to those
    that still run, which may have recorded an error already. So any other code comes first.
    """
    codes: dict[int, int] = {
        rank: failure.error_file_data.get("exit_code", failure.exitcode)
        for rank, failure in failures.items()
    }
    later = (RetryError.exit_code, -signal.SIGTERM)
    rank = min(codes, key=lambda rank: (codes[rank] in later, codes[rank] < 0))
    if codes[rank] < 0:
        log.error(
            "process %d was killed by signal %d; finished checkpoints are kept, run the same "
            "command again",
            rank,
            -codes[rank],
        )
        return RetryError.exit_code
    if Path(failures[rank].error_file).is_file():  # else it printed why: a wrong argument
        log.error("%s", failures[rank].message)
    return codes[rank]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
