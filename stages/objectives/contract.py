"""Which record serves which objective, and what the result may be called.

An objective trained from the wrong record does not fail, it converges to something else. So the
configuration is checked against the manifest of the data before any model is loaded, and the answer
is printed and stored with the student. Each objective says what it is on a kind of record
(`Objective.guarantee_on`); the rules here lower that where the way the data was made, an option or
a weight does so.

    exact        the objective as defined, no estimate involved
    unbiased     its expected gradient, over the draws of record and token, is that of the full loss
    lower_bound  exact gradient of something that is never above the full loss
    biased       neither; trainable, but not what its name says
    refused      cannot be computed, or would train towards something else

All statements are about the contexts in the data (those pi_ref visited) and a first pass over them;
what further passes change is said in a note. Imports no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import stages.objectives.catalogue  # noqa: F401  (makes all objectives known)
from stages.objectives.objective import WEAKEST_LAST, Guarantee, Kept, Objective
from stages.objectives.weighted import check_weights, check_weights_without_record, weighted
from stages.weights.base import Weight
from storage.errors import ConfigError
from storage.kinds import KINDS

NO_TEACHER = "sequences"
"""Stands for the record kind of a set that holds tokens only."""

COLUMNS: Mapping[str, Kept | None] = {NO_TEACHER: None} | {
    kept.label: kept
    for kind in KINDS.values()
    for kept in (Kept.by(kind), Kept.by(kind, logp=True))
}
"""Columns of the contract."""


@dataclass(frozen=True)
class Case:
    """One objective (or term of a mixture) on one set."""

    loss: Objective
    temperature: float
    """Of the objective, or of the mixture that it is a term of."""
    meta: Mapping[str, object]
    """Of the set's manifest."""
    weights: tuple[Weight, ...] = ()
    """Factors on the loss of each position."""

    @property
    def weighed_by_token(self) -> str:
        """What chooses or weighs positions by what was realised there; empty if nothing does."""
        names = [f"the weight `{one.name}`" for one in self.weights if one.reads == "token"]
        if self.loss.reads_outcome:
            names.append("`on`")
        return ", ".join(names)

    @property
    def record(self) -> Mapping[str, object]:
        """The record's parameters; empty without a teacher."""
        return cast(Mapping[str, object], self.meta.get("record") or {})

    @property
    def kept(self) -> Kept | None:
        """What the records keep; None without a teacher."""
        if not self.record:
            return None
        return Kept.by(KINDS[str(self.record["kind"])], bool(self.record.get("logp", False)))

    @property
    def reads_draws(self) -> bool:
        """Whether the ids drawn for the record are read."""
        kept, reads = self.kept, self.loss.reads_draws
        if kept is None or not kept.drawn:
            return False
        return reads == "always" or (reads == "with_logp" and kept.logp)


def guarantee(
    objective: Objective,
    meta: Mapping[str, object],
    passes: float | None = None,
    weights: tuple[Weight, ...] = (),
) -> Guarantee:
    """What `objective` is on a set, from the `meta` of the set's manifest.

    A mixture is what its weakest term is. With weights, the level is that of the weighted loss:
    at a context where the weight does not look at what was realised, the expected gradient is the
    weight times that of the loss; where it does, the loss is another one, and the level holds only
    if the loss itself does not look at the realised token.

    Args:
        objective: The `[train.objective]` table.
        meta: `record` (the record's parameters; absent: the set holds tokens only), `sampling`
            (how the tokens were drawn; absent: they were not drawn by a model) and `full_support`.
        passes: How often training reads each sequence, where it is known.
        weights: The `[[train.weights]]` tables.

    Raises:
        ConfigError: the records cannot serve the objective (the message says which would), or do
            not have what a weight reads.
    """
    cases = [Case(loss, objective.temperature, meta, weights) for loss in objective.losses]
    weakest = max(cases, key=lambda case: WEAKEST_LAST.index(promise(case).level))
    found = promise(weakest)
    if found.level == "refused":
        raise ConfigError(_refusal(weakest, found.reason))
    readers = [case.loss.label for case in cases if case.reads_draws]
    check_weights(weights, readers, objective.temperature, meta)
    mixed = f"weakest term, {weakest.loss.label}: " if objective.name == "mixture" else ""
    reason = (
        mixed + found.reason + weighted(weights, by_token=any(c.weighed_by_token for c in cases))
    )
    return Guarantee(found.level, reason, _note(cases, passes))


