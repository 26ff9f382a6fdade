"""Figures of speculative decoding as docs/draft.md shows them, and what follows from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.draft_sets import LIVE, SFT, synthetic
from benchmarks.harness import ROOT, Table, markdown
from stages.reporting.table import Row, format_table, legend

PAGE, FIGURES = ROOT / "docs" / "draft.md", ROOT / "docs" / "draft.json"

QUIET = 0.1
"""Cores that other processes may take before the page warns of its clock."""


@dataclass(frozen=True)
class Outcome:
    """One engine at one temperature."""

    draft: str
    """Empty for the target alone."""
    ahead: int
    """Tokens that the draft proposes at once."""
    temperature: float
    tokens: int
    seconds: float
    rounds: int
    """Times that the draft proposed."""
    accepted: tuple[int, ...]
    """Proposals accepted at each place; none is where an earlier one was rejected."""
    first_error: float | None
    """Standard error of `first` over prompts."""
    same: float
    """Share of answers equal to those of the target alone."""
    nats: float | None = None
    """Mean -log p of the answers' tokens under the target; of sampled answers, as the next two."""
    nats_gap: float | None = None
    """The same less that of the target alone."""
    nats_error: float | None = None
    """Standard error of the gap, paired over prompts."""

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def first(self) -> float:
        """Acceptance of a proposal whose context the target has written: its mean is 1 - TVD."""
        return self.accepted[0] / self.rounds

    @property
    def length(self) -> float:
        """Tokens a pass of the target yields, with the one that it adds itself."""
        return 1.0 + sum(self.accepted) / self.rounds

    def times(self, plain: float) -> float:
        """Speed over that of the target alone."""
        return self.speed / plain


def expected_speed(acceptance: float, ahead: int, cost: float) -> float:
    """Tokens a second over those of the target alone (arXiv 2211.17192, theorem 3.8).

    Args:
        acceptance: Chance that a proposal is accepted, taken as the same everywhere.
        ahead: Tokens proposed at once.
        cost: Time of a draft's step over that of the target.
    """
    length = sum(acceptance**i for i in range(ahead + 1))
    return length / (ahead * cost + 1.0)


def tables(found: Mapping[str, Any]) -> str:
    """What the page shows of the figures in docs/draft.json."""
    outcomes = [Outcome(**{**one, "accepted": tuple(one["accepted"])}) for one in found["outcomes"]]
    rows: Mapping[str, Row] = {str(row["model"]): row for row in found["rows"]}
    facts, clock = found["facts"], found["clock"]
    about = "\n".join(f"- {line}" for line in legend(found["rows"], None))
    cost = clock["cost"] if clock else 1.0
    parts = [
        _facts(facts, clock),
        "\n".join(f"- {line}" for line in findings(rows, outcomes, facts, cost)) + "\n",
        "### From records and from text\n",
        f"{format_table(found['rows'], 'markdown')}\n\n{about}\n",
    ]
    if not clock:
        return "\n".join([*parts, "Not timed in vLLM yet: `make draft` on a quiet machine.\n"])
    parts += [
        "### In vLLM\n",
        f"A token of a draft alone takes {cost:.2f} of the time of one of the target alone; its "
        f"file has {clock['bytes_ratio']:.2f} of the bytes.\n",
    ]
    for temperature in sorted({one.temperature for one in outcomes}, reverse=True):
        group = [one for one in outcomes if one.temperature == temperature]
        parts.append(_table(group, rows, cost))
    parts.append(
        "- accept: of the first token proposed, whose context the target has written, ± its "
        "standard error over prompts; expected: 1 - TVD on the target's held-out answers, from the "
        "table above\n"
        "- length: tokens a pass of the target yields, its own included\n"
        "- times: over the mean of the target alone, measured first and last; by formula: "
        "(1 + a + ... + a^n) / (n c + 1) with the acceptance a of this row and the cost c above\n"
        "- nats: -log p of the answers' tokens under the target; gap: less that of the target "
        "alone, ± standard error, paired over prompts; 0 but for chance if decoding is lossless\n"
        "- same: share of answers that equal those of the target alone\n"
    )
    return "\n".join(parts)


def _facts(facts: Mapping[str, Any], clock: Mapping[str, Any] | None) -> str:
    """How the figures were made."""
    timed = load = ""
    if clock:
        timed = (
            f", then {clock['seconds'] / 60:.0f} min of decoding, {clock['prompts']} prompts at "
            f"temperature 1 and {clock['greedy']} at 0 with each engine"
        )
        others = clock["others"]
        load = (
            f" **Other processes took {others:.1f} cores meanwhile: read nothing into tokens/s.**"
            if others > QUIET
            else f" Other processes took {max(others, 0):.2f} cores meanwhile."
        )
    shown = "; ".join(f"`{text}`" for text in facts["written"]["examples"])
    return (
        f"`{facts['command']}`: {facts['sets']} sets in {facts['making'] / 60:.0f} min{timed}; "
        f"seed {facts['seed']}, {facts['machine']}, {facts['date']}.{load}\n\n"
        f"Of {facts['written']['turns']} turns that the target wrote in the user's place, "
        f"{facts['written']['prompts']} served as prompts; the first three: {shown}.\n"
    )


# ---------------------------------------------------------------------------------------------
# What follows


