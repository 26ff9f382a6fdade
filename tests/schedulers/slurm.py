"""Slurm's part of an array job, on this machine: `sbatch` and `scontrol requeue`, nothing more.

Installed under both names in a folder on PATH (`install`), with its state in AFTERGLOW_SLURM. What
the scripts of docs/slurm.md see is what Slurm gives them: the variables SLURM_JOB_ID,
SLURM_ARRAY_JOB_ID, SLURM_ARRAY_TASK_ID and SLURM_RESTART_COUNT, tasks of an array side by side, a
job that waits for another (`afterok`) and is dropped when that fails, and the queue a job can put
itself back into. Jobs run before `sbatch` returns, with or without `--wait`.
"""

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def install(folder: Path) -> None:
    """Put `sbatch` and `scontrol` into `folder`."""
    for name in ("sbatch", "scontrol"):
        program = folder / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} {name} "$@"\n')
        program.chmod(0o755)


def indices(listed: str) -> list[int]:
    """`0-2,5` as Slurm reads it."""
    ends = [item.split("-") for item in listed.split(",")]
    return [index for end in ends for index in range(int(end[0]), int(end[-1]) + 1)]


def sbatch(state: Path, words: list[str]) -> int:
    """Run a job to its end; what it came to is kept for those that wait for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--array")
    parser.add_argument("--dependency", default="")
    parser.add_argument("--kill-on-invalid-dep")
    parser.add_argument("--parsable", action="store_true")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("script")
    options, arguments = parser.parse_known_args(words)
    job = next(number for number in itertools.count(1) if _create(state / f"job-{number}"))
    (state / f"job-{job}").write_text(" ".join(words))
    sys.stdout.write(f"{job}\n" if options.parsable else f"Submitted batch job {job}\n")
    sys.stdout.flush()
    needed = options.dependency.removeprefix("afterok:")
    if needed and (state / f"ended-{needed}").read_text() != "0":
        return 0
    listed, _, at_once = (options.array or "").partition("%")
    tasks = indices(listed) if listed else [None]
    command = ["/bin/bash", options.script, *arguments]
    with ThreadPoolExecutor(int(at_once or len(tasks))) as pool:
        codes = list(pool.map(lambda task: _task(state, job, task, command), tasks))
    (state / f"ended-{job}").write_text(str(max(codes)))
    return max(codes) if options.wait else 0


def _create(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _task(state: Path, job: int, index: int | None, command: list[str]) -> int:
    """One task of an array, as often as it asks for; its exit code in the end."""
    own = f"{job}" if index is None else f"{job}{index:04d}"  # every task has a job's number too
    variables = {"SLURM_JOB_ID": own}
    if index is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(index)}
    for restart in itertools.count():
        if restart:
            variables["SLURM_RESTART_COUNT"] = str(restart)
        with (state / f"log-{own}").open("ab") as log:
            done = subprocess.run(
                command, env=os.environ | variables, stdout=log, stderr=log, check=False
            )
        again = state / f"requeue-{own}"
        if not again.exists():
            return done.returncode
        again.unlink()
    raise AssertionError("unreachable")


def main() -> int:
    """Be the program whose name comes first."""
    state = Path(os.environ["AFTERGLOW_SLURM"])
    name, *words = sys.argv[1:]
    if name == "sbatch":
        return sbatch(state, words)
    verb, job = words
    if verb != "requeue":
        return 1
    (state / f"requeue-{job}").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
