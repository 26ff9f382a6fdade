"""What training logs: sums on the device between two lines, and `metrics.jsonl`, a line each."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

import torch
from torch import Tensor

from stages.training.drift import restored, summary
from stages.training.group import ALONE, Group
from storage.files.place import Place

T = TypeVar("T")

Line = dict[str, float | int | str | None]

METRICS = "metrics.jsonl"


class Window:
    """Token means of the objective's statistics, drift and speed since the last `flush`.

    The sums are part of a checkpoint: a resumed run writes the same lines and takes the same
    decisions as an undisturbed one (times apart).
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._positions: float = 0
        self._start_clock()

    def add(
        self,
        stats: Mapping[str, Tensor],
        drift: Tensor | None,
        tokens: int,
        weight_T: Tensor | None = None,
    ) -> None:
        """Add one micro-batch.

        Args:
            stats: Detached tensors, of all positions or of those whose weight is not zero; `logq`
                is that of the realised tokens.
            drift: `ratio_sums` of the micro-batch, where the drawing policy is known.
            tokens: Tokens that went through the model, prompts included.
            weight_T: Weights of the positions, where they have some: means are then weighted.
        """
        self._tokens += tokens
        weight_K: Tensor | float = 1.0
        if weight_T is None:
            self._positions += len(stats["logq"])
        else:
            weight_K = weight_T[weight_T != 0].double()
            self._positions += weight_K.sum().item()
            self._accumulate("kept", weight_K.new_tensor([len(weight_K), len(weight_T)]))
        for name, values_K in stats.items():
            if name != "logq":
                self._accumulate(name, (values_K * weight_K).sum(dtype=torch.float64))
        if drift is not None:
            self._accumulate("drift", drift)

    def waiting(self, action: Callable[[], T]) -> T:
        """Run `action` and book its time as waiting for data."""
        began = time.perf_counter()
        result = action()
        self._waited += time.perf_counter() - began
        return result

    def flush(self, group: Group = ALONE) -> dict[str, float]:
        """Means per position, drift, tokens per second and share of time spent waiting.

        All are over all processes of `group`, and every process must call. Where positions have
        weights, `kept` is the share whose weight is not zero; drift is that of these.
        """
        shares = group.all_gather((self.state_dict(), self._tokens, self._waited))
        sums: dict[str, list[float]] = {}
        for state, _, _ in shares:
            for name, values in state["sums"].items():
                known = sums.get(name, [0.0] * len(values))
                sums[name] = [a + b for a, b in zip(known, values, strict=True)]
        positions = sum(state["positions"] for state, _, _ in shares) or 1
        line: dict[str, float] = {}
        for name, values in sums.items():
            if name == "drift":
                line |= summary(*values)
            else:
                line[name] = values[0] / (values[1] if name == "kept" else positions)
        elapsed = time.perf_counter() - self._began
        line["tokens_per_second"] = sum(tokens for _, tokens, _ in shares) / elapsed
        line["waiting"] = sum(waited for _, _, waited in shares) / len(shares) / elapsed
        self._sums, self._positions = {}, 0
        self._start_clock()
        return line

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain numbers, without times."""
        sums = {name: value.view(-1).tolist() for name, value in self._sums.items()}
        return {"sums": sums, "positions": self._positions}

    def add_states(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Add the sums of the processes of a checkpoint, and start the clock."""
        for state in states:
            self._positions += state["positions"]
            for name, kept in state["sums"].items():
                values = restored(kept) if name == "drift" else kept
                self._accumulate(name, torch.tensor(values, dtype=torch.float64, device=device))
        self._start_clock()

    def _accumulate(self, name: str, value: Tensor) -> None:
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value

    def _start_clock(self) -> None:
        self._began, self._waited, self._tokens = time.perf_counter(), 0.0, 0


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


_ESTIMATES = ("loss", "drift")
"""Figures of which people know that they are not negative, and whose estimates may be."""


def describe(line: Mapping[str, float | int | str | None], steps: int) -> str:
    """A log line for people: `step 10/40, loss 1.234, ..., 61,000 tok/s, 1 % waiting`.

    Of the figures of drift it has the one that the run is judged by; the file has all. Loss and
    drift are estimates and may be below 0 (docs/tour.md, "Numbers below zero"); the line then says
    so.
    """
    shown = [f"step {line['step']}/{steps}"]
    for name, value in line.items():
        if name == "tokens_per_second":
            shown.append(f"{value:,.0f} tok/s")
        elif name == "waiting":
            shown.append(f"{value:.0%} waiting")
        elif name != "step" and not name.startswith("drift_"):
            below = name in _ESTIMATES and isinstance(value, float) and value < 0
            note = " (an estimate, which may be below 0)" if below else ""
            shown.append(f"{name.replace('_', ' ')} {value:.4g}{note}")
    return ", ".join(shown)


def _encode(line: Line) -> str:
    """One line of strict JSON: NaN and infinities become null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(plain) + "\n"
