"""One optimiser step by what it minimises: records against plain cross-entropy and the full loss.

    python -m benchmarks.train_step

Two sizes: the demo's student, and a small transformer under a vocabulary of 151,936, where almost
all of a step is the head. A step is what `stages.training.loop` makes of one batch: forward and
backward pass, clipping, AdamW. Candidates:

    reverse_kl, forward_kl, jsd   from records, by `stages.losses.head_loss`
    cross_entropy                 of the realised token, by the same code
    plain cross_entropy           `torch.nn.functional.cross_entropy` over all logits at once
    full forward_kl               over all logits at once, of student and teacher (whose logits are
                                  there for nothing: its forward pass is not counted)
    TRL GKD, TRL distillation     where TRL is installed: its two losses, over whole logits and in
                                  chunks. The latter starts from the teacher's hidden states, so the
                                  teacher's head (of the student's size here) is counted

A GPU, where there is one, is a third size, in bfloat16 and wall-clock time.

Memory is the peak of the resident memory of a process that runs three steps of one candidate, over
what was resident before the first: gradients and the optimiser's state are in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import trl_losses
from benchmarks.harness import ROOT, Goal, Line, Options, Report, Table, cost_line, interleave, main
from benchmarks.memory import resident
from benchmarks.steps import CANDIDATES, PLAIN, WEIGHED, Size, Steps

_GPU = "V = 151,936, GPU, bfloat16"
SIZES = {
    "demo": Size(20, 64, 2, 64, 9, 30, 1024, 4, 1),
    "V = 151,936": Size(151_936, 256, 2, 4, 32, 64, 128, 5, 7),
    _GPU: Size(151_936, 1024, 4, 16, 64, 256, 1024, 5, 7),
}
QUICK = {"V = 1,000": Size(1000, 64, 1, 4, 4, 8, 16, 5, 7)}


def _gpu_time() -> float:
    """Wall clock once the GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "cuda": _gpu_time}


def run(options: Options) -> Report:
    """Time and memory of a step, for every candidate and size."""
    torch.set_num_threads(1)
    lines: list[Line] = []
    tables: list[Table] = []
    raw: dict[str, object] = {}
    for name, size in _sizes(options).items():
        device = "cuda" if name == _GPU else "cpu"
        steps = Steps(size, device)
        repeat = 1 if size.vocabulary > 1000 else 8
        work = {one: _repeated(steps, one, repeat) for one in CANDIDATES}
        found = {
            one: [seconds / repeat for seconds in times]
            for one, times in interleave(work, options.rounds, CLOCKS[device]).items()
        }
        memory = _memory(name, options.quick) if device == "cpu" else _memory_gpu(steps)
        raw[name] = {"seconds": found, "megabytes": memory}
        limit = 1.10 if device == "cpu" else 1.03
        what = f"train step with reverse_kl, {name}"
        for against in ("cross_entropy", PLAIN):
            goals = (Goal("ratio", "<=", limit),)
            lines.append(
                cost_line(f"{what}: time", "s/step", found, "reverse_kl", against, goals=goals)
            )
            ours, peer = memory["reverse_kl"], memory[against]
            lines.append(
                Line(
                    what=f"{what}: memory",
                    unit="MB",
                    ours=ours,
                    against=against,
                    peer=peer,
                    ratio=ours / peer,
                    goals=(Goal("ratio", "<=", 1.05),),
                )
            )
        base = statistics.median(found["cross_entropy"])
        rows = [
            [
                one,
                f"{1000 * statistics.median(found[one]):.4g}",
                f"{statistics.median(found[one]) / base:.3f}",
                f"{memory[one]:.0f}" if one in memory else "",
            ]
            for one in CANDIDATES
        ]
        header = ("objective", "ms per step", "over cross_entropy", "MB")
        tables.append(Table(f"Train step, {name}, {steps.batch.tokens} positions", header, rows))
    return Report("Train step", lines, tables, [], raw)


def _sizes(options: Options) -> dict[str, Size]:
    gpu = {_GPU: SIZES[_GPU]} if torch.cuda.is_available() and not options.quick else {}
    on_cpu = {name: size for name, size in SIZES.items() if name != _GPU}
    return QUICK if options.quick else on_cpu | gpu


def _memory_gpu(steps: Steps) -> dict[str, float]:
    """Growth of the peak of allocated GPU memory over three steps of each candidate, in MB."""
    found: dict[str, float] = {}
    for candidate in WEIGHED:
        steps.prepare(candidate)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            steps.run(candidate)
        found[candidate] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def _repeated(steps: Steps, candidate: str, times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            steps.run(candidate)

    return work


def _memory(size: str, quick: bool) -> dict[str, float]:
    """Growth of the peak resident memory over three steps of each candidate, in MB."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", size]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def _children(size: Size) -> dict[str, float]:
    """Every candidate in a fork of this process: libraries are loaded, nothing else is done."""
    trl_losses.load()
    found: dict[str, float] = {}
    for candidate in WEIGHED:
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, json.dumps(_growth(size, candidate)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            found[candidate] = json.loads(pipe.read())
        os.wait()
    return found


def _growth(size: Size, candidate: str) -> float:
    torch.set_num_threads(1)
    steps = Steps(size)
    steps.prepare(candidate)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    for _ in range(3):
        steps.run(candidate)
    return resident("VmHWM") - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--child")
    parser.add_argument("--quick", action="store_true")
    parsed, _ = parser.parse_known_args()
    if parsed.child:
        chosen = (QUICK if parsed.quick else SIZES)[parsed.child]
        sys.stdout.write(json.dumps(_children(chosen)))
    else:
        main(run, __doc__)
