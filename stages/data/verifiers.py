"""Verifiers: is a response right, given a reference answer? Others are marked, never dropped.

`exact_match` compares strings, `math_verify` compares parsed mathematics in processes of its own.
The outcome is one of `storage.schema.OUTCOME`; docs/verifiers.md states the rules, with cases.
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
from stages.data.final_answer import choice_of, chosen, final_answer, plain, plain_punctuation
from stages.models.environment import cpu_count
from storage.errors import ConfigError, EngineError
from storage.schema import NOT_RIGHT, OUTCOME

log = logging.getLogger(__name__)

Check = Callable[[Sequence[str], Sequence[str | None], Sequence[bool]], NDArray[np.int8]]
"""Texts, reference answers and whether each text was cut at the length limit, [N] each, to outcomes
[N]."""

SCRIPT = Path(__file__).with_name("math_worker.py")
_MAX_WORKERS = 4
"""Processes of math-verify, each fed by a thread of its own."""

EXACT_MATCH_VERSION = 1
"""Raised when the rules of `exact_match` change; 1 stays out of the key."""
MATH_RULES_VERSION = 2
"""Raised when the rules of `stages.data.final_answer` change a verdict. Version 1, which let
math-verify read the whole response, cut or not, has none in its keys."""
MATH_VERIFY_VERSION = "0.9.0"
"""The version of math-verify assumed where it is not installed: the one of requirements/*.txt."""


def verifier_identity(config: Verifier) -> dict[str, object]:
    """The version of the verifier's rules, which decides outcomes as much as the table does.

    Empty for version 1 of `exact_match`. A machine without math-verify can verify nothing but may
    plan and read sets; it looks for those of `MATH_VERIFY_VERSION`.
    """
    if config.kind == "exact_match":
        version = EXACT_MATCH_VERSION
        return {} if version == 1 else {"verifier": f"exact_match {version}"}
    try:
        installed = importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError:
        installed = MATH_VERIFY_VERSION
    return {"verifier": f"math-verify {installed}, rules {MATH_RULES_VERSION}"}


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

    def check_one(text: str, answer: str | None, cut: bool) -> int:
        if answer is None:
            return OUTCOME["unknown"]
        text, answer = plain_punctuation(text), plain_punctuation(answer)
        found = final_answer(text, marked_only=cut)
        if found is None:
            return OUTCOME["cut" if cut else "unparsed"]
        if (letter := choice_of(answer)) is not None:
            choice = chosen(found)
            outcome = OUTCOME["unparsed"] if choice is None else int(choice == letter)
        elif plain(found.said) == plain(answer):
            outcome = OUTCOME["right"]
        else:
            if not hasattr(mine, "worker"):
                mine.worker = MathWorker()
                workers.append(mine.worker)
            outcome = mine.worker.check(found.readings, answer)
        return OUTCOME["cut"] if cut and outcome in NOT_RIGHT else outcome

    def check(
        texts: Sequence[str], answers: Sequence[str | None], cut: Sequence[bool]
    ) -> NDArray[np.int8]:
        return np.fromiter(threads.map(check_one, texts, answers, cut), np.int8, len(texts))

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
    pattern without groups. An empty pattern takes the whole response. What the pattern matches is
    the answer, also in a response that was cut: a pattern that must not take half an answer for a
    whole one asks for what follows it.

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

    def check_one(text: str, answer: str | None, cut: bool) -> int:
        if answer is None:
            return OUTCOME["unknown"]
        said = found(text)
        if said == answer.strip():
            return OUTCOME["right"]
        if cut:
            return OUTCOME["cut"]
        return OUTCOME["unparsed" if said is None else "wrong"]

    def check(
        texts: Sequence[str], answers: Sequence[str | None], cut: Sequence[bool]
    ) -> NDArray[np.int8]:
        return np.fromiter(map(check_one, texts, answers, cut), np.int8, len(texts))

    return check


class MathWorker:
    """One process that runs `stages/data/math_worker.py`."""

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def check(self, readings: Sequence[str], answer: str) -> int:
        """Outcome of one pair; unparsed if the process dies or does not answer in time."""
        if self._process is None:
            self._process = _start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([list(readings), answer]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.stop()
            log.warning(
                "an answer could not be compared with %r within its limits: counted as unparsed",
                answer,
            )
            return OUTCOME["unparsed"]
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
