"""Training runs of several real processes over gloo, one run after the other.

Usage: python -m tests.stages.training.distributed_child WORLD RUN...

A run is a JSON object: `store`, `processes`, and optionally `stage` (`train` or `sft`), `settings`
laid over those of `job`, and `die` ([RANK, STEP]: that process kills itself in the middle of the
step). Prints, per run, the exit codes and messages of its processes in order. The processes are
forks of this one, which has loaded the libraries; nothing else is shared.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

from stages import sft, train
from stages.config.training import Sft, Student
from stages.job import Input, Job
from stages.training.distributed import current
from storage.errors import AfterglowError
from storage.manifest import write_manifest
from tests.world import World, make_job

SETTINGS: dict[str, Any] = {
    "steps": 9,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup": 0.2,
    "run": {"checkpoint_every": 2, "log_every": 3, "tokens_per_microbatch": 24},
}
"""Steps of two or three micro-batches a process, and checkpoints out of step with log lines."""


def job(world: World, store: Path, stage: str = "train", **settings: Any) -> Job[Any]:
    """The job of a run.

    `base` names another model for `sft` to start from; `second` makes it the second of two rounds.
    """
    second = settings.pop("second", False)
    base = Input(str(settings.pop("base", world.reference)), dtype=settings.pop("dtype", "float32"))
    merged = SETTINGS | settings | {"run": SETTINGS["run"] | settings.get("run", {})}
    if stage == "sft":
        config: Any = Sft.model_validate(merged)
        return make_job(store, "sft", config, {"base": base, "sequences": world.sequences})
    config = Student.model_validate(merged)
    if second:
        first = job(world, store, **settings)
        base = Input(str(first.directory), first.key)
    return make_job(store, "train", config, {"init": base, "data": world.records})


def die_at(step: int) -> None:
    """Arrange for this process to kill itself in its `step`-th optimiser step."""
    original = torch.optim.AdamW.step
    left = step

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    torch.optim.AdamW.step = wrapped  # type: ignore[method-assign]


def work(world: World, run: dict[str, Any], rank: int, port: int, says: Path) -> int:
    """What one process does; returns its exit code."""
    if run["processes"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(run["processes"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    if run.get("die", [None])[0] == rank:
        die_at(run["die"][1])
    stage = run.get("stage", "train")
    made = job(world, Path(run["store"]), stage, **run.get("settings", {}))
    try:
        with current().fail_if_peer_lost():
            manifest = (sft if stage == "sft" else train).run(made)
        if rank == 0 and made.config.model_dump().get("rounds", 1) > 1:
            write_manifest(made.directory, manifest)  # the next round reads it
    except AfterglowError as error:
        says.write_text(str(error))
        return error.exit_code
    return 0


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended, in their order."""

    codes: list[int]
    """Negative: by a signal."""
    says: list[str]
    """Message of the error, or the stack of an unforeseen one; empty where all went well."""


def run_all(world: World, runs: list[dict[str, Any]]) -> list[Ended]:
    """Run them one after the other in a process of their own."""
    command = [sys.executable, "-m", "tests.stages.training.distributed_child", str(world.root)]
    done = subprocess.run(
        [*command, *map(json.dumps, runs)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(**json.loads(line)) for line in done.stdout.splitlines()]


def main(root: str, *runs: str) -> None:
    world = World.at(Path(root))
    for number, text in enumerate(runs):
        run = json.loads(text)
        meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        says = [
            Path(root) / f"says-{os.getpid()}-{number}-{rank}" for rank in range(run["processes"])
        ]
        children: list[int] = []
        for rank in range(run["processes"]):
            child = os.fork()
            if child == 0:
                try:
                    os._exit(work(world, run, rank, meeting.port, says[rank]))
                except BaseException:  # noqa: BLE001 - the parent shows it
                    says[rank].write_text(traceback.format_exc())
                    os._exit(1)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        words = [path.read_text() if path.exists() else "" for path in says]
        sys.stdout.write(json.dumps({"codes": codes, "says": words}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
