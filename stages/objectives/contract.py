"""Which record serves which objective, and what the result may be called.

An objective trained from the wrong record does not fail, it converges to something else. So the
configuration is held against the manifest of the data before any model is loaded, and the answer
is printed and stored with the student. The table is data (`legality`); the rules here lower a level
where the way the data was made or an option of the objective does so.

    exact        the objective as defined, no estimate involved
    unbiased     its expected gradient, over the draws of record and token, is that of the full loss
    lower_bound  exact gradient of something that is never above the full loss
    biased       neither; trainable, but not what its name says
    refused      cannot be computed, or would train towards something else

All statements are about the contexts in the data (those pi_ref visited) and a first pass over them;
what further passes change is said in a note. Imports no torch.
"""

from collections.abc import Iterator, Mapping
from typing import cast

from stages.config import Loss, Objective
from stages.objectives.legality import NO_TEACHER, TABLE, WEAKEST_LAST, Guarantee
from storage.errors import ConfigError

READ_THE_REALISED_TOKEN = frozenset(
    {"reverse_kl/corrected", "reverse_kl/residual_only", "policy_gradient"}
)
"""Rows whose expectation is over the realised token, weighted by q / b."""

READ_DRAWN_LOGP = frozenset({"jsd", "skew_forward_kl", "skew_reverse_kl", "tvd", "taid"})
"""Rows that read the draw of a record where its log p is kept; `forward_kl` always does."""


def guarantee(
    objective: Objective, meta: Mapping[str, object], passes: float | None = None
) -> Guarantee:
    """What `objective` is on a set, from the `meta` of the set's manifest.

    Args:
        objective: The `[train.objective]` table.
        meta: `record` (the record's parameters; absent: the set holds tokens only), `sampling`
            (how the tokens were drawn; absent: they were not drawn by a model) and `full_support`.
        passes: How often training reads each sequence, where it is known.

    Raises:
        ConfigError: the records cannot serve the objective; the message says which would.
    """
    judged = [(loss, _judge(loss, objective.temperature, meta)) for loss in objective.losses]
    weakest, found = max(judged, key=lambda pair: WEAKEST_LAST.index(pair[1].level))
    if found.level == "refused":
        raise ConfigError(_refusal(weakest, objective.temperature, meta, found.reason))
    mixed = f"weakest term, {row_of(weakest)}: " if objective.name == "mixture" else ""
    note = _note([row_of(loss) for loss, _ in judged], meta, passes)
    return Guarantee(found.level, mixed + found.reason, note)


def row_of(loss: Loss) -> str:
    """Row of the table that `loss` stands in."""
    return f"reverse_kl/{loss.form}" if loss.name == "reverse_kl" else loss.name


def kind_of(meta: Mapping[str, object]) -> str:
    """Column of the table that a set stands in."""
    record = _table(meta, "record")
    kind = str(record.get("kind", NO_TEACHER))
    drawn = kind in ("counts", "head_tail")
    return f"{kind}+logp" if drawn and record.get("logp", False) else kind


def _table(meta: Mapping[str, object], name: str) -> Mapping[str, object]:
    """A nested table of `meta`, empty where it is absent."""
    value = meta.get(name)
    return cast(Mapping[str, object], value) if isinstance(value, Mapping) else {}


# ---------------------------------------------------------------------------------------------
# Rules


def _judge(loss: Loss, temperature: float, meta: Mapping[str, object]) -> Guarantee:
    """The weakest of what the table and the rules say; of equals, the first."""
    row = row_of(loss)
    found = TABLE[row][kind_of(meta)]
    if found.level == "refused" or row == "cross_entropy":
        return found
    record = _table(meta, "record")
    says = [found, *_temperature(row, kind_of(meta), temperature, record)]
    if row in READ_THE_REALISED_TOKEN:
        says += _sampling(meta)
        says += _cap(loss.truncation if row == "policy_gradient" else loss.max_weight)
    return max(says, key=lambda one: WEAKEST_LAST.index(one.level))


