"""Commands for a warm process: `main` does what its first argument names."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

state: list[int] = []
"""What a command leaves behind in its process."""


def main(arguments: list[str]) -> int:
    """Do it; returns the exit code."""
    what, *rest = arguments
    if what == "tell":
        state.append(os.getpid())
        found = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "state": state,
            "numpy": "numpy" in sys.modules,
            "threads": threading.active_count(),
            "environment": dict(os.environ),
            "interruptible": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "stdin": sys.stdin.read(),
        }
        sys.stdout.write(json.dumps(found))  # no end of line: what follows must not join it
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    elif what == "wait":
        Path(rest[0]).touch()
        time.sleep(60)
    return int(rest[0]) if what == "return" else 0
