"""Figures of speculative decoding as the page docs/draft.md shows them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.harness import ROOT, Table, markdown
from stages.reporting.table import format_table, legend

PAGE, FIGURES = ROOT / "docs" / "draft.md", ROOT / "docs" / "draft.json"


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
    nats: float
    """Mean -log p of the answers' tokens under the target at temperature 1."""
    same: float
    """Share of answers equal to those of the target alone."""

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def first(self) -> float:
        """Acceptance of a proposal whose context the target has written: its mean is 1 - TVD."""
        return self.accepted[0] / self.rounds

    @property
    def first_error(self) -> float:
        """Its standard error, proposals taken as independent."""
        return math.sqrt(self.first * (1.0 - self.first) / self.rounds)

    @property
    def length(self) -> float:
        """Tokens a pass of the target yields, with the one that it adds itself."""
        return 1.0 + sum(self.accepted) / self.rounds


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
    rows = {str(row["model"]): row for row in found["rows"]}
    cost = found["cost"]
    facts = found["facts"]
    about = "\n".join(f"- {line}" for line in legend(found["rows"], None))
    parts = [
        f"`{facts['command']}`: {facts['sets']} sets in {facts['making'] / 60:.0f} min, then "
        f"{facts['measuring'] / 60:.0f} min of decoding {facts['prompts']} prompts with each "
        f"engine; seed {facts['seed']}, {facts['machine']}, {facts['date']}.\n",
        "### From records and from text\n",
        f"{format_table(found['rows'], 'markdown')}\n\n{about}\n",
        "### In vLLM\n",
        f"A token of a draft alone takes {cost:.2f} of the time of one of the target alone; its "
        f"file has {facts['bytes_ratio']:.2f} of the bytes.\n",
    ]
    for temperature in sorted({one.temperature for one in outcomes}, reverse=True):
        group = [one for one in outcomes if one.temperature == temperature]
        parts.append(_table(group, rows, cost))
    parts.append(
        "- accept: of the first token proposed, whose context the target has written, ± its "
        "standard error; expected: 1 - TVD on the target's held-out answers, from the table above\n"
        "- length: tokens a pass of the target yields, its own included\n"
        "- times: over the mean of the target alone, measured first and last; by formula: "
        "(1 + a + ... + a^n) / (n c + 1) with the acceptance a of this row and the cost c above\n"
        "- nats: -log p of the answers' tokens under the target; lossless decoding leaves it where "
        "it is; same: share of answers that equal those of the target alone\n"
    )
    return "\n".join(parts)


def _table(outcomes: Sequence[Outcome], rows: Mapping[str, Mapping[str, Any]], cost: float) -> str:
    """The outcomes at one temperature."""
    plain = fmean(one.speed for one in outcomes if not one.ahead)
    greedy = outcomes[0].temperature == 0
    header = ["draft", "ahead", "accept, %", *([] if greedy else ["expected, %"]), "length"]
    header += ["tokens/s", "times", "by formula", *(["same, %"] if greedy else ["nats"])]
    lines: list[list[str]] = []
    for one in outcomes:
        last = f"{100 * one.same:.0f}" if greedy else f"{one.nats:.3f}"
        speed = [f"{one.speed:.1f}", f"{one.speed / plain:.2f}"]
        if not one.ahead:
            gap = ["-"] * (len(header) - 7)
            lines.append(["none", "0", *gap, "1.00", *speed, "1.00", last])
            continue
        expected = rows.get(one.draft, {}).get("acceptance")
        shown = f"{100 * expected:.1f}" if isinstance(expected, float) else "-"
        lines.append(
            [
                one.draft,
                str(one.ahead),
                f"{100 * one.first:.1f} ± {100 * one.first_error:.1f}",
                *([] if greedy else [shown]),
                f"{one.length:.2f}",
                *speed,
                f"{expected_speed(one.first, one.ahead, cost):.2f}",
                last,
            ]
        )
    return markdown(Table(f"Temperature {outcomes[0].temperature:g}:", header, lines))
