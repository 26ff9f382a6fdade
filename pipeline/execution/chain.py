"""Runs what is missing, stage after stage, each in a process of its own.

Engines and trainers do not share a process well (thread settings, allocators, patched libraries),
and a killed stage takes nothing else with it. The processes are forks of one that has imported what
they need (`pipeline.execution.warm`).
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

from pipeline.command import last_object
from pipeline.execution.ray_executor import cluster
from pipeline.execution.units import Units, complete, format_shards, local
from pipeline.execution.warm import Warm
from pipeline.ledger import to_toml
from pipeline.planning.config import Recipe
from pipeline.planning.plan import Planned
from stages.config.evaluation import Evaluate
from stages.config.execution import Workers
from stages.config.generation import EngineRun
from stages.config.records import ScoreRun
from stages.config.stage import StageTable
from stages.config.training import Training
from stages.engines.open import engine_modules
from stages.engines.vllm_process import CPU_ENGINE
from stages.models.environment import cpu_build
from storage.errors import AfterglowError, RetryError

log = logging.getLogger(__name__)

_READING = ("storage.kernels", "storage.parquet.pages")
"""What reads sets of sequences and records: with it, numba and its compiled loops."""


class StageFailed(AfterglowError):
    """A stage's process ended with an error that it has already reported.

    Attributes:
        damaged: The damaged file of a set, if that was the reason.
    """

    def __init__(self, names: str, exit_code: int, out: str = "") -> None:
        super().__init__(f"{names}: stopped with exit code {exit_code}; see the message above")
        self.exit_code = exit_code
        self.damaged: str | None = last_object(out).get("damaged")


@dataclass(frozen=True)
class Chain:
    """How the command is called again for parts of the same recipe."""

    recipe: Recipe
    arguments: list[str]
    """Command-line arguments that select the recipe."""
    warm: Warm | None = None
    """Where its processes are forked; None: a process of its own for each `run`."""

    @contextmanager
    def ahead(self, todo: Sequence[Planned]) -> Generator[Self]:
        """The same chain, while what the first stages of `todo` need is being imported."""
        if not todo:
            yield self
            return
        with Warm(imports_of(todo)) as warm:
            _, first = next(groupby(todo, key=_batch_key))
            warm.begin(imports_of(list(first)))
            yield replace(self, warm=warm)

    def run(self, todo: list[Planned]) -> None:
        """Make the nodes in `todo`, which come in order and miss nothing but each other.

        Raises:
            StageFailed: a process failed; its exit code becomes ours.
        """
        with self._forking(todo) as warm:
            for (stage, workers, processes), group in groupby(todo, key=_batch_key):
                batch = list(group)
                names = [planned.node.name for planned in batch]
                log.info("%s: starting %s", stage, ", ".join(names))
                if workers is None:
                    self._call(warm, "run", names, "--here", batch=batch, processes=processes)
                    continue
                for name in names:
                    self._side_by_side(warm, name, workers)

    def make_parts(self, name: str, indices: list[int]) -> None:
        """Make parts of a node that are missing or damaged, whether it is committed or not.

        Raises:
            StageFailed: the process failed.
        """
        with self._forking([]) as warm:
            self._call(warm, "run", [name], "--shard", format_shards(indices))

    def _forking(self, todo: Sequence[Planned]) -> AbstractContextManager[Warm]:
        """Where processes are forked: what `ahead` began, or one that imports what `todo` needs."""
        return nullcontext(self.warm) if self.warm else Warm(imports_of(todo))

    def _side_by_side(self, warm: Warm, name: str, workers: Workers) -> None:
        """Make the parts of a node by several workers, then commit it."""

        def units_left() -> Units:
            count = str(workers.workers)
            out = self._call(warm, "units", [name], "--node", "--at-most", count)
            found: Units = last_object(out)["units"]
            return [unit[: -len(self.arguments) or None] for unit in found]

        on_ray = workers.executor == "ray"
        executor = cluster(to_toml(self.recipe)) if on_ray else local(self.arguments)
        code = complete(units_left, workers, executor)
        if code != 0:
            raise StageFailed(name, code)
        self._call(warm, "commit", [name], "--node")

    def _call(
        self,
        warm: Warm,
        verb: str,
        names: list[str],
        *options: str,
        batch: Sequence[Planned] = (),
        processes: int = 1,
    ) -> str:
        """Run a verb in a fork of `warm` that has imported what `batch` needs.

        With several processes the fork is their launcher. One that was killed counts as exit code
        75.

        Returns:
            Its stdout.
        """
        module, arguments = "pipeline.cli", [verb, *names, *options, "--json", *self.arguments]
        if processes > 1:
            module, arguments = "pipeline.execution.launch", [str(processes), *arguments]
        code, out = warm.run(module, arguments, imports_of(batch))
        if code != 0:
            raise StageFailed(", ".join(names), RetryError.exit_code if code < 0 else code, out)
        return out


def imports_of(todo: Sequence[Planned]) -> list[str]:
    """What stages that run here import; with a GPU only the command: its driver bears no fork."""
    here = [one for one in todo if _batch_key(one)[1:] == (None, 1)] if cpu_build() else []
    modules = {one.node.stage.module for one in here}
    modules.update(*(_engine_modules(one.node.config) for one in here))
    if any(one.node.data is not None for one in here):
        modules.update(_READING)
    return ["pipeline.verbs", *sorted(modules)]


def _engine_modules(config: StageTable) -> tuple[str, ...]:
    """What the engine of a stage imports, beside the module of the stage."""
    run = getattr(config, "run", None)
    if isinstance(config, Evaluate) and config.prompts is None:
        return ()
    if isinstance(run, EngineRun):
        return engine_modules(run)
    return CPU_ENGINE if isinstance(run, ScoreRun) and run.engine == "vllm" else ()


def processes_wanted(planned: Planned) -> int:
    """How many processes a node asks to be trained by."""
    config = planned.node.config
    return config.run.processes if isinstance(config, Training) else 1


def _batch_key(planned: Planned) -> tuple[str, Workers | None, int]:
    """Equal for nodes that one command runs: stage, workers that make its parts, processes."""
    run = getattr(planned.node.config, "run", None)
    workers = run if isinstance(run, Workers) and run.spread else None
    return planned.node.stage.name, workers, processes_wanted(planned)
