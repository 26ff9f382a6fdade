"""Runs what is missing, stage after stage, each in a process of its own.

Engines and trainers do not share a process well (thread settings, allocators, patched libraries),
and a killed stage takes nothing else with it.
"""

import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from types import FrameType

from pipeline.command import last_object
from pipeline.execution.ray_executor import cluster
from pipeline.execution.units import Units, complete, format_shards, local
from pipeline.ledger import to_toml
from pipeline.planning.config import Recipe
from pipeline.planning.plan import Planned
from stages.config.execution import Workers
from stages.config.training import Training
from storage.errors import AfterglowError, RetryError

log = logging.getLogger(__name__)


class StageFailed(AfterglowError):
    """A stage's process ended with an error that it has already reported.

    Attributes:
        damaged: The damaged file of a set, if that was the reason.
    """

    def __init__(self, names: str, exit_code: int, out: str = "") -> None:
        super().__init__(f"{names}: stopped with exit code {exit_code}; see the message above")
        self.exit_code = exit_code
        self.damaged: str | None = last_object(out).get("damaged")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a stage's process ran.

    Attributes:
        reported: Whether that process has said so.
    """

    def __init__(self, *, reported: bool) -> None:
        super().__init__()
        self.reported = reported


@dataclass(frozen=True)
class Chain:
    """How the command is called again for parts of the same recipe."""

    recipe: Recipe
    arguments: list[str]
    """Command-line arguments that select the recipe."""

    def run(self, todo: list[Planned]) -> None:
        """Make the nodes in `todo`, which come in order and miss nothing but each other.

        Raises:
            StageFailed: a process failed; its exit code becomes ours.
        """
        for (stage, workers, processes), batch in groupby(todo, key=_batch_key):
            names = [planned.node.name for planned in batch]
            log.info("%s: starting %s", stage, ", ".join(names))
            if workers is None:
                self._call("run", names, "--here", processes=processes)
                continue
            for name in names:
                self._side_by_side(name, workers)

    def make_parts(self, name: str, indices: list[int]) -> None:
        """Make parts of a node that are missing or damaged, whether it is committed or not.

        Raises:
            StageFailed: the process failed.
        """
        self._call("run", [name], "--shard", format_shards(indices))

    def _side_by_side(self, name: str, workers: Workers) -> None:
        """Make the parts of a node by several workers, then commit it."""

        def units_left() -> Units:
            count = str(workers.workers)
            out = self._call("units", [name], "--node", "--at-most", count)
            found: Units = last_object(out)["units"]
            return [unit[: -len(self.arguments) or None] for unit in found]

        on_ray = workers.executor == "ray"
        executor = cluster(to_toml(self.recipe)) if on_ray else local(self.arguments)
        code = complete(units_left, workers, executor)
        if code != 0:
            raise StageFailed(name, code)
        self._call("commit", [name], "--node")

    def _call(self, verb: str, names: list[str], *options: str, processes: int = 1) -> str:
        """Run a verb with our stderr in one new process or several; returns its stdout.

        SIGTERM is passed on, and waited for. A process that was killed counts as exit code 75.
        """
        # Idle OpenMP threads that spin cost small models most of their speed as soon as anything
        # else runs on the machine. Libraries' progress bars belong on a terminal only.
        settings = {"OMP_WAIT_POLICY": "PASSIVE"}
        if not sys.stderr.isatty():
            settings["TQDM_DISABLE"] = "1"
        module = ["pipeline"] if processes == 1 else ["pipeline.execution.launch", str(processes)]
        process = subprocess.Popen(
            [sys.executable, "-m", *module, verb, *names, *options, "--json", *self.arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=settings | os.environ,
        )

        def pass_on(signum: int, _frame: FrameType | None) -> None:
            process.send_signal(signum)

        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            out, _ = process.communicate()
        except KeyboardInterrupt as error:
            # Ctrl-C reaches both processes, and the one that was at work has said so.
            raise Interrupted(reported=process.wait() == RetryError.exit_code) from error
        finally:
            signal.signal(signal.SIGTERM, before)
        if process.returncode != 0:
            code = RetryError.exit_code if process.returncode < 0 else process.returncode
            raise StageFailed(", ".join(names), code, out)
        return out


def processes_wanted(planned: Planned) -> int:
    """How many processes a node asks to be trained by."""
    config = planned.node.config
    return config.run.processes if isinstance(config, Training) else 1


def _batch_key(planned: Planned) -> tuple[str, Workers | None, int]:
    """Equal for nodes that one command runs: stage, workers that make its parts, processes."""
    run = getattr(planned.node.config, "run", None)
    workers = run if isinstance(run, Workers) and run.spread else None
    return planned.node.stage.name, workers, processes_wanted(planned)
