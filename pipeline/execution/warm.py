"""A process that has imported what the stages of a run need; every stage is a fork of it.

A stage of a small model spends more time importing torch, transformers and vLLM than working. Here
one process imports them once: what the first stage needs before it, the rest while it runs. It
starts no threads, holds no model and otherwise waits. A fork has memory, settings and signals of
its own, which end with it, so a stage that is killed takes nothing else with it, and the next one
begins where every other did.

    python -m pipeline.execution.warm MODULE ...

reads commands from stdin, one a line, as a JSON list: what must be imported before, the module
whose `main` runs, and its arguments. On stdout follow an empty line when the fork begins, what the
command prints, and a line with its exit code. Without a module nothing but the import happens.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import IO, Any, Self

from stages.models.environment import prepare_process
from storage.errors import RetryError

_ENDED = "\x04"
"""Begins the line with the exit code."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a command ran.

    Attributes:
        reported: Whether the command has said so.
    """

    def __init__(self, *, reported: bool) -> None:
        super().__init__()
        self.reported = reported


class Warm:
    """The warm process as a context manager; leaving it ends the process.

    Args:
        modules: What all commands together need. A module whose import fails is left to the command
            that needs it.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process as process:  # closes the pipes
            process.kill()  # it holds nothing, and would take a second to leave by itself

    def begin(self, imports: Sequence[str]) -> None:
        """Import `imports` from now on, since a command that needs them is about to come."""
        self._send([imports, None, []])

    def run(
        self, module: str, arguments: Sequence[str], imports: Sequence[str] = ()
    ) -> tuple[int, str]:
        """Run `main(arguments)` of `module` in a fork that has imported `imports`, with our stderr.

        SIGTERM is passed on, and waited for.

        Returns:
            Its exit code, as of `subprocess` (75 if the warm process was killed), and its stdout.

        Raises:
            Interrupted: Ctrl-C.
        """
        if self._process.poll() is not None:
            self._process = self._start()
        stdout = self._process.stdout
        assert stdout is not None
        begun = False

        def pass_on(signum: int, _frame: FrameType | None) -> None:
            self._process.send_signal(signum)

        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            self._send([imports, module, arguments])
            begun = stdout.readline() != ""
            return _read(stdout)
        except KeyboardInterrupt as error:
            # Ctrl-C reaches the command too, if it had begun, and the command has said so.
            code = _read(stdout)[0] if begun else 0
            raise Interrupted(reported=code == RetryError.exit_code) from error
        finally:
            signal.signal(signal.SIGTERM, before)

    def _send(self, command: list[Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed: so says the end of its stdout
            os.write(self._process.stdin.fileno(), f"{json.dumps(command)}\n".encode())

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.execution.warm", *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _read(stdout: IO[str]) -> tuple[int, str]:
    """What a command prints, up to its end, and its exit code."""
    lines: list[str] = []
    for line in stdout:
        if line.startswith(_ENDED):
            return int(line.removeprefix(_ENDED)), "".join(lines)
        lines.append(line)
    return RetryError.exit_code, "".join(lines)


# ---------------------------------------------------------------------------------------------
# In the process


def serve(modules: Sequence[str]) -> tuple[str, list[str]]:
    """Fork for every line on stdin; returns its module and arguments, in the fork only.

    Args:
        modules: Imported while the first command runs.
    """
    environment, fork = dict(os.environ), 0

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        if not fork:
            os._exit(RetryError.exit_code)
        os.kill(fork, signum)

    signal.signal(signal.SIGTERM, pass_on)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the fork too
    prepare_process()
    for line in sys.stdin:
        imports, module, arguments = json.loads(line)
        _import(imports)
        if module is None:
            continue
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        fork = os.fork()
        if fork == 0:
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            # What engines want set must not reach what a command starts itself: trainers' ranks.
            os.environ.clear()
            os.environ.update(environment)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _say("\n")
            return module, arguments
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _import(modules)
        # Not reaped before `fork` is 0 again: the number may then be another process's.
        os.waitid(os.P_PID, fork, os.WEXITED | os.WNOWAIT)
        ended, fork = fork, 0
        code = os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1])
        with suppress(BrokenPipeError):  # who asked was killed
            _say(f"\n{_ENDED}{code}\n")
    os._exit(0)


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        with suppress(Exception):  # the command that needs it says why it fails
            importlib.import_module(module)
    # Half a million objects that stay: collections in the forks need not visit, and so copy, them.
    gc.freeze()


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.argv[0], sys.argv[1:] = serve(sys.argv[1:])
    sys.exit(importlib.import_module(sys.argv[0]).main(sys.argv[1:]))
