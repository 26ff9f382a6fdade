"""Sums between two log lines, kept on the device so that a step never waits for them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stages.training.drift import summary
from stages.training.sums import Gather, add_named, alone

T = TypeVar("T")


@dataclass(frozen=True)
class _Sums:
    """What one process has summed."""

    sums: dict[str, Any]
    positions: float
    """Their number, or the sum of their weights."""
    tokens: int
    waited: float


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
        """Take in one micro-batch.

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
            self._accumulate("kept", torch.tensor([len(weight_K), len(weight_T)]))
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

    def flush(self, gather: Gather = alone) -> dict[str, float]:
        """Means per position, drift, tokens per second and share of time spent waiting.

        Where positions have weights, `kept` is the share whose weight is not zero; drift is that
        of these.

        Args:
            gather: Exchanges the sums of all processes, `Group.gather`; means are over all of them.
        """
        own = {name: value.tolist() for name, value in self._sums.items()}
        found = gather(_Sums(own, self._positions, self._tokens, self._waited))
        positions = sum(one.positions for one in found) or 1
        line: dict[str, float] = {}
        for name, value in add_named([one.sums for one in found]).items():
            if name == "kept":
                line[name] = value[0] / value[1]
            elif isinstance(value, list):
                line |= summary(*value)
            else:
                line[name] = value / positions
        elapsed = time.perf_counter() - self._began
        tokens, waited = sum(one.tokens for one in found), sum(one.waited for one in found)
        line |= {"tokens_per_second": tokens / elapsed, "waiting": waited / len(found) / elapsed}
        self._sums, self._positions = {}, 0
        self._start_clock()
        return line

    def state_dict(self) -> dict[str, Any]:
        """The sums, without times."""
        return {"sums": dict(self._sums), "positions": self._positions}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue with the sums of a checkpoint."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._positions = state["positions"]
        self._start_clock()

    def _accumulate(self, name: str, value: Tensor) -> None:
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value

    def _start_clock(self) -> None:
        self._began, self._waited, self._tokens = time.perf_counter(), 0.0, 0
