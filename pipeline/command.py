"""Calls the `afterglow` command for a scheduler and returns the last line it prints.

Standard library only, like `pipeline.graph`: the files in `dags/` import these two and their
scheduler, which parses them many times a minute.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterable
from typing import Any

TRY_AGAIN = 75
"""Exit code of a failure that the machine caused: disk full, pre-empted."""

RETRIES = 5
"""How often a scheduler repeats such a task."""


class Failed(Exception):
    """The command failed; its log says why."""

    def __init__(self, arguments: list[str], code: int) -> None:
        ended = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        super().__init__(f"afterglow {shlex.join(arguments)}: {ended}; its log says why")
        self.again = code < 0 or code == TRY_AGAIN
        """Whether the same command may succeed later: exit code 75, or death by a signal."""


def setting(name: str, default: str) -> str:
    """The environment variable `AFTERGLOW_<NAME>`."""
    return os.environ.get(f"AFTERGLOW_{name}", default)


def recipe_arguments(recipe: str, config: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Arguments that select a recipe: the files `config` or, without any, the name `recipe`."""
    files = [word for file in config for word in ("--config", file)]
    source = files or ["--recipe", recipe]
    return [*source, *(word for override in overrides for word in ("--set", override))]


def call(arguments: list[str], log: int | None = None) -> dict[str, Any]:
    """Run `afterglow ARGUMENTS`; AFTERGLOW_COMMAND replaces the word `afterglow`.

    Args:
        arguments: Of the command.
        log: Descriptor for its log; default: stderr of this process.

    Returns:
        The JSON object that it printed last.

    Raises:
        Failed: the exit code is not 0.
    """
    command = shlex.split(setting("COMMAND", "afterglow"))
    done = subprocess.run(
        [*command, *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(arguments, done.returncode)
    return last_object(done.stdout)


def last_object(out: str) -> dict[str, Any]:
    """The JSON object that a command printed last; empty if it printed none.

    Lines that libraries print to stdout while a process ends are passed over.
    """
    for line in reversed(out.splitlines()):
        if line.startswith("{") and line.endswith("}"):
            return json.loads(line)
    return {}
