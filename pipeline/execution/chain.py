"""Runs what is missing, stage after stage, each in a process of its own.

Engines and trainers do not share a process well (thread settings, allocators, patched libraries),
and a killed stage takes nothing else with it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from types import FrameType

from pipeline.execution import runner, torchrun
from pipeline.execution.executors import Units, complete, local
from pipeline.execution.ray_executor import cluster
from pipeline.execution.units import format_shards
from pipeline.ledger import to_toml
from pipeline.planning.config import Recipe
from pipeline.planning.plan import Planned
from stages import ranks
from stages.config import Workers
from storage.errors import AfterglowError, RetryError
from storage.store import Store

log = logging.getLogger(__name__)


class StageFailed(AfterglowError):
    """A stage's process ended with an error it has already explained.

    Attributes:
        damaged: The file of a set that it found damaged, if that was the reason.
    """

    def __init__(self, names: str, exit_code: int, out: str = "") -> None:
        super().__init__(f"{names}: stopped with exit code {exit_code}; see the message above")
        self.exit_code = exit_code
        last = out.rstrip().rpartition("\n")[2]
        said: dict[str, str] = json.loads(last) if last.startswith('{"damaged"') else {}
        self.damaged = said.get("damaged")


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
        for (stage, workers, count), group in groupby(todo, key=_how):
            names = [planned.node.name for planned in group]
            log.info("%s: starting %s", stage, ", ".join(names))
            if workers is None:
                self._call("run", names, "--here", together=count)
                continue
            for name in names:
                self._side_by_side(name, workers)

    def make_parts(self, name: str, indices: list[int]) -> None:
        """Make parts of a node that are missing or damaged, whether it is committed or not.

        Raises:
            StageFailed: the process failed.
        """
        self._call("run", [name], "--shard", format_shards(indices))

    def here(self, chosen: list[Planned], store: Store) -> None:
        """Make just these nodes, in this process unless they ask for several.

        Raises:
            StageFailed: one of several processes failed; its exit code becomes ours.
        """
        for planned in chosen:
            if ranks.here().size > 1:
                torchrun.run_node(planned, store)
            elif torchrun.wanted(planned) > 1:
                self._call("run", [planned.node.name], "--here", together=torchrun.wanted(planned))
            else:
                runner.run_node(planned, store)
        torchrun.leave()

    def _side_by_side(self, name: str, workers: Workers) -> None:
        def ask() -> Units:
            count = str(workers.workers)
            out = self._call("units", [name], "--node", "--at-most", count)
            found: Units = json.loads(out.splitlines()[-1])["units"]
            return [unit[: -len(self.arguments) or None] for unit in found]

        on_ray = workers.executor == "ray"
        executor = cluster(to_toml(self.recipe)) if on_ray else local(self.arguments)
        code = complete(ask, workers, executor)
        if code != 0:
            raise StageFailed(name, code)
        self._call("commit", [name], "--node")

    def _call(self, verb: str, names: list[str], *options: str, together: int = 1) -> str:
        """Run a verb in a process of its own, or several together; returns its stdout."""
        arguments = [verb, *names, *options, *self.arguments]
        code, out = _run_process(torchrun.command(together, arguments))
        if code != 0:
            raise StageFailed(", ".join(names), code, out)
        return out


def _how(planned: Planned) -> tuple[str, Workers | None, int]:
    """What nodes that are run by one command have in common."""
    return planned.node.stage.name, _spread(planned), torchrun.wanted(planned)


def _spread(planned: Planned) -> Workers | None:
    """How parts of a node are made side by side; None: one after the other, in one process."""
    run = getattr(planned.node.config, "run", None)
    return run if isinstance(run, Workers) and run.spread else None


def _run_process(command: list[str]) -> tuple[int, str]:
    """Run `command` with our stderr; SIGTERM is passed on, and waited for.

    Returns:
        Exit code, 75 for a process that was killed, and stdout.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        process.send_signal(signum)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        out, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return RetryError.exit_code if process.returncode < 0 else process.returncode, out


def _environment() -> dict[str, str]:
    """Environment of a stage; what the user has set stays.

    Idle OpenMP threads that spin cost small models most of their speed as soon as anything else
    runs on the machine. Libraries' progress bars belong on a terminal only.
    """
    settings = {"OMP_WAIT_POLICY": "PASSIVE"}
    if not sys.stderr.isatty():
        settings["TQDM_DISABLE"] = "1"
    return settings | os.environ
