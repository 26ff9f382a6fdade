"""Which record serves which objective, and what the result may be called.

An objective trained from the wrong record does not fail, it converges to something else. So the
configuration is held against the manifest of the data before any model is loaded, and the answer
is printed and stored with the student. The table below is data; the rules after it lower a level
where the way the data was made or an option of the objective does so.

    exact        the objective as defined, no estimate involved
    unbiased     its expected gradient, over the draws of record and token, is that of the full loss
    lower_bound  exact gradient of something that is never above the full loss
    biased       neither; trainable, but not what its name says
    refused      cannot be computed, or would train towards something else

All statements are about the contexts in the data (those pi_ref visited) and a first pass over them:
a stored draw is frozen noise, and further epochs see the same noise again. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from stages.config import Objective
from storage.errors import ConfigError

Level = Literal["exact", "unbiased", "lower_bound", "biased", "refused"]

NO_TEACHER = "sequences"
"""Stands for the record kind of a set that holds tokens only."""


@dataclass(frozen=True)
class Guarantee:
    """What an objective is on given records, and why."""

    level: Level
    reason: str

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary."""
        return asdict(self)


_NO_TEACHER = Guarantee("refused", "the set holds tokens but no teacher log-probabilities")
_LIKELIHOOD = Guarantee("exact", "maximum likelihood of the stored tokens; no teacher is read")
_WEIGHTS = Guarantee("unbiased", "linear in weights whose expectation is the teacher's probability")
_ONE_TOKEN = Guarantee(
    "refused", "one token drawn by another policy says nothing of the teacher's distribution"
)
_LIGHTNING = Guarantee(
    "exact",
    "the published sampled-token objective; as an estimate of reverse KL it holds near pi_ref only",
)
_CORRECTED = Guarantee(
    "unbiased", "exact on the stored head, importance-corrected by the realised token outside"
)
_RESIDUAL = Guarantee(
    "unbiased", "exact on the stored head, importance-weighted outside, no control variate: noisy"
)
_NO_HEAD = Guarantee(
    "unbiased", "no id is stored exactly: the importance-weighted realised token alone, very noisy"
)
_BUCKET = Guarantee("lower_bound", "everything outside the stored head counts as one symbol")
_EMPTY_BUCKET = Guarantee(
    "refused", "no id is stored exactly, so all of the vocabulary is one symbol and nothing trains"
)

FULL = Guarantee("exact", "no record: the whole distribution of the teacher, run at every position")
"""Of `live = "full"`, which asks no record for anything."""

TABLE: Mapping[str, Mapping[str, Guarantee]] = {
    "cross_entropy": {
        NO_TEACHER: _LIKELIHOOD,
        "sampled": _LIKELIHOOD,
        "counts": _LIKELIHOOD,
        "head_tail": _LIKELIHOOD,
    },
    "forward_kl": {
        NO_TEACHER: _NO_TEACHER,
        "sampled": _ONE_TOKEN,
        "counts": _WEIGHTS,
        "head_tail": _WEIGHTS,
    },
    "lightning": {
        NO_TEACHER: _NO_TEACHER,
        "sampled": _LIGHTNING,
        "counts": _LIGHTNING,
        "head_tail": _LIGHTNING,
    },
    "reverse_kl/corrected": {
        NO_TEACHER: _NO_TEACHER,
        "sampled": _NO_HEAD,
        "counts": _NO_HEAD,
        "head_tail": _CORRECTED,
    },
    "reverse_kl/residual_only": {
        NO_TEACHER: _NO_TEACHER,
        "sampled": _NO_HEAD,
        "counts": _NO_HEAD,
        "head_tail": _RESIDUAL,
    },
    "reverse_kl/bucketed": {
        NO_TEACHER: _NO_TEACHER,
        "sampled": _EMPTY_BUCKET,
        "counts": _EMPTY_BUCKET,
        "head_tail": _BUCKET,
    },
}
"""Objective (with its form) -> record kind -> guarantee, before the rules are applied."""


def guarantee(objective: Objective, meta: Mapping[str, object]) -> Guarantee:
    """What `objective` is on a set, from the `meta` of the set's manifest.

    Args:
        objective: The `[train.objective]` table.
        meta: `record` (the record's parameters; absent: the set holds tokens only), `sampling`
            (how the tokens were drawn; absent: they were not drawn by a model) and `full_support`.

    Raises:
        ConfigError: the records cannot serve the objective; the message says which would.
    """
    found = _judge(objective, meta)
    if found.level == "refused":
        raise ConfigError(_refusal(objective, meta, found.reason))
    return found


def _judge(objective: Objective, meta: Mapping[str, object]) -> Guarantee:
    found = TABLE[_row(objective)][_kind(meta)]
    return found if found.level == "refused" else _with_rules(objective, meta, found)


def _row(objective: Objective) -> str:
    named = objective.name == "reverse_kl"
    return f"reverse_kl/{objective.form}" if named else objective.name


def _kind(meta: Mapping[str, object]) -> str:
    return str(_table(meta, "record").get("kind", NO_TEACHER))


def _table(meta: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A nested table of `meta`, empty where it is absent."""
    value = meta.get(name)
    return value if isinstance(value, Mapping) else {}


def _with_rules(objective: Objective, meta: Mapping[str, object], found: Guarantee) -> Guarantee:
    """Lower `found` for mismatching temperatures, absent or truncated draws and capped weights."""
    name = _row(objective)
    temperature = _table(meta, "record").get("temperature")
    if name != "cross_entropy" and temperature != objective.temperature:
        return Guarantee(
            "refused",
            f"the teacher was recorded at temperature {temperature}, the objective asks for "
            f"{objective.temperature}; a record cannot be re-tempered",
        )
    if name not in ("reverse_kl/corrected", "reverse_kl/residual_only"):
        return found
    if not _table(meta, "sampling"):
        return Guarantee(
            "refused", "the tokens were not drawn by a model: there is no probability to correct by"
        )
    if not meta.get("full_support", False):
        return Guarantee(
            "biased",
            "the tokens were drawn without full support (top_p, top_k or greedy): what could not "
            "be drawn is missing from the correction",
        )
    if objective.max_weight is not None:
        return Guarantee(
            "biased",
            f"importance weights are capped at {objective.max_weight}; the log says how often",
        )
    return found


def _refusal(objective: Objective, meta: Mapping[str, object], reason: str) -> str:
    name, kind = _row(objective), _kind(meta)
    serving = [k for k, entry in TABLE[name].items() if entry.level != "refused"]
    remedies: list[str] = []
    if kind not in serving:
        remedies.append(f"use records of kind {' or '.join(serving)}")
    elif "temperature" in reason:
        remedies.append("set `objective.temperature` to the record's, or score again at this one")
    else:
        remedies.append('use records of rollouts, or `form = "bucketed"` on head_tail records')
    others = [row for row in TABLE if row != name and _serves(row, objective, meta)]
    if others:
        remedies.append(f"train another objective on these ({', '.join(others)})")
    return (
        f"train.objective: {name} cannot be trained on `{kind}` records: {reason}. "
        f"Either {'; or '.join(remedies)}."
    )


def _serves(row: str, objective: Objective, meta: Mapping[str, object]) -> bool:
    """Whether another row of the table, all else equal, would be accepted."""
    name, _, form = row.partition("/")
    change = {"name": name} | ({"form": form} if form else {})
    return _judge(objective.model_copy(update=change), meta).level != "refused"
