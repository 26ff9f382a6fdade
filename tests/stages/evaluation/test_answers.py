"""The file of answers, and the figures it gives."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.answers import (
    Answer,
    accuracy,
    ks_up_to,
    pass_at_k,
    read_answers,
    write_answers,
)
from storage.errors import DataError


def answers(outcomes: list[list[int]]) -> list[Answer]:
    """Sampled answers: one list of outcomes per prompt."""
    return [
        Answer(prompt, sample, False, 10 + sample, "stop", outcome, "text")
        for prompt, row in enumerate(outcomes)
        for sample, outcome in enumerate(row)
    ]


texts = st.text(st.characters(exclude_categories=["Cs"]))
answer_lists = st.lists(
    st.builds(
        Answer,
        st.integers(0, 2**40),
        st.integers(0, 99),
        st.booleans(),
        st.integers(0, 10**6),
        st.sampled_from(["stop", "length"]),
        st.sampled_from([-1, 0, 1]),
        texts,
    )
)


@given(answer_lists)
def test_answers_come_back(tmp_path_factory: pytest.TempPathFactory, made: list[Answer]) -> None:
    path = tmp_path_factory.mktemp("set") / "answers.jsonl.zst"
    write_answers(path, made)
    assert read_answers(path) == made


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_cut_off_answers_are_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "answers.jsonl.zst"
    write_answers(path, answers([[1, 0], [0, 1]]))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="run `evaluate` again"):
        read_answers(path)


def test_no_flipped_bit_changes_an_answer_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl.zst"
    made = answers([[1, 0], [0, 1]])
    write_answers(path, made)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert read_answers(path) == made  # a bit of the header that means nothing
        except DataError:
            noticed += 1
    assert noticed > 0.9 * len(whole)


def test_accuracy_and_its_error_are_over_prompts() -> None:
    found = accuracy(answers([[1, 1], [0, 0], [1, 0], [-1, -1]]))
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["accuracy_se"] == pytest.approx(math.sqrt(0.25 / 3))
    assert found["pass@1"] == pytest.approx(0.5)
    assert found["pass@2"] == pytest.approx(2 / 3)
    assert found["tokens"] == pytest.approx(10.5)


def test_greedy_answers_are_counted_apart() -> None:
    sampled = answers([[1], [0]])
    greedy = [replace(answer, greedy=True, outcome=1, tokens=999) for answer in sampled]
    found = accuracy([*sampled, *greedy])
    assert (found["accuracy"], found["greedy"], found["tokens"]) == (0.5, 1.0, 10.0)


def test_truncated_share() -> None:
    first, second, third, fourth = answers([[1, 1], [0, 0]])
    cut = replace(fourth, finish="length")
    assert accuracy([first, second, third, cut])["truncated"] == 0.25


def test_prompts_without_answers_give_lengths_only() -> None:
    assert set(accuracy(answers([[-1], [-1]]))) == {"tokens", "truncated"}
    assert accuracy([]) == {}


def test_one_prompt_has_no_standard_error() -> None:
    assert accuracy(answers([[1, 0]]))["accuracy_se"] is None


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (4, 1), (5, 3), (6, 6), (6, 0)])
def test_pass_at_k_counts_subsets(n: int, right: int) -> None:
    outcomes = [1] * right + [0] * (n - right)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(max, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "ks"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_ks(n: int, ks: list[int]) -> None:
    assert ks_up_to(n) == ks
