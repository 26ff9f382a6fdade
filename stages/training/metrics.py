"""`metrics.jsonl`: one JSON object per log line, in the directory of the set."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from storage.files.place import Place

Line = dict[str, float | int | str | None]

METRICS = "metrics.jsonl"


class Metrics:
    """Appends lines to a file; on resume, lines after the checkpoint are dropped first.

    `last` is the latest line, also one of an earlier process; empty when there is none.

    Args:
        path: The file.
        resume_step: Steps made before.
        writes: Whether this process is the one that writes; the others only keep `last`.
    """

    def __init__(self, path: Path, resume_step: int, writes: bool = True) -> None:
        kept = [line for line in read(path) if int(line["step"] or 0) <= resume_step]
        self.last: Line = kept[-1] if kept else {}
        self._stream: TextIO | None = None
        if not writes:
            return
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(_encode(line) for line in kept))
        temporary.replace(path)
        self._stream = path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, line: Line) -> None:
        """Append one line; it must have a `step`."""
        text = _encode(line)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        self.last = json.loads(text)


def read(path: Place) -> list[Line]:
    """The lines of a metrics file; a torn last line (the writer was killed) is left out."""
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]
    return [json.loads(text) for text in whole]


def describe(line: Mapping[str, float | int | str | None], steps: int) -> str:
    """A log line for people: `step 10/40, loss 1.234, ..., 61,000 tok/s, 1 % waiting`."""
    shown = [f"step {line['step']}/{steps}"]
    for name, value in line.items():
        if name == "tokens_per_second":
            shown.append(f"{value:,.0f} tok/s")
        elif name == "waiting":
            shown.append(f"{value:.0%} waiting")
        elif name != "step":
            shown.append(f"{name.replace('_', ' ')} {value:.4g}")
    return ", ".join(shown)


def _encode(line: Line) -> str:
    """One line of strict JSON: NaN and infinities become null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(plain) + "\n"
