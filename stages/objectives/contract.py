"""Which record serves which objective, and what the result may be called.

An objective trained from the wrong record does not fail, it converges to something else. So the
configuration is held against the manifest of the data before any model is loaded, and the answer
is printed and stored with the student. The table is data (`legality`); rules lower a cell where the
way the data was made or an option of the objective does so (`rules`).

    exact        the objective as defined, no estimate involved
    unbiased     its expected gradient, over the draws of record and token, is that of the full loss
    lower_bound  exact gradient of something that is never above the full loss
    biased       neither; trainable, but not what its name says
    refused      cannot be computed, or would train towards something else

All statements are about the contexts in the data (those pi_ref visited) and a first pass over them;
what further passes change is said in a note. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from stages.config import Objective
from stages.objectives.legality import TABLE, WEAKEST_LAST, Guarantee
from stages.objectives.rules import READ_DRAWN_LOGP, READ_THE_REALISED_TOKEN, Case, judged
from storage.errors import ConfigError


def guarantee(
    objective: Objective, meta: Mapping[str, object], passes: float | None = None
) -> Guarantee:
    """What `objective` is on a set, from the `meta` of the set's manifest.

    A mixture is what its weakest term is.

    Args:
        objective: The `[train.objective]` table.
        meta: `record` (the record's parameters; absent: the set holds tokens only), `sampling`
            (how the tokens were drawn; absent: they were not drawn by a model) and `full_support`.
        passes: How often training reads each sequence, where it is known.

    Raises:
        ConfigError: the records cannot serve the objective; the message says which would.
    """
    cases = [Case(loss, objective.temperature, meta) for loss in objective.losses]
    weakest = max(cases, key=lambda case: WEAKEST_LAST.index(judged(case).level))
    found = judged(weakest)
    if found.level == "refused":
        raise ConfigError(_refusal(weakest, found.reason))
    mixed = f"weakest term, {weakest.row}: " if objective.name == "mixture" else ""
    return Guarantee(found.level, mixed + found.reason, _note(cases, passes))


def _note(cases: list[Case], passes: float | None) -> str:
    """What repeats when the data is read more often than it was drawn."""
    if passes is None or passes <= 1:
        return ""
    copies = int(cast(int, cases[0].record.get("copies", 1)))
    notes: list[str] = []
    if passes > copies and any(_reads_the_draw(case) for case in cases):
        kept = "the one draw" if copies == 1 else f"the {copies} independent draws"
        notes.append(
            f"{passes:.3g} passes read {kept} kept per position: from pass {copies + 1} on the "
            "noise of a draw repeats and no longer averages out"
        )
    if any(case.row in READ_THE_REALISED_TOKEN for case in cases):
        notes.append(
            f"{passes:.3g} passes read the same realised tokens: the noise of the correction "
            "repeats and no longer averages out"
        )
    return "; ".join(notes)


def _reads_the_draw(case: Case) -> bool:
    drawn, _, logp = case.kind.partition("+")
    reads = case.row == "forward_kl" or (bool(logp) and case.row in READ_DRAWN_LOGP)
    return reads and drawn in ("counts", "head_tail")


# ---------------------------------------------------------------------------------------------
# Refusals


def _refusal(case: Case, reason: str) -> str:
    remedies: list[str] = []
    if TABLE[case.row][case.kind].level == "refused":
        remedies.append(f"use records of kind {' or '.join(_best_kinds(case.row))}")
    elif "temperature" in reason:
        remedies.append(_other_temperature(case))
    else:
        remedies.append('use records of rollouts, or `form = "bucketed"` on head_tail records')
    others = [row for row in TABLE if row != case.row and _serves(row, case)]
    if others:
        remedies.append(f"train another objective on these ({', '.join(others)})")
    return (
        f"train.objective: {case.row} cannot be trained on `{case.kind}` records: {reason}. "
        f"Either {'; or '.join(remedies)}."
    )


def _other_temperature(case: Case) -> str:
    draws = case.row == "forward_kl" and not case.kind.endswith("+logp")
    return (
        "set `objective.temperature` to the record's, or score again at this one or with it as "
        f"`record.loss_temperature`{' and with `record.logp = true`' if draws else ''}"
    )


def _best_kinds(row: str) -> list[str]:
    """Kinds on which the row of the table is best."""
    best = min((cell.level for cell in TABLE[row].values()), key=WEAKEST_LAST.index)
    return [kind for kind, cell in TABLE[row].items() if cell.level == best]


def _serves(row: str, case: Case) -> bool:
    """Whether another row of the table, all else equal, would be accepted."""
    name, _, form = row.partition("/")
    change = {"name": name} | ({"form": form} if form else {})
    return judged(replace(case, loss=case.loss.model_copy(update=change))).level != "refused"
