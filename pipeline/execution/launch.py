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
from typing import Any, cast

from pipeline import logs
from storage.errors import RetryError

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
        return _explain(error.failures)
    return 0


def _explain(failures: Mapping[int, Any]) -> int:
    """Log the failure that caused the others (`ProcessFailure` by rank); returns its exit code.

    A process that loses another ends with exit code 75, and torchelastic sends SIGTERM to those
    that still run; so any other error or signal comes first.
    """
    again = RetryError.exit_code

    def order(rank: int) -> tuple[bool, bool, int]:
        code: int = failures[rank].exitcode
        return code in (again, -signal.SIGTERM), code < 0, failures[rank].timestamp

    rank = min(failures, key=order)
    code, recorded = failures[rank].exitcode, failures[rank].error_file_data["message"]
    if code < 0:
        log.error(
            "process %d was killed by signal %d; finished checkpoints are kept, run the same "
            "command again",
            rank,
            -code,
        )
        return again
    if isinstance(recorded, dict):  # else it ended without an exception, and has said why
        found = cast("dict[str, Any]", recorded)
        expected = found["message"].partition(": ")[2]  # less the name of the class
        log.error("%s", found["extraInfo"]["py_callstack"] if code == 1 else expected)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
