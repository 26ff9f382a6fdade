"""The tables of what a student costs, from figures of two rounds."""

from dataclasses import replace

from benchmarks.cost import APART, FIRST, STUDENTS, Cost, tables


def test_means_ratios_and_what_no_stage_took() -> None:
    stages = {"train": 8.0, "evaluate": 10.0}
    costs = {row: Cost(20.0, 24.0, stages) for row in STUDENTS}
    costs[FIRST] = Cost(50.0, 48.0, {"rollouts": 15.0, "teacher-logits": 11.0, **stages})
    costs[APART] = Cost(80.0, 96.0, {"rollouts": 20.0, "teacher-logits": 20.0, **stages})
    slower = {row: replace(cost, seconds=2 * cost.seconds) for row, cost in costs.items()}
    said = tables([costs, slower]).splitlines()
    assert "| offline, first student | 75.0 | 48.0 | 2.50 | 2.00 |" in said
    assert "| live, second student | 30.0 | 24.0 | 1.00 | 1.00 |" in said
    assert f"| {APART} | 120.0 | 96.0 | 4.00 | 4.00 |" in said
    assert "| offline, first student | 15.0 | 11.0 | 8.0 | 10.0 | 31.0 |" in said
    assert "| offline, second student |  |  | 8.0 | 10.0 | 12.0 |" in said
