"""How far the student has drifted from the policy that wrote the data.

Everything offline rests on the realised tokens still being likely under the student: the gap
between the live and the offline gradient is bounded by the square root of chi2(pi || pi_ref)
(arXiv 2604.13010, theorem 3.5). With w = pi(a) / pi_ref(a) over realised tokens a ~ pi_ref:

    mean    E[w]             1 in expectation when pi_ref had full support
    sd      sd(w)
    ess     (sum w)^2 / (n sum w^2)   effective share of the sample
    chi2    E[w^2] - 1       token-level chi-square divergence

chi2 is an estimate and may come out below 0: when the mean of w over the sample is below 1, because
the few tokens with large w did not occur in it, or because pi_ref lacked full support.

Here pi is the student at the objective's temperature and pi_ref the distribution the token was
really drawn from, so chi2 measures the very weights the corrected objective works with.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from stages.config.objectives import Drift
from stages.training.group import ALONE, Group

log = logging.getLogger(__name__)

Verdict = Literal["ok", "warn", "stop"]

CHECKED_EVERY = 10
"""Optimiser steps over which drift is measured before it is checked: one batch has too few of the
rare large weights, and log lines must not decide, since how often they come is not in the key."""

_LARGEST_LOG_RATIO = 300.0  # exp(600) is still finite in float64: w^2 never overflows


def ratio_sums(logq_T: Tensor, ref_lp_T: Tensor) -> Tensor:
    """Float64 [n, sum w, sum w^2] of w = exp(logq - ref_lp) over T realised tokens (nats)."""
    log_w = (logq_T.double() - ref_lp_T.double()).clamp_(max=_LARGEST_LOG_RATIO)
    w = log_w.exp_()
    return torch.stack([w.new_tensor(float(w.numel())), w.sum(), torch.dot(w, w)])


def summary(n: float, sum_w: float, sum_w2: float) -> dict[str, float]:
    """Mean and standard deviation of w, effective sample share and chi2, from the three sums.

    Returns an empty dictionary when there were no tokens.
    """
    if n == 0:
        return {}
    mean, square = sum_w / n, sum_w2 / n
    return {
        "drift_mean": mean,
        "drift_sd": math.sqrt(max(0.0, square - mean * mean)),
        "drift_ess": sum_w * sum_w / (n * sum_w2) if sum_w2 > 0 else 0.0,
        "drift_chi2": square - 1.0,
    }


def verdict(chi2: float, limits: Drift) -> Verdict:
    """What `limits` make of a measured chi2."""
    if limits.stop_chi2 is not None and chi2 > limits.stop_chi2:
        return "stop"
    return "warn" if chi2 > limits.warn_chi2 else "ok"


class Guard:
    """Holds the drift of a run against its limits, every `CHECKED_EVERY` steps."""

    def __init__(self, name: str, limits: Drift | None) -> None:
        self._name, self._limits = name, limits
        self._sums: Tensor | None = None
        self._state: Verdict = "ok"

    def add(self, sums: Tensor | None) -> None:
        """Add `ratio_sums` of one micro-batch."""
        if self._limits is not None and sums is not None:
            self._sums = sums if self._sums is None else self._sums + sums

    def must_stop(self, step: int, group: Group = ALONE) -> bool:
        """Whether the run must stop after this step; warns once when it crosses a limit.

        Args:
            step: Optimiser steps made.
            group: The verdict is on the sums of all its processes, and the same in all of them.
        """
        if self._limits is None or step % CHECKED_EVERY:
            return False
        own = None if self._sums is None else self._sums.tolist()
        sums = [share for share in group.all_gather(own) if share is not None]
        if not sums:
            return False
        found = summary(*(sum(column) for column in zip(*sums, strict=True)))
        before, self._sums = self._state, None
        self._state = verdict(found["drift_chi2"], self._limits)
        if self._state not in ("ok", before):
            log.warning(
                "%s: step %d: the student has drifted from the policy that wrote the data: chi2 "
                "%.3g, effective share of the sample %.2g%s. Use fewer steps, a lower learning "
                "rate or fresh rollouts.",
                self._name,
                step,
                found["drift_chi2"],
                found["drift_ess"],
                "; training stops here (drift.stop_chi2)" if self._state == "stop" else "",
            )
        return self._state == "stop"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, as plain numbers."""
        return {"sums": None if self._sums is None else self._sums.tolist(), "state": self._state}

    def add_states(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Add the sums of the processes of a checkpoint; all of them had the same verdict."""
        for state in states:
            self._state = state["state"]
            if state["sums"] is not None:
                self.add(torch.tensor(state["sums"], dtype=torch.float64, device=device))
