"""What a reader should know before believing a report: few lines, each with what to do about it."""

from collections.abc import Iterable, Mapping, Sequence

from stages.reporting.table import Row
from storage.manifest import Manifest

TRUNCATED = 0.1
"""Share of answers at the length limit that is worth a line."""
UNREADABLE = 0.2
"""Share of answers in which no final answer was found that is worth a line."""
DROPPED = 0.05
"""Share of the rows of a prompt file, dropped, that is worth a line."""
_LOST = ("duplicates", "empty", "over_long", "without_answer", "control_tokens")


def cautions(
    rows: Sequence[Row], guarantees: Mapping[str, str], manifests: Iterable[Manifest]
) -> list[str]:
    """Sentences on what is wrong or doubtful, the gravest first; empty where nothing is.

    Args:
        rows: Of the table, with gains.
        guarantees: By student, `level: reason` of its objective.
        manifests: Of the sets the report descends from.
    """
    sets = list(manifests)
    out: list[str] = []
    for one in sets:
        if one.meta.get("stopped_by_drift"):
            out.append(
                f"{one.name}: training stopped early because the student had drifted from the "
                "policy that wrote the data. Train on fresh rollouts, or at a lower learning rate."
            )
        elif one.meta.get("drifted"):
            out.append(
                f"{one.name}: at the end the student no longer wrote what its data hold, so the "
                "last steps followed another gradient than live training would, and figures on "
                "held-out rollouts of pi_ref flatter it (docs/drift.md). Train at a lower learning "
                "rate, or in more rounds."
            )
    out += _worse(rows)
    out += _noisy(rows)
    out += _shares(rows)
    for name, said in guarantees.items():
        if said.startswith("biased"):
            out.append(
                f"{name}: its objective is biased on these records, so it aims at something else "
                "than its name says (below: what each objective guarantees)."
            )
    for one in sets:
        report = one.meta.get("prompts")
        if not isinstance(report, Mapping):
            continue
        lost, read = sum(int(report.get(key) or 0) for key in _LOST), int(report.get("rows") or 0)
        if read and lost / read > DROPPED:
            out.append(
                f"{one.name}: {lost:,} of {read:,} rows of its prompts were dropped (below)."
            )
    return list(dict.fromkeys(out))


def _worse(rows: Sequence[Row]) -> list[str]:
    out: list[str] = []
    for row in rows:
        gain = _number(row, "gain")
        error = _number(row, "gain_se") or _number(row, "accuracy_se")
        if gain is not None and gain < -2 * (error or 0.0):
            out.append(
                f"{row['model']}: {-100 * gain:.1f} points below the model it is compared with. "
                "Training made it worse, or it is not the student that was meant."
            )
    return out


def _noisy(rows: Sequence[Row]) -> list[str]:
    """Divergences whose standard error is more than half of them."""
    out: list[str] = []
    for row in rows:
        for key, shown in (("reverse_kl", "reverse KL"), ("forward_kl", "forward KL")):
            value, error = _number(row, key), _number(row, f"{key}_se")
            if value is not None and error is not None and value > 0.01 and error > value / 2:
                out.append(
                    f"{row['model']}: its {shown} of {value:.3g} has a standard error of "
                    f"{error:.3g}, so a few tokens make most of it. Compare models by the other "
                    "divergence or by accuracy."
                )
    return out


def _shares(rows: Sequence[Row]) -> list[str]:
    """Answers that were cut, and answers in which nothing was found: one line each."""
    out: list[str] = []
    for key, limit, said in (
        (
            "truncated",
            TRUNCATED,
            "Answers were cut at the length limit: {}. Raise `evaluate.sampling.max_tokens`, or "
            "read these accuracies as lower bounds.",
        ),
        (
            "unparsed",
            UNREADABLE,
            "No final answer was found in many answers: {}. Look at some before trusting the "
            "verifier.",
        ),
    ):
        found = {str(row["model"]): _number(row, key) or 0.0 for row in rows}
        high = [f"{name} {100 * share:.0f} %" for name, share in found.items() if share > limit]
        if high:
            out.append(said.format(", ".join(high)))
    return out


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