def guarantee_in_full(weights: tuple[Weight, ...]) -> Guarantee:
    """Of a loss that reads the whole distribution of a live teacher: exact, for the weighted loss.

    Raises:
        ConfigError: a weight reads a record, and there is none.
    """
    check_weights_without_record(weights)
    by_token = any(weight.reads == "token" for weight in weights)
    reason = "no record: the whole distribution of the teacher, run at every position"
    return Guarantee("exact", reason + weighted(weights, by_token=by_token))


def variants() -> list[Objective]:
    """Every objective in each of its forms, by the label of its row."""
    found = [one for known in Objective.known.values() for one in known.variants()]
    return sorted(found, key=lambda one: one.label)


def all_rows() -> dict[str, dict[str, Guarantee]]:
    """Row -> kind -> what the objective is there, before any rule: the contract at a glance."""
    return {
        one.label: {name: on_kind(one, kept) for name, kept in COLUMNS.items()}
        for one in variants()
    }


def on_kind(loss: Objective, kept: Kept | None) -> Guarantee:
    """What `loss` is on records of a kind, before any rule; None stands for no teacher."""
    if kept is None and loss.reads_teacher:
        return Guarantee("refused", "the set holds tokens but no teacher log-probabilities")
    return loss.guarantee_on(kept or Kept(NO_TEACHER))


def promise(case: Case) -> Guarantee:
    """The weakest of what the objective and the rules say; of equals, the first."""
    found = on_kind(case.loss, case.kept)
    if found.level == "refused" or not case.loss.reads_teacher:
        return found
    says = [found, *(said for rule in RULES if (said := rule.lowers_to(case)) is not None)]
    return max(says, key=lambda one: WEAKEST_LAST.index(one.level))


def _note(cases: list[Case], passes: float | None) -> str:
    """What repeats when the data is read more often than it was drawn."""
    if passes is None or passes <= 1:
        return ""
    copies = int(cast(int, cases[0].record.get("copies", 1)))
    notes: list[str] = []
    if passes > copies and any(case.reads_draws for case in cases):
        kept = "the one draw" if copies == 1 else f"the {copies} independent draws"
        notes.append(
            f"{passes:.3g} passes read {kept} kept per position: from pass {copies + 1} on the "
            "noise of a draw repeats and no longer averages out"
        )
    if any(case.loss.weighs_token for case in cases):
        notes.append(
            f"{passes:.3g} passes read the same realised tokens: the noise of the correction "
            "repeats and no longer averages out"
        )
    return "; ".join(notes)


# ---------------------------------------------------------------------------------------------
# Rules: temperatures, then the realised token


def _asked(case: Case) -> str:
    return (
        f"the teacher was recorded at temperature {case.record.get('temperature')}, the objective "
        f"asks for {case.temperature}"
    )


def _weights_of_draws(case: Case) -> Guarantee | None:
    assert case.kept is not None, "without a teacher no rule is asked"
    as_recorded = case.temperature == case.record.get("temperature")
    if as_recorded or not case.reads_draws or case.kept.logp:
        return None
    return Guarantee(
        "refused", f"{_asked(case)}; weights of drawn ids cannot be re-tempered without their log p"
    )


def _normaliser(case: Case) -> Guarantee | None:
    assert case.kept is not None, "without a teacher no rule is asked"
    if case.temperature in (case.record.get("temperature"), case.record.get("loss_temperature")):
        return None
    if not case.kept.logp:
        return Guarantee("refused", f"{_asked(case)}, for which it keeps no normaliser")
    return Guarantee(
        "biased",
        f"{_asked(case)}, for which it keeps no normaliser: one estimated from the same draws is "
        "consistent, not unbiased",
    )


def _drawn_by_a_model(case: Case) -> Guarantee | None:
    if not case.loss.weighs_token or case.meta.get("sampling"):
        return None
    return Guarantee(
        "refused", "the tokens were not drawn by a model: there is no probability to correct by"
    )


