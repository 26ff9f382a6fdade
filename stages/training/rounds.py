"""Rounds that are one training: where a round stands in it, and what it hands on to the next.

A round reads records of its own, and trains on as if there were no border: float32 weights (what is
saved for users may be bfloat16, which would lose small updates), AdamW's moments and its step
counts are those at the last step of the round before. They lie in the set of that round's student,
which is a model directory as any other:

    model.safetensors, config.json, ...                 the student, for all who load it
    next-round/checkpoint.pt, next-round/step-*/*.pt    a checkpoint (`stages.training.checkpoint`)

The manifest lists all of them. The learning rate and the objective follow one schedule over the
steps of all rounds, of which every round has an equal share. A round that the drift limit ends
early leaves the rest of its share unused, so that the last round always ends as planned.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.config.training import Student
from stages.job import Input, Job
from stages.training import checkpoint
from stages.training.group import Group
from storage.copies import NEXT_ROUND, files_by_path, local_copy
from storage.errors import DataError
from storage.files.write import disk_errors, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """A round of training."""

    number: int = 1
    of: int = 1
    """Rounds that are one training."""
    before: Input | None = None
    """The student of the round before; None in the first round."""
    hands_on: bool = False
    """Whether the state of the optimiser is kept with the student."""

    @classmethod
    def of_job(cls, job: Job[Student]) -> "Round":
        """The round that `job` makes: one after another if it starts from a student of its own."""
        if not job.config.rounds_are_one:
            return ONLY
        before, number = job.inputs.get("init"), 1
        if before is None or before.key is None or before.manifest.stage != job.stage:
            before = None
        else:
            number += int(before.manifest.meta.get("round", 0))
        return cls(number, job.config.rounds, before, job.config.hands_on(number))

    def span(self, steps: int) -> tuple[int, int]:
        """How many steps of the whole training precede this round of `steps`, and how many it has.

        Rounds of epochs may differ by a few steps; each counts as if all were as long as it is.
        """
        return (self.number - 1) * steps, self.of * steps

    def described(self, steps: int) -> str:
        """For the log."""
        first, total = self.span(steps)
        return f"round {self.number} of {self.of}: steps {first + 1} to {first + steps} of {total}"


ONLY = Round()
"""The round of a training that has no others."""


def hand_on(
    directory: Path,
    identity: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    step: int,
    group: Group,
) -> None:
    """Keep the state after the last step beside the student; every process must call.

    Args:
        directory: Where the set is worked on.
        identity: Of the run.
        tensors: As `checkpoint.tensors_of` gives them.
        step: Steps made in this round.
        group: The processes that train.

    Raises:
        RetryError: the disk refused.
    """
    target = directory / NEXT_ROUND
    if group.first:
        with disk_errors(target):
            shutil.rmtree(target, ignore_errors=True)  # a killed run may have left one
            target.mkdir(parents=True)
    checkpoint.save(target, identity, tensors, {"step": step}, {}, group)


def take_over(before: Input, tensors: Mapping[str, Tensor], group: Group) -> None:
    """Overwrite weights and AdamW's state with what the round before has handed on.

    Args:
        before: The student of that round.
        tensors: As `checkpoint.tensors_of` gives them.
        group: The processes that go on, as many as there are now.

    Raises:
        DataError: nothing was handed on, or it is damaged.
        RetryError, ConfigError: the set is on an object store and cannot be read.
    """
    work = local_copy(before.directory, NEXT_ROUND)
    listed = files_by_path(before.manifest).get(f"{NEXT_ROUND}/{checkpoint.HEAD}")
    path = work / checkpoint.HEAD
    if listed is None or not path.exists() or sha256_file(path) != listed.sha256:
        raise DataError(
            f"{path}: missing, or not the file that the manifest lists, and this round goes on "
            f"from it. Restore it from a copy, or remove {before.directory} and run the same "
            "command: the round before is made again."
        )
    known: dict[str, Any] = {"key": before.key}
    checkpoint.load(work, known, tensors, group)
    log.info("optimiser and float32 weights are those at the end of %s", before.directory.name)
