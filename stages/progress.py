"""How far a stage is: a line in the log at least every 30 seconds or, on a terminal, a bar.

The runner opens a `Progress` around every stage, so that none is silent even while a model is
loaded or compiled. What a stage counts opens another one inside it, which then speaks in its place.
A thread prints the lines: a step that takes minutes does not keep them back.

    with Progress("train", steps, "steps") as progress:
        for _ in range(steps):
            ...
            progress.advance()
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from stages.ranks import WORKER, here

log = logging.getLogger(__name__)

SECONDS = 30.0
"""Between two lines."""

_opened: list["Progress"] = []
"""From the outermost to the one that speaks."""


class Progress:
    """The progress of one piece of work; a context manager.

    Args:
        name: Node as in `status`, and what it does where that is only a part.
        total: How much there is to do, over all workers; None: unknown.
        unit: What is counted, in the plural.
        done: How much of it was done before.
        elsewhere: Gives how much of it other processes have done, now.
    """

    def __init__(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: float = 0.0,
        elsewhere: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.own = 0.0
        """How much this process has done."""
        self.rate = ""
        """In words, of the longest piece of work inside it that has ended."""
        self._before, self._elsewhere = done, elsewhere
        self._tokens = 0
        self._longest = 0.0
        self._bar: Any = None
        self._stack = ExitStack()
        self._ended = threading.Event()
        self._last = self._began = 0.0
        self._at_start = self._others = 0.0

    def __enter__(self) -> Self:
        self._others = self._elsewhere()
        self._at_start = self._before + self._others
        self._last = self._began = time.monotonic()
        _opened.append(self)
        if self.total is not None and _on_terminal():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._stack.enter_context(logging_redirect_tqdm())
            self._bar = self._stack.enter_context(
                tqdm(
                    total=self.total,
                    initial=self._at_start,
                    desc=self.name,
                    bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:,.0f}/{total:,.0f} "
                    + self.unit
                    + " [{elapsed}, {remaining} left{postfix}]",
                    file=sys.stderr,
                    dynamic_ncols=True,
                    leave=False,
                    disable=False,
                )
            )
        threading.Thread(target=self._watch, name=f"progress of {self.name}", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._stack.close()
        _opened.remove(self)
        if kind is not None:
            return
        seconds = time.monotonic() - self._began
        if self.total is None:
            if seconds >= SECONDS:
                log.info("%s: took %s", self.name, duration(seconds))
            return
        rate = self._speed(seconds)
        log.info("%s: %s in %s, %s", self.name, self._amount(self.own), duration(seconds), rate)
        for outer in _opened:
            if seconds >= outer._longest:
                outer._longest, outer.rate = seconds, rate

    def advance(self, amount: float = 1.0, tokens: int = 0) -> None:
        """Count what this process has just done, and the tokens it took."""
        self.own += amount
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(amount)

    def reach(self, amount: float) -> None:
        """Count up to `amount`, unless that much was counted already."""
        self.advance(max(amount - self.own, 0.0))

    def say(self, text: str) -> None:
        """Log `text` with the time left, in place of the next line."""
        left = self._left()
        log.info("%s: %s%s", self.name, text, f", {left}" if left else "")
        self._last = time.monotonic()

    def line(self) -> str:
        """The share done and the time left, in words."""
        seconds = time.monotonic() - self._began
        if self.total is None:
            return f"{self.name}: working for {duration(seconds)}"
        share = self._done() / self.total if self.total else 1.0
        shown = [f"{self._done():,.0f} of {self._amount(self.total)} ({share:.0%})"]
        if self.own:
            shown.append(self._speed(seconds))
        if left := self._left():
            shown.append(left)
        return f"{self.name}: {', '.join(shown)}"

    def _watch(self) -> None:
        while not self._ended.wait(min(SECONDS, 1.0)):
            if _opened[-1:] != [self]:
                self._last = time.monotonic()
            elif time.monotonic() - self._last >= SECONDS:
                self._last = time.monotonic()
                self._others = self._elsewhere()
                if self._bar is None:
                    log.info("%s", self.line())
                else:
                    self._bar.n = self._done()
                    self._bar.refresh()

    def _done(self) -> float:
        return self._before + self._others + self.own

    def _left(self) -> str:
        done, seconds = self._done() - self._at_start, time.monotonic() - self._began
        if self.total is None or done <= 0 or seconds <= 0:
            return ""
        return f"about {duration((self.total - self._done()) * seconds / done)} left"

    def _amount(self, amount: float) -> str:
        return f"{amount:,.0f} {self.unit}"

    def _speed(self, seconds: float) -> str:
        """Of this process."""
        seconds = max(seconds, 1e-9)
        if self._tokens:
            return f"{self._tokens / seconds:,.0f} tokens/s"
        rate = self.own / seconds
        return f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s"


def advance(amount: float = 1.0, tokens: int = 0) -> None:
    """Count for the innermost progress of this process that counts; without one, do nothing."""
    for progress in reversed(_opened):
        if progress.total is not None:
            progress.advance(amount, tokens)
            return


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 5 s`, `3 h 12 min` or `2 d 7 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _on_terminal() -> bool:
    """Whether one process alone writes to a terminal that a person looks at."""
    return (
        sys.stderr.isatty()
        and here().first
        and WORKER not in os.environ
        and os.environ.get("AFTERGLOW_LOG") != "json"
        and not os.environ.get("CI")
        and "jobserver" not in os.environ.get("MAKEFLAGS", "")  # make -j
    )
