"""Training runs that die on the way: each in a process of its own, by a real SIGKILL.

Usage: python -m tests.stages.training.child WORLD STORE [second] POINT...

With `second` it is the second round of three that is trained. A point is `step:N` (in the middle of
the N-th optimiser step) or `NAME:N` (when the file NAME is about to get its final name for the N-th
time). The runs follow each other on the same set directory; the next one goes on where the last one
was killed.
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
from stages.job import Input, Job
from tests.world import World, make_job


def student_job(
    world: World, store: Path, *, rounds: int = 1, init: Input | None = None
) -> Job[Student]:
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
            "rounds": rounds,
            "run": {"checkpoint_every": 4, "log_every": 5, "tokens_per_microbatch": 48},
        }
    )
    inputs = {"init": init or world.init, "data": world.records}
    return make_job(store, "train", config, inputs)


def second_round(world: World, store: Path) -> Job[Student]:
    """The second of three rounds; the first must be done."""
    first = student_job(world, store, rounds=3)
    init = Input(str(first.directory), first.key, store=first.store)
    return student_job(world, store, rounds=3, init=init)


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


def main(root: str, place: str, *points: str) -> None:
    world, store = World.at(Path(root)), Path(place)
    second = points[:1] == ("second",)
    for point in points[1:] if second else points:
        child = os.fork()
        if child == 0:
            die_at(point)
            train.run(second_round(world, store) if second else student_job(world, store))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the run that was to die at {point} ended with status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
