"""Scores and trains small sets over and over in one process: nothing may pile up.

Usage: python -m tests.faults.soak DIRECTORY MINUTES

Prints one JSON object: figures of the first round that counts, of the last, and what is left over.
Exit code 1 if memory, threads, descriptors, processes or files have grown.
"""

import gc
import json
import os
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.recovery import Node

WARM = 3
"""Rounds before the first figures: caches, pools and compiled loops come to their size."""
GROWTH = 0.05
"""Most that memory may grow over the whole run, as a share."""


@dataclass(frozen=True)
class Figures:
    """What a process holds after a round."""

    rounds: int
    resident_mib: int
    threads: int
    descriptors: int
    children: int
    temporary_files: int


def measure(rounds: int, root: Path) -> Figures:
    """Figures of this process and of the files it works on."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = Path(f"/proc/{os.getpid()}/task")
    children = [child for task in tasks.iterdir() for child in _children(task)]
    return Figures(
        rounds=rounds,
        resident_mib=pages * os.sysconf("SC_PAGE_SIZE") >> 20,
        threads=threading.active_count(),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        children=len(children),
        temporary_files=len(list(root.rglob("*.tmp"))) + len(list(root.rglob(".work"))),
    )


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread ended since it was listed
        return []


def main(root: Path, minutes: float) -> int:
    """See the module."""
    scored, trained = Node(root, "teacher-logits"), Node(root, "train.reverse_kl")
    trained.settle()
    ends = time.monotonic() + 60.0 * minutes
    rounds = 0
    first = last = measure(0, root)
    while time.monotonic() < ends or rounds < WARM + 2:
        for node in (scored, trained):
            shutil.rmtree(node.directory)
            node.make()
        rounds += 1
        last = measure(rounds, root)
        if rounds == WARM:
            first = last
    grown = {
        name: value
        for name, value in asdict(last).items()
        if name != "rounds" and value > asdict(first)[name] * (1.0 + GROWTH)
    }
    result = {"minutes": minutes, "first": asdict(first), "last": asdict(last), "grown": grown}
    print(json.dumps(result))  # noqa: T201
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
