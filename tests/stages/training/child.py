"""Training runs that die on the way: each in a process of its own, by a real SIGKILL.

Usage: python -m tests.stages.training.child WORLD STORE POINT...

A point is `step:N` (in the middle of the N-th optimiser step) or `NAME:N` (when the file NAME is
about to get its final name for the N-th time). The runs follow each other on the same set
directory; the next one goes on where the last one was killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages import train
from stages.config.training import Student
from stages.job import Job
from tests.world import World, make_job


def student_job(world: World, store: Path) -> Job[Student]:
    """Eighteen steps with a checkpoint every four, and log lines out of step with them.

    The objective changes from step to step, in its weights and in the target of one term.
    """
    terms = [
        {"name": "reverse_kl", "weight": [[0.0, 0.2], [1.0, 1.0]]},
        {"name": "taid", "weight": [[0.0, 1.0], [0.5, 0.3]]},
    ]
    config = Student.model_validate(
        {
            "steps": 18,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "warmup": 0.2,
            "objective": {"name": "mixture", "terms": terms},
            "run": {"checkpoint_every": 4, "log_every": 5, "tokens_per_microbatch": 48},
        }
    )
    return make_job(store, "train", config, {"init": world.init, "data": world.records})


def die_at(point: str) -> None:
    """Arrange for this process to kill itself."""
    name, _, nth = point.partition(":")
    owner, method = (torch.optim.AdamW, "step") if name == "step" else (Path, "rename")
    original: Callable[..., Any] = getattr(owner, method)
    left = int(nth)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if name == "step" or Path(args[0]).name == name:
            left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(owner, method, wrapped)


def main(world: str, store: str, *points: str) -> None:
    for point in points:
        child = os.fork()
        if child == 0:
            die_at(point)
            train.run(student_job(World.at(Path(world)), Path(store)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the run that was to die at {point} ended with status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