def findings(
    rows: Mapping[str, Row], outcomes: Sequence[Outcome], facts: Mapping[str, Any], cost: float
) -> list[str]:
    """Sentences, each with the figures that it rests on; `cost` as in `expected_speed`."""
    main, seconds = facts["main"], facts["seconds"]
    learnt = {
        name: row
        for name, row in rows.items()
        if name not in ("teacher", SFT, synthetic(SFT), synthetic(main)) and "acceptance" in row
    }
    ranked = sorted(learnt, key=lambda name: -_accept(rows[name])[0])
    found = [
        "**Objectives and data**, by acceptance on the target's answers: "
        + ", ".join(f"{name} {_share(*_accept(rows[name]))}" for name in ranked)
        + f" %; after SFT alone {_share(*_accept(rows[SFT]))} %."
    ]
    sampled = {one.draft: one for one in reversed(outcomes) if one.temperature > 0 and one.ahead}
    if LIVE in rows:
        offline = sum(seconds[name] for name in ("rollouts", "teacher-logits", f"train.{main}"))
        found.append(
            f"**Offline against live**, {main}, as many steps at the same prompts: offline minus "
            f"live {_gap(_accept(rows[main]), _accept(rows[LIVE]))} points on the target's answers"
            + _in_vllm(sampled, main, LIVE)
            + f". Offline took {offline:.0f} s for rollouts, records and training, of which a "
            f"second student pays {seconds[f'train.{main}']:.0f} s; "
            f"live {seconds['train.live']:.0f} s."
        )
    if synthetic(main) in rows:
        shares = [
            _accept(rows[synthetic(name)])[0] / _accept(rows[name])[0] for name in (SFT, main)
        ]
        found.append(
            "**Real prompts against the target's own**: trained on the latter, a draft has "
            f"{100 * shares[0]:.0f} % of the acceptance after SFT and {100 * shares[1]:.0f} % "
            f"after {main}; real minus synthetic "
            f"{_gap(_accept(rows[main]), _accept(rows[synthetic(main)]))} points on the target's "
            "answers" + _in_vllm(sampled, main, synthetic(main)) + "."
        )
    checked = [one for one in outcomes if one.ahead and one.nats_error]
    if checked:
        worst = max(checked, key=lambda one: abs(_z(one)))
        found.append(
            f"**What is sampled**: of {len(checked)} engines with a draft, the one whose answers "
            f"are furthest from the target's own in nats ({worst.draft}, {worst.ahead} ahead) is "
            f"{abs(_z(worst)):.1f} standard errors away."
        )
    timed = [one for one in outcomes if one.ahead and one.temperature > 0]
    if timed:
        plain = _plain(outcomes, 1.0)
        fastest = max(timed, key=lambda one: one.speed)
        formula = expected_speed(fastest.first, fastest.ahead, cost)
        found.append(
            f"**The clock**: the fastest, {fastest.draft} with {fastest.ahead} ahead, decodes "
            f"{fastest.times(plain):.2f} times as fast as the target alone; by the formula "
            f"{formula:.2f}."
        )
    return found


def _accept(row: Row) -> tuple[float, float]:
    """Acceptance on the target's held-out answers, and its standard error."""
    value, error = row["acceptance"], row.get("acceptance_se")
    assert isinstance(value, float), "an evaluation of text has it"
    return value, error if isinstance(error, float) else 0.0


def _share(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _gap(ours: tuple[float, float], theirs: tuple[float, float]) -> str:
    """A difference in points; errors are taken as independent, though the answers are the same."""
    return f"{100 * (ours[0] - theirs[0]):+.1f} ± {100 * math.hypot(ours[1], theirs[1]):.1f}"


def _in_vllm(sampled: Mapping[str, Outcome], ours: str, theirs: str) -> str:
    """The same difference as vLLM has counted it; nothing where it has not run both."""
    if not {ours, theirs} <= sampled.keys():
        return ""
    one, other = sampled[ours], sampled[theirs]
    pair = (one.first, one.first_error or 0.0), (other.first, other.first_error or 0.0)
    return f" and {_gap(*pair)} in vLLM"


def _z(one: Outcome) -> float:
    """The gap in nats in standard errors."""
    return (one.nats_gap or 0.0) / one.nats_error if one.nats_error else 0.0


def _plain(outcomes: Sequence[Outcome], temperature: float) -> float:
    """Tokens a second of the target alone."""
    return fmean(one.speed for one in outcomes if not one.ahead and one.temperature == temperature)


def _table(outcomes: Sequence[Outcome], rows: Mapping[str, Row], cost: float) -> str:
    """The outcomes at one temperature."""
    temperature = outcomes[0].temperature
    plain, greedy = _plain(outcomes, temperature), temperature == 0
    header = ["draft", "ahead", "accept, %", *([] if greedy else ["expected, %"]), "length"]
    header += ["tokens/s", "times", "by formula", *(["same, %"] if greedy else ["nats", "gap"])]
    lines: list[list[str]] = []
    for one in outcomes:
        gap = f"{one.nats_gap:+.3f} ± {one.nats_error:.3f}" if one.nats_error else "-"
        last = [f"{100 * one.same:.0f}"] if greedy else [f"{one.nats:.3f}", gap]
        speed = [f"{one.speed:.1f}", f"{one.times(plain):.2f}"]
        if not one.ahead:
            dashes = ["-"] if greedy else ["-", "-"]
            lines.append(["none", "0", *dashes, "1.00", *speed, "1.00", *last])
            continue
        expected = rows.get(one.draft, {}).get("acceptance")
        shown = f"{100 * expected:.1f}" if isinstance(expected, float) else "-"
        formula = expected_speed(one.first, one.ahead, cost)
        lines.append(
            [
                one.draft,
                str(one.ahead),
                _share(one.first, one.first_error or 0.0),
                *([] if greedy else [shown]),
                f"{one.length:.2f}",
                *speed,
                f"{formula:.2f}",
                *last,
            ]
        )
    return markdown(Table(f"Temperature {temperature:g}:", header, lines))
