"""Stages that are disturbed in every way a machine knows, and what comes out in the end.

Usage: python -m tests.faults.recovery DIRECTORY KILLS STAGE...

Prints one JSON object a line: by stage and disturbance how often it was disturbed and what
followed. Every attempt is a process of its own, forked from one that has imported the libraries
already. First the node is made undisturbed; then again and again in the same place, while it is
killed, told to end, raced by another runner, given a full disk or a wrong clock. Whatever is left
over is then run to its end and compared with the undisturbed set. Parts that were finished must not
be made again.
"""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pipeline.execution import runner
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, resolve
from storage.errors import AfterglowError, RetryError
from storage.manifest import read_manifest
from storage.sets import verify_set
from storage.shard import find_part
from storage.store import Store
from tests.command import TINY_RECIPE

OVERRIDES = [
    "corpus.count=1024",
    "corpus.sequences_per_part=64",
    'sft-data.run={engine="transformers"}',
    'rollouts.run={engine="transformers"}',
    'evaluate.run={engine="transformers"}',
    "train.run={checkpoint_every=1}",
    "sft.run={checkpoint_every=1}",
    "residualize={folds=2}",
]
NODES = {
    "corpus": "corpus",
    "pretrain": "pretrain.teacher",
    "sft-data": "sft-data",
    "sft": "sft",
    "rollouts": "rollouts",
    "teacher-logits": "teacher-logits",
    "train": "train.reverse_kl",
    "evaluate": "evaluate.reverse_kl",
    "residualize": "residualize",
    "report": "report",
}
TIMED = {"metrics.jsonl", "evaluation.json", "rows.jsonl", "report.html"}
"""Files that hold durations beside their content."""
YEARS = 10 * 365 * 86400.0

Child = Callable[[], None]
Row = dict[str, int]


def plan(root: Path, target: str) -> tuple[list[Planned], Store]:
    """The node and all it needs, and their store."""
    recipe = load_recipe(None, [TINY_RECIPE], [*OVERRIDES, f"store={root}"])
    store = Store(root)
    return resolve(select(build(recipe), [target]), store, ready=True), store


def start(work: Child, log: Path) -> int:
    """Run `work` in a child; its exit code is that of the command."""
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work()
    except AfterglowError as error:
        print(error, file=sys.stderr)  # noqa: T201
        code = error.exit_code
    except BaseException:  # noqa: BLE001  # the child ends here, whatever it was
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def end(child: int) -> int:
    """Wait for a child: its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Node:
    """One node of the plan, to be made over and over."""

    def __init__(self, root: Path, name: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        planned, self.store = plan(root, name)
        self.planned = planned[-1]
        self.upstream = planned[:-1]
        self.directory = Path(str(self.planned.directory(self.store)))
        self.log = root / f"{name}.log"
        self.calm: dict[str, str] = {}
        self.seconds = 0.0

    def make(self) -> None:
        """Make it, as `afterglow run --here` does."""
        runner.run_node(self.planned, self.store)

    def settle(self) -> None:
        """Make everything before it, then itself undisturbed."""
        for name in ("storage.kernels", "storage.parquet.pages", "pyarrow.parquet"):
            importlib.import_module(name)  # once for all children: only their own work is disturbed
        importlib.import_module(self.planned.node.stage.module)
        for before in runner.missing(self.upstream, self.store):
            if end(start(lambda one=before: _run(one, self.store), self.log)) != 0:
                raise SystemExit(self.log.read_text())
        shutil.rmtree(self.directory, ignore_errors=True)
        begun = time.monotonic()
        if end(start(self.make, self.log)) != 0:
            raise SystemExit(self.log.read_text())
        self.seconds = time.monotonic() - begun
        self.calm = self.content()

    def content(self) -> dict[str, str]:
        """Digests of what the set holds."""
        manifest = read_manifest(self.directory)
        parts = {part.file: part.sha256 for part in manifest.parts}
        files = {file.path: file.sha256 for file in manifest.files if file.path not in TIMED}
        return parts | files | {"key": manifest.key}

    def finished(self) -> dict[str, tuple[int, int]]:
        """Parts that are done: inode and time of each."""
        count = len(self.calm)
        found = [find_part(self.directory, index) for index in range(count)]
        names = [part.file for part in found if part is not None]
        return {name: _stamp(self.directory / name) for name in names}

    def clear(self) -> None:
        """Start anew."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def recovered(self) -> bool:
        """Run to the end; whether the set is complete, sound and the one that was to be."""
        if end(start(self.make, self.log)) != 0:
            raise SystemExit(self.log.read_text())
        strays = [path.name for path in self.directory.glob("part-*") if path.name not in self.calm]
        return self.content() == self.calm and verify_set(self.directory) == [] and not strays


