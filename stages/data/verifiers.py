"""Verifiers: is a response right, given a reference answer? Wrong ones are marked, never dropped.

`exact_match` compares strings, `math_verify` compares parsed mathematics in processes of its own.
Importing this module imports neither torch nor math_verify.
"""

import importlib.metadata
import importlib.util
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.config.data import Verifier
from stages.models.environment import cpu_count
from storage.errors import ConfigError, EngineError
from storage.schema import OUTCOME

log = logging.getLogger(__name__)

Check = Callable[[Sequence[str], Sequence[str | None]], NDArray[np.int8]]
"""Texts and reference answers, [N] each, to outcomes [N]: 1 right, 0 wrong, -1 without answer."""

SCRIPT = Path(__file__).with_name("math_worker.py")
_MAX_WORKERS = 4
"""Processes of math-verify, each fed by a thread of its own."""

EXACT_MATCH_VERSION = 1
"""Raised when the rules of `exact_match` change; 1 stays out of the key."""
MATH_VERIFY_VERSION = "0.9.0"
"""The version of math-verify that stays out of the key: the one of requirements/*.txt."""


def verifier_identity(config: Verifier) -> dict[str, object]:
    """The version of the verifier's rules, which decides outcomes as much as the table does.

    Empty for the versions whose keys carry none. A machine without math-verify can verify nothing
    but may plan and read sets; it looks for those of `MATH_VERIFY_VERSION`.
    """
    if config.kind == "exact_match":
        name, version, silent = "exact_match", str(EXACT_MATCH_VERSION), "1"
    else:
        name, silent = "math-verify", MATH_VERIFY_VERSION
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = silent
    return {} if version == silent else {"verifier": f"{name} {version}"}


@contextmanager
def open_verifier(config: Verifier) -> Iterator[Check]:
    """The function that checks responses; processes it started end with the context.

    Raises:
        ConfigError: the pattern is not a regular expression, or math-verify is not installed.
    """
    if config.kind == "exact_match":
        yield exact_match(config.extract)
        return
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            'verifier.kind = "math_verify", but math-verify is not installed. Install it, or use '
            '"exact_match".'
        )
    mine = threading.local()
    workers: list[MathWorker] = []

    def check_one(text: str, answer: str | None) -> int:
        if answer is None:
            return OUTCOME["unknown"]
        if not hasattr(mine, "worker"):
            mine.worker = MathWorker()
            workers.append(mine.worker)
        return mine.worker.check(text, answer)

    def check(texts: Sequence[str], answers: Sequence[str | None]) -> NDArray[np.int8]:
        return np.fromiter(threads.map(check_one, texts, answers), np.int8, len(texts))

    with ThreadPoolExecutor(min(_MAX_WORKERS, cpu_count())) as threads:
        try:
            yield check
        finally:
            threads.shutdown()
            for worker in workers:
                worker.stop()


def exact_match(extract: str) -> Check:
    """Compares what `extract` finds in a response with the reference answer, white space aside.

    The last match counts, as the last thing said is the answer; its first group, or all of it in a
    pattern without groups. An empty pattern takes the whole response.

    Raises:
        ConfigError: `extract` is not a regular expression.
    """
    try:
        pattern = re.compile(extract)
    except re.error as error:
        raise ConfigError(
            f"verifier.extract = {extract!r}: not a regular expression ({error})"
        ) from error

    def found(text: str) -> str | None:
        if not extract:
            return text.strip()
        matches = list(pattern.finditer(text))
        if not matches:
            return None
        answer = matches[-1][1 if pattern.groups else 0]
        return answer.strip() if answer is not None else None

    def check(texts: Sequence[str], answers: Sequence[str | None]) -> NDArray[np.int8]:
        return np.array(
            [
                OUTCOME["unknown"] if answer is None else int(found(text) == answer.strip())
                for text, answer in zip(texts, answers, strict=True)
            ],
            np.int8,
        )

    return check


class MathWorker:
    """One process that runs `stages/data/math_worker.py`."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def check(self, text: str, answer: str) -> int:
        """Outcome of one pair; wrong if the process dies or does not answer in time."""
        if self._process is None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([text, answer]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.stop()
            log.warning(
                "an answer could not be compared with %r within its limits: counted as wrong",
                answer,
            )
            return OUTCOME["wrong"]
        return int(line)

    def stop(self) -> None:
        """Kill the process; the next pair starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> "subprocess.Popen[str]":
    """A worker process that is ready.

    Raises:
        EngineError: it exited instead, before any answer was sent.
    """
    # -P: the script's directory holds modules whose names must not shadow installed packages.
    process = subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        process.communicate()
        raise EngineError(
            f"{SCRIPT}: the process that compares answers does not start (exit code "
            f"{process.returncode}); run it by hand to see why"
        )
    return process
