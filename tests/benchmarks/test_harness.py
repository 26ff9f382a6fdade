"""Rounds, ratios and the tables made of them."""

from benchmarks.__main__ import SUMMARY, summary
from benchmarks.harness import (
    Goal,
    Line,
    Report,
    Table,
    cost_line,
    figure,
    interleave,
    show,
    speed_line,
)


class Clock:
    """A clock that stands still unless told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now


def test_every_candidate_runs_once_a_round_and_the_first_round_does_not_count() -> None:
    clock, order = Clock(), []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds if len(order) > 2 else 100.0

    found = interleave({"a": lambda: work("a", 2.0), "b": lambda: work("b", 3.0)}, 3, clock)
    assert found == {"a": [2.0] * 3, "b": [3.0] * 3}
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    found = {"ours": [1.0, 2.0, 4.0], "peer": [2.0, 8.0, 8.0]}
    goals = (Goal("ours", ">=", 5.0), Goal("ratio", ">=", 1.4))
    fast = speed_line("x", "rows/s", found, "ours", "peer", amount=10.0, goals=goals)
    assert (fast.ours, fast.peer, fast.ratio) == (5.0, 1.25, 2.0)
    assert fast.met
    slow = cost_line("x", "s", found, "ours", "peer", goals=(Goal("ratio", "<=", 0.49),))
    assert (slow.ours, slow.peer, slow.ratio) == (2.0, 8.0, 0.5)
    assert not slow.met


def test_a_line_meets_its_target_only_if_all_goals_are_met() -> None:
    line = Line("x", "B", 10.0, "peer", 20.0, 0.5, (Goal("ours", "<=", 9), Goal("ratio", "<=", 1)))
    assert not line.met


def test_a_report_survives_json() -> None:
    line = Line("x", "B", 1.0, "peer", 2.0, 0.5, (Goal("ratio", "<=", 0.6),), 0.1)
    report = Report("Title", [line], [Table("t", ["a"], [["1"]])], ["note"], {"x": [1.0]})
    assert Report.from_json(report.to_json()) == report


def test_shown_as_markdown() -> None:
    line = Line("x", "B", 10.0, "peer", 20.0, 0.5, (Goal("ours", "<=", 9), Goal("ratio", "<=", 1)))
    text = show(Report("Title", [line], [Table("t", ["a", "b"], [["1", "2"]])], ["note"]))
    assert "## Title" in text
    assert "| x | 10 B | 20 B (peer) | 0.5 | ≤ 9 B, ratio ≤ 1 | **not met** |" in text
    assert "| 1 | 2 |" in text
    assert "- note" in text


def test_figures_have_three_digits() -> None:
    assert [figure(v) for v in (0.01234, 1.5, 999.0, 9999.0, 151_936, 1.239e6, 5e9)] == [
        "0.0123",
        "1.5",
        "999",
        "9999",
        "152 k",
        "1.24 M",
        "5 G",
    ]


def test_the_summary_answers_each_question_with_the_line_it_asks_for() -> None:
    lines = [
        Line(what, "", 1.0, f"the {against}", 2.0, 0.5, ()) for _, what, against in SUMMARY[::-1]
    ]
    assert [row[0] for row in summary(lines).rows] == [question for question, *_ in SUMMARY]
    assert summary([]).rows == []
