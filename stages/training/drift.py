"""How far the student has left the policy that wrote the data.

Everything offline is an average over the contexts and tokens of pi_ref. With b the distribution a
realised token a was drawn from, q the student at the objective's temperature and w = q(a) / b(a),
over the tokens of the data:

    drift   E[-log w] = KL(b || q), nats per token
    mean    E[w]             1 in expectation when pi_ref had full support
    sd      sd(w)
    ess     (sum w)^2 / (n sum w^2)   effective share of the sample
    chi2    E[w^2] - 1       token-level chi-square divergence
    teacher E[log b - log p] = KL(b || p) of the teacher p, nats per token

A run is judged by `drift`. It rises when the student no longer writes what the data hold, which is
when the gradient on the data departs from that of live training: benchmarks/drift.py measures both
side by side, and docs/drift.md has the table that the default limit comes from. As a mean of
logarithms it has little variance. A student that becomes its teacher ends at the drift `teacher`:
only beyond that does drift say that something has gone wrong.

chi2 bounds the same departure (arXiv 2604.13010, theorem 3.5), but the estimate is decided by the
few tokens that the student has raised most, one in ten thousand, and those may be tokens at which
the objective uses no weight. It is also below 0 where the sample holds none of them. It is written
to metrics.jsonl for comparison with published figures, and limits on it are kept.
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
"""Optimiser steps over which drift is measured before it is checked: one batch is too few tokens to
judge by, and log lines must not decide, since how often they come is not in the key."""

LEAST_OF_TEACHER = 0.5
"""Nats per token that the limit `"teacher"` has at least: a student that leaves a policy close to
its teacher by less has not been thrown off."""

_LARGEST_LOG_RATIO = 300.0  # exp(600) is still finite in float64: w^2 never overflows


def ratio_sums(logq_T: Tensor, ref_lp_T: Tensor, lp_T: Tensor | None = None) -> Tensor:
    """Float64 [n, sum w, sum w^2, sum -log w, sum ref_lp - lp] of w = exp(logq - ref_lp).

    Args:
        logq_T: Log-probabilities of T tokens under the student, nats.
        ref_lp_T: The same under the policy that drew them.
        lp_T: The same under the teacher; None where it is not known, then the last sum is NaN.
    """
    log_w, lost = logq_T.double() - ref_lp_T.double(), ref_lp_T.new_tensor(math.nan)
    w = log_w.clamp(max=_LARGEST_LOG_RATIO).exp_()
    if lp_T is not None:
        lost = (ref_lp_T.double() - lp_T.double()).sum()
    sums = [w.new_tensor(float(w.numel())), w.sum(), torch.dot(w, w), -log_w.sum(), lost.double()]
    return torch.stack(sums)


def restored(sums: Sequence[float]) -> list[float]:
    """`ratio_sums` out of a checkpoint; former ones lack the last numbers, which are unknown."""
    return [*sums, math.nan, math.nan][:5]


def summary(
    n: float, sum_w: float, sum_w2: float, sum_gap: float, sum_teacher: float = math.nan
) -> dict[str, float]:
    """Drift, mean and spread of w, effective sample share and chi2, from the sums.

    Returns an empty dictionary when there were no tokens; `drift_teacher` is left out where it is
    not known.
    """
    if n == 0:
        return {}
    mean, square = sum_w / n, sum_w2 / n
    teacher = {} if math.isnan(sum_teacher) else {"drift_teacher": sum_teacher / n}
    return {
        "drift": sum_gap / n,
        "drift_mean": mean,
        "drift_sd": math.sqrt(max(0.0, square - mean * mean)),
        "drift_ess": sum_w * sum_w / (n * sum_w2) if sum_w2 > 0 else 0.0,
        "drift_chi2": square - 1.0,
        **teacher,
    }


def verdict(found: Mapping[str, float], limits: Drift) -> tuple[Verdict, str]:
    """What `limits` make of a `summary`, and which figure is above which limit."""
    warn, whose = limits.warn, ""
    if warn == "teacher":
        teacher = found.get("drift_teacher", 0.0)
        warn = max(LEAST_OF_TEACHER, teacher)
        whose = " (as far as the teacher is)" if teacher > LEAST_OF_TEACHER else ""
    checks: tuple[tuple[Verdict, str, str, float | None], ...] = (
        ("stop", "stop", "drift", limits.stop),
        ("stop", "stop_chi2", "drift_chi2", limits.stop_chi2),
        ("warn", "warn", "drift", warn),
        ("warn", "warn_chi2", "drift_chi2", limits.warn_chi2),
    )
    for made, limit, figure, value in checks:
        if value is not None and found[figure] > value:
            shown = "chi2 {:.3g}" if figure == "drift_chi2" else "drift {:.2g} nats a token"
            said = f"{shown.format(found[figure])} > drift.{limit} = {value:.3g}"
            return made, said + (whose if limit == "warn" else "")
    return "ok", ""


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

    @property
    def above(self) -> bool:
        """Whether drift was above a limit when it was last judged."""
        return self._state != "ok"

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
        self._state, above = verdict(found, self._limits)
        if self._state not in ("ok", before):
            log.warning(
                "%s: step %d: the student no longer writes what the policy wrote that made the "
                "data (%s)%s. The gradient on these data departs from that of live training "
                "(docs/drift.md). Lower the learning rate, make fewer steps, or train on rollouts "
                "of this student (train.rounds).",
                self._name,
                step,
                above,
                "; training stops here" if self._state == "stop" else "",
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
                sums = restored(state["sums"])
                self.add(torch.tensor(sums, dtype=torch.float64, device=device))