def _run(planned: Planned, store: Store) -> None:
    runner.run_node(planned, store)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def killed(node: Node, times: int, how: int, rng: random.Random) -> Row:
    """End the process at random instants, each time going on where the last one was ended.

    How long it would take differs from time to time, so instants are drawn from an estimate that
    shrinks where the process was faster and grows where it was not.
    """
    row = {"disturbed": 0, "finished first": 0, "recovered": 0, "lost": 0, "parts kept": 0}
    row["parts made again"] = 0
    node.clear()
    done: dict[str, tuple[int, int]] = {}
    lasts = node.seconds
    while row["disturbed"] < times and row["finished first"] < 5 * times:
        child = start(node.make, node.log)
        time.sleep(rng.uniform(0.0, 1.0) * lasts)
        os.kill(child, how)
        ended = end(child) == -how
        row["disturbed" if ended else "finished first"] += 1
        lasts *= 1.05 if ended else 0.9
        now = node.finished()
        row["parts kept"] += len(done)
        row["parts made again"] += sum(now.get(name) != stamp for name, stamp in done.items())
        done = now
        if (node.directory / "manifest.json").exists():
            row["recovered" if node.recovered() else "lost"] += 1
            node.clear()
            done = {}
    row["recovered" if node.recovered() else "lost"] += 1
    return row


def raced(node: Node, times: int, *_: object) -> Row:
    """Two runners on one store at once; one may be sent away, but not both."""
    row = {"disturbed": 0, "recovered": 0, "lost": 0}
    for _attempt in range(times):
        node.clear()
        codes = [end(child) for child in [start(node.make, node.log) for _ in range(2)]]
        row["disturbed"] += 1
        fine = 0 in codes and set(codes) <= {0, RetryError.exit_code}
        row["recovered" if fine and node.recovered() else "lost"] += 1
    return row


def full(node: Node, times: int, *_: object) -> Row:
    """No file may grow beyond a limit; the process must say so and name the exit code."""
    row = {"disturbed": 0, "recovered": 0, "lost": 0}
    sizes = [path.stat().st_size for path in node.directory.iterdir() if path.is_file()]
    for share in range(1, times + 1):
        node.clear()
        limit = max(sizes) * share // (times + 1)

        def narrow(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            node.make()

        node.log.unlink(missing_ok=True)
        code = end(start(narrow, node.log))
        row["disturbed"] += 1
        fine = code == RetryError.exit_code
        row["recovered" if fine and node.recovered() else "lost"] += 1
    return row


def wrong_clock(node: Node, times: int, *_: object) -> Row:
    """Ten years ahead, then ten years back, in the middle of one set; files dated accordingly."""
    row = {"disturbed": 0, "recovered": 0, "lost": 0}
    real = time.time
    for count in range(times):
        node.clear()
        for shift in (YEARS, -YEARS):

            def shifted(shift: float = shift) -> None:
                time.time = lambda: real() + shift
                node.make()

            child = start(shifted, node.log)
            time.sleep(node.seconds * (0.3 + 0.1 * (count % 5)))
            os.kill(child, signal.SIGKILL)
            end(child)
            for path in [*node.directory.rglob("*")]:
                os.utime(path, (real() + shift, real() + shift))
        row["disturbed"] += 1
        row["recovered" if node.recovered() else "lost"] += 1
    return row


def disturb(root: Path, stage: str, kills: int) -> dict[str, Row]:
    """Every disturbance of one stage."""
    node = Node(root, NODES[stage])
    node.settle()
    rng = random.Random(stage)
    few = max(1, kills // 10)
    return {
        "kill -9": killed(node, kills, signal.SIGKILL, rng),
        "SIGTERM": killed(node, few, signal.SIGTERM, rng),
        "two runners": raced(node, few),
        "full disk": full(node, few),
        "wrong clock": wrong_clock(node, few),
    }


def main(root: str, kills: str, *names: str) -> None:
    """See the module."""
    if set(names) - {"corpus"}:
        importlib.import_module("stages.train")  # torch and transformers, once for all children
    for name in names:
        print(json.dumps({name: disturb(Path(root), name, int(kills))}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
