"""What lowers a cell of the legality table: temperatures, how tokens were drawn, capped weights.

Each rule is one sentence, which the documentation prints, and one function. Imports no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from stages.config import Loss
from stages.objectives.legality import NO_TEACHER, TABLE, WEAKEST_LAST, Guarantee

READ_THE_REALISED_TOKEN = frozenset(
    {"reverse_kl/corrected", "reverse_kl/residual_only", "policy_gradient"}
)
"""Rows whose expectation is over the realised token, weighted by q / b."""

READ_DRAWN_LOGP = frozenset({"jsd", "skew_forward_kl", "skew_reverse_kl", "tvd", "taid"})
"""Rows that read the draw of a record where its log p is kept; `forward_kl` always does."""


@dataclass(frozen=True)
class Case:
    """One objective (or term of a mixture) on one set."""

    loss: Loss
    temperature: float
    """Of the objective."""
    meta: Mapping[str, object]
    """Of the set's manifest."""

    @property
    def row(self) -> str:
        """Row of the table."""
        return row_of(self.loss)

    @property
    def kind(self) -> str:
        """Column of the table."""
        kind = str(self.record.get("kind", NO_TEACHER))
        drawn = kind in ("counts", "head_tail")
        return f"{kind}+logp" if drawn and self.record.get("logp", False) else kind

    @property
    def record(self) -> Mapping[str, object]:
        """The record's parameters; empty without a teacher."""
        return self.table("record")

    def table(self, name: str) -> Mapping[str, object]:
        """A nested table of the manifest's meta, empty where it is absent."""
        value = self.meta.get(name)
        return cast(Mapping[str, object], value) if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Rule:
    """One reason for which a cell of the table may hold less than it says."""

    sentence: str
    """For people."""
    judge: Callable[[Case], Guarantee | None]
    """What is left, or None where the rule does not apply."""


def row_of(loss: Loss) -> str:
    """Row of the table that `loss` stands in."""
    return f"reverse_kl/{loss.form}" if loss.name == "reverse_kl" else loss.name


def judged(case: Case) -> Guarantee:
    """The weakest of what the table and the rules say; of equals, the first."""
    found = TABLE[case.row][case.kind]
    if found.level == "refused" or case.row == "cross_entropy":
        return found
    says = [found, *(said for rule in RULES if (said := rule.judge(case)) is not None)]
    return max(says, key=lambda one: WEAKEST_LAST.index(one.level))


# ---------------------------------------------------------------------------------------------
# Temperatures


def _asked(case: Case) -> str:
    return (
        f"the teacher was recorded at temperature {case.record.get('temperature')}, the objective "
        f"asks for {case.temperature}"
    )


def _as_recorded(case: Case) -> bool:
    return case.temperature == case.record.get("temperature")


def _weights_of_draws(case: Case) -> Guarantee | None:
    reads_them = case.row == "forward_kl" and case.kind in ("counts", "head_tail")
    if _as_recorded(case) or not reads_them:
        return None
    return Guarantee(
        "refused", f"{_asked(case)}; weights of drawn ids cannot be re-tempered without their log p"
    )


def _normaliser(case: Case) -> Guarantee | None:
    if _as_recorded(case) or case.record.get("loss_temperature") == case.temperature:
        return None
    if not case.kind.endswith("+logp"):
        return Guarantee("refused", f"{_asked(case)}, for which it keeps no normaliser")
    return Guarantee(
        "biased",
        f"{_asked(case)}, for which it keeps no normaliser: one estimated from the same draws is "
        "consistent, not unbiased",
    )


# ---------------------------------------------------------------------------------------------
# The realised token


def _drawn_by_a_model(case: Case) -> Guarantee | None:
    if case.row not in READ_THE_REALISED_TOKEN or case.table("sampling"):
        return None
    return Guarantee(
        "refused", "the tokens were not drawn by a model: there is no probability to correct by"
    )


def _full_support(case: Case) -> Guarantee | None:
    if case.row not in READ_THE_REALISED_TOKEN or case.meta.get("full_support", False):
        return None
    return Guarantee(
        "biased",
        "the tokens were drawn without full support (top_p, top_k or greedy): what could not be "
        "drawn is missing from the correction",
    )


def _uncapped(case: Case) -> Guarantee | None:
    own = case.loss.truncation if case.row == "policy_gradient" else case.loss.max_weight
    if case.row not in READ_THE_REALISED_TOKEN or own is None:
        return None
    return Guarantee("biased", f"importance weights are capped at {own}; the log says how often")


def _scores_of_the_teacher(case: Case) -> Guarantee | None:
    if case.row not in READ_THE_REALISED_TOKEN or not case.record.get("correction"):
        return None
    return Guarantee(
        "biased",
        "the scores are corrected for a foreign teacher (arXiv 2607.28449), so what is followed is "
        "no divergence from that teacher",
    )


def _own_scores(case: Case) -> Guarantee | None:
    if case.row not in READ_THE_REALISED_TOKEN or not case.record.get("correction"):
        return None
    return Guarantee(
        "biased",
        "the scores were corrected for another teacher (`residualize`) and are no log-"
        "probabilities of any distribution",
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
        "They are biased where b lacked full support (`top_p` below 1, `top_k`, or greedy "
        "sampling; a sampling temperature alone is fine).",
        _full_support,
    ),
    Rule(
        "They are biased where the weight is capped (`max_weight`, `truncation`).",
        _uncapped,
    ),
    Rule(
        "They are biased on scores corrected for another teacher (`residualize`), which are no "
        "log-probabilities; `lightning` is defined on those.",
        _own_scores,
    ),
    Rule(
        "They are biased on scores corrected for a foreign teacher (`residualize`): those are no "
        "log-probabilities of any model. `lightning` is then the objective of arXiv 2607.28449.",
        _scores_of_the_teacher,
    ),
)
"""Applied to every row except `cross_entropy`, which reads no teacher; the weakest result counts.
Of equally weak ones, the first."""
