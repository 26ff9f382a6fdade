"""The built-in tasks: right, not deterministic in form, and without overlap between ranges."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.config import load_recipe
from stages.data.problem import Problem
from stages.data.tasks import task
from stages.data.verifiers import open_verifier
from storage.errors import ConfigError, DataError
from storage.schema import OUTCOME

ADDITION = task("addition")
READING = task("reading")
BOTH = pytest.mark.parametrize("task_name", ["addition", "reading"])
COLUMN = re.compile(r"(\d)\+(\d)\+(\d)=(\d\d),")


def one(index: int, seed: int = 0) -> Problem:
    return ADDITION.problems(index, 1, seed)[0]


@given(st.integers(0, ADDITION.size - 1), st.integers(0, 2**32))
def test_every_solution_is_right(index: int, seed: int) -> None:
    problem = one(index, seed)
    a, b = map(int, re.fullmatch(r"(\d{3})\+(\d{3})=", problem.prompt).groups())  # type: ignore[reportOptionalMemberAccess]
    scratch, _, answer = problem.response.partition(">")
    assert answer == problem.answer == f"{a + b:04d}"
    carry, digits = 0, ""
    for place, column in enumerate(COLUMN.finditer(scratch)):
        x, y, carried, total = map(int, column.groups())
        assert sorted((x, y)) == sorted((a // 10**place % 10, b // 10**place % 10))
        assert carried == carry
        assert x + y + carried == total
        carry, digits = total // 10, f"{total % 10}{digits}"
    assert f"{carry}{digits}" == answer
    assert len(problem.prompt + problem.response) == 40


@BOTH
def test_seeds_change_the_solution_and_never_the_problem(task_name: str) -> None:
    written = [task(task_name).problems(0, 200, seed) for seed in range(4)]
    for problems in zip(*written, strict=True):
        assert len({(p.prompt, p.answer) for p in problems}) == 1
    assert any(len({p.response for p in problems}) > 1 for problems in zip(*written, strict=True))


@BOTH
def test_ranges_of_indices_share_no_problem(task_name: str) -> None:
    problems = task(task_name).problems
    train = {p.prompt for p in problems(0, 20_000, seed=0)}
    test = {p.prompt for p in problems(100_000, 5_000, seed=1)}
    assert len(train) == 20_000
    assert len(test) == 5_000
    assert not train & test


@BOTH
def test_a_range_is_the_sum_of_its_parts(task_name: str) -> None:
    problems = task(task_name).problems
    assert problems(10, 5, 3) == [problems(index, 1, 3)[0] for index in range(10, 15)]


@BOTH
def test_characters_are_all_there_are(task_name: str) -> None:
    text = "".join(p.prompt + p.response for p in task(task_name).problems(0, 1000, 0))
    assert set(text) == set(task(task_name).characters)


def test_the_recipe_verifies_reading() -> None:
    verifier = load_recipe("smollm2").evaluate.verifier
    problems = READING.problems(0, 500, 0)
    right = [p.response for p in problems]
    other = ["cellar" if p.answer != "cellar" else "attic" for p in problems]
    wrong = [f"It is in the {place}." for place in other]
    changed = [f"{r} No, it is in the {place}." for r, place in zip(right, other, strict=True)]
    answers = [p.answer for p in problems]
    with open_verifier(verifier) as check:
        assert set(check(right, answers, [False] * 500)) == {OUTCOME["right"]}
        for bad in (wrong, changed, ["I do not know."] * 500):
            assert OUTCOME["right"] not in set(check(bad, answers, [False] * 500))
    for problem in problems:
        assert f"is in the {problem.answer}. Where is the " in problem.prompt


def test_problems_are_spread_over_all_numbers() -> None:
    first = [int(p.prompt[:3]) for p in ADDITION.problems(0, 1000, 0)]
    assert len(set(first)) > 550


@pytest.mark.parametrize(("first", "count"), [(ADDITION.size - 1, 2), (-1, 1)])
def test_problems_beyond_the_last_are_refused(first: int, count: int) -> None:
    with pytest.raises(DataError, match="it has 0 to 999999"):
        ADDITION.problems(first, count, 0)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="`subtraction` does not exist; there is addition, r"):
        task("subtraction")