def _full_support(case: Case) -> Guarantee | None:
    if not case.loss.weighs_token or case.meta.get("full_support", False):
        return None
    return Guarantee(
        "biased",
        "the tokens were drawn without full support (top_p, top_k, min_p or greedy): what could "
        "not be drawn is missing from the correction",
    )


def _uncapped(case: Case) -> Guarantee | None:
    if not case.loss.weighs_token or case.loss.cap is None:
        return None
    return Guarantee(
        "biased", f"importance weights are capped at {case.loss.cap}; the log says how often"
    )


def _own_scores(case: Case) -> Guarantee | None:
    if not case.loss.weighs_token or not case.record.get("correction"):
        return None
    return Guarantee(
        "biased",
        "the scores were corrected for another teacher (`residualize`, arXiv 2607.28449) and are "
        "no log-probabilities of any distribution",
    )


class Rule(NamedTuple):
    """One reason for which an objective may be less than it is on the kind of record alone."""

    sentence: str
    """For people."""
    lowers_to: Callable[[Case], Guarantee | None]
    """What is left, or None where the rule does not apply."""


def _weighed_by_token(case: Case) -> Guarantee | None:
    if not case.loss.weighs_token or not case.weighed_by_token:
        return None
    return Guarantee(
        "biased",
        "the loss corrects by the realised token, and what was realised also decides how much the "
        f"position counts ({case.weighed_by_token}): the two do not average independently",
    )


RULES = (
    Rule(
        "At another temperature than the record's, `forward_kl` needs log p of the drawn ids: "
        "refused on `counts` and `head_tail` without it.",
        _weights_of_draws,
    ),
    Rule(
        "At another temperature than the record's, the teacher must be normalised there. Where the "
        "record keeps that normaliser (`record.loss_temperature`) the table holds as it is; where "
        "it only keeps log p of the drawn ids the result is biased; elsewhere it is refused.",
        _normaliser,
    ),
    Rule(
        "Objectives that weigh the realised token by q / b are refused on sets nobody drew (a text "
        "corpus): there is no b.",
        _drawn_by_a_model,
    ),
    Rule(
        "They are biased where b lacked full support (`top_p` below 1, `top_k`, `min_p`, or greedy "
        "sampling). A sampling temperature, penalties and stop strings are fine: see [How the "
        "tokens were drawn](#how-the-tokens-were-drawn).",
        _full_support,
    ),
    Rule(
        "They are biased where the weight is capped (`max_weight`, `truncation`).",
        _uncapped,
    ),
    Rule(
        "They are biased on scores corrected for another teacher (`residualize`), which are no "
        "log-probabilities; `lightning` on those is the objective of arXiv 2607.28449.",
        _own_scores,
    ),
    Rule(
        "They are biased with a weight that looks at what was realised (the token, the length or "
        "the outcome of the response), and on sequences of one outcome (`on`).",
        _weighed_by_token,
    ),
)
"""For every objective that reads a teacher. The weakest result counts, of equals the first."""


# ---------------------------------------------------------------------------------------------
# Refusals


def _refusal(case: Case, reason: str) -> str:
    rows, label = all_rows(), case.loss.label
    kind = case.kept.label if case.kept else NO_TEACHER
    if on_kind(case.loss, case.kept).level == "refused":
        best = min((cell.level for cell in rows[label].values()), key=WEAKEST_LAST.index)
        kinds = [name for name, cell in rows[label].items() if cell.level == best]
        remedies = [f"use records of kind {' or '.join(kinds)}"]
    elif "temperature" in reason:
        logp = " and with `record.logp = true`" if case.reads_draws and "+" not in kind else ""
        remedies = [
            "set `objective.temperature` to the record's, or score again at this one or with it as "
            f"`record.loss_temperature`{logp}"
        ]
    else:
        remedies = ['use records of rollouts, or `form = "bucketed"` on head_tail records']
    others = [
        other.label
        for other in variants()
        if other.label != label
        and not other.reads_outcome  # the contract does not know whether there are any
        and promise(Case(other, case.temperature, case.meta)).level != "refused"
    ]
    if others:
        remedies.append(f"train another objective on these ({', '.join(others)})")
    return (
        f"train.objective: {label} cannot be trained on `{kind}` records: {reason}. "
        f"Either {'; or '.join(remedies)}."
    )