def _temperature(
    row: str, kind: str, wanted: float, record: Mapping[str, object]
) -> Iterator[Guarantee]:
    """A record can be read at another temperature if the teacher can be normalised there."""
    recorded = record.get("temperature")
    if wanted == recorded:
        return
    asked = f"the teacher was recorded at temperature {recorded}, the objective asks for {wanted}"
    drawn_known = kind.endswith("+logp")
    if row == "forward_kl" and not drawn_known and kind != "top_k":
        yield Guarantee(
            "refused", f"{asked}; weights of drawn ids cannot be re-tempered without their log p"
        )
    elif record.get("loss_temperature") == wanted:
        return
    elif drawn_known:
        yield Guarantee(
            "biased",
            f"{asked}, for which it keeps no normaliser: one estimated from the same draws is "
            "consistent, not unbiased",
        )
    else:
        yield Guarantee("refused", f"{asked}, for which it keeps no normaliser")


def _sampling(meta: Mapping[str, object]) -> Iterator[Guarantee]:
    """Correcting by q / b needs a b, and one that could have drawn everything."""
    if not _table(meta, "sampling"):
        yield Guarantee(
            "refused", "the tokens were not drawn by a model: there is no probability to correct by"
        )
    elif not meta.get("full_support", False):
        yield Guarantee(
            "biased",
            "the tokens were drawn without full support (top_p, top_k or greedy): what could not "
            "be drawn is missing from the correction",
        )


def _cap(limit: float | None) -> Iterator[Guarantee]:
    if limit is not None:
        yield Guarantee(
            "biased", f"importance weights are capped at {limit}; the log says how often"
        )


def _note(rows: list[str], meta: Mapping[str, object], passes: float | None) -> str:
    """What repeats when the data is read more often than it was drawn."""
    if passes is None or passes <= 1:
        return ""
    record = _table(meta, "record")
    copies = int(cast(int, record.get("copies", 1)))
    notes: list[str] = []
    if passes > copies and any(_reads_the_draw(row, kind_of(meta)) for row in rows):
        kept = "the one draw" if copies == 1 else f"the {copies} independent draws"
        notes.append(
            f"{passes:.3g} passes read {kept} kept per position: from pass {copies + 1} on the "
            "noise of a draw repeats and no longer averages out"
        )
    if READ_THE_REALISED_TOKEN.intersection(rows):
        notes.append(
            f"{passes:.3g} passes read the same realised tokens: the noise of the correction "
            "repeats and no longer averages out"
        )
    return "; ".join(notes)


def _reads_the_draw(row: str, kind: str) -> bool:
    drawn, _, logp = kind.partition("+")
    reads = row == "forward_kl" or (bool(logp) and row in READ_DRAWN_LOGP)
    return reads and drawn in ("counts", "head_tail")


# ---------------------------------------------------------------------------------------------
# Refusals


def _refusal(loss: Loss, temperature: float, meta: Mapping[str, object], reason: str) -> str:
    row, kind = row_of(loss), kind_of(meta)
    remedies: list[str] = []
    if TABLE[row][kind].level == "refused":
        remedies.append(f"use records of kind {' or '.join(_best_kinds(row))}")
    elif "temperature" in reason:
        remedies.append(_other_temperature(row, kind))
    else:
        remedies.append('use records of rollouts, or `form = "bucketed"` on head_tail records')
    others = [other for other in TABLE if other != row and _serves(other, loss, temperature, meta)]
    if others:
        remedies.append(f"train another objective on these ({', '.join(others)})")
    return (
        f"train.objective: {row} cannot be trained on `{kind}` records: {reason}. "
        f"Either {'; or '.join(remedies)}."
    )


def _other_temperature(row: str, kind: str) -> str:
    draws = row == "forward_kl" and not kind.endswith("+logp")
    return (
        "set `objective.temperature` to the record's, or score again at this one or with it as "
        f"`record.loss_temperature`{' and with `record.logp = true`' if draws else ''}"
    )


def _best_kinds(row: str) -> list[str]:
    """Kinds on which the row of the table is best."""
    best = min((cell.level for cell in TABLE[row].values()), key=WEAKEST_LAST.index)
    return [kind for kind, cell in TABLE[row].items() if cell.level == best]


def _serves(row: str, loss: Loss, temperature: float, meta: Mapping[str, object]) -> bool:
    """Whether another row of the table, all else equal, would be accepted."""
    name, _, form = row.partition("/")
    change = {"name": name} | ({"form": form} if form else {})
    return _judge(loss.model_copy(update=change), temperature, meta).level != "refused"
