"""Starts one `afterglow` command in several processes on this machine, by way of torchrun.

    python -m pipeline.execution.launch PROCESSES run train --here ...

What torchrun does by itself (a rendezvous, the end of all when one ends) is left to it. Added are a
free port, exit codes that survive, and no stack trace on top of a message.
"""

import importlib
import logging
import os
import signal
import sys
import uuid
from typing import Any

from storage.errors import RetryError


def main(argv: list[str]) -> int:
    """Run `argv[1:]` in `argv[0]` processes; returns their exit code."""
    count = int(argv[0])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    torchrun: Any = importlib.import_module("torch.distributed.run")
    _hush()
    options = torchrun.parse_args(
        [
            *("--nnodes", "1", "--nproc-per-node", str(count)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
            *("--rdzv-id", uuid.uuid4().hex, "--local-addr", "127.0.0.1"),
            *("-m", "pipeline", *argv[1:]),
        ]
    )
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        return _code({rank: found.exitcode for rank, found in error.failures.items()})
    except SignalException:
        return RetryError.exit_code
    return 0


def _hush() -> None:
    """The processes explain themselves."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _code(codes: dict[int, int]) -> int:
    """The code all processes agreed on; a killed one could not agree, nor say anything.

    SIGTERM is what torchrun sends the others, once one has ended.
    """
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    for rank, number in killed.items():
        sys.stderr.write(
            f"error: process {rank} was killed by signal {number}; finished checkpoints are kept, "
            "run the same command again\n"
        )
    return next((code for code in codes.values() if code > 0), RetryError.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
