"""Prompts are grouped alike for every model, by what all of them got right."""

import pytest

from stages.evaluation.answers import Answer
from stages.evaluation.difficulty import by_difficulty
from storage.schema import OUTCOME


def answers(rights: dict[int, list[int]], greedy: bool = False) -> list[Answer]:
    return [
        Answer(prompt, sample, greedy, 5, "stop", OUTCOME["right" if right else "wrong"], "")
        for prompt, samples in rights.items()
        for sample, right in enumerate(samples)
    ]


def test_groups_go_from_hard_to_easy_and_are_the_same_for_every_model() -> None:
    found = by_difficulty(
        {
            "a": answers({0: [0, 0], 1: [1, 0], 2: [1, 1]}),
            "b": answers({0: [0, 1], 1: [0, 0], 2: [1, 1]}),
        }
    )
    assert found is not None
    assert found.groups == ("0-25 %", "25-50 %", "50-75 %", "75-100 %")
    hard, _, _, easy = found.models["a"]
    assert hard is not None
    assert (hard.prompts, hard.accuracy) == (2, 0.25)  # prompts 0 and 1: a quarter of all answers
    assert hard.error == pytest.approx(0.25)
    assert easy is not None
    assert (easy.prompts, easy.accuracy, easy.error) == (1, 1.0, None)
    other = found.models["b"][0]
    assert other is not None
    assert (other.prompts, other.accuracy) == (2, 0.25)
    assert found.models["a"][1] is None


def test_greedy_answers_sort_but_are_not_counted() -> None:
    sampled, greedy = answers({0: [0]}), answers({0: [1]}, greedy=True)
    found = by_difficulty({"a": sampled + greedy, "b": sampled + greedy})
    assert found is not None
    group = found.models["a"][1]  # half of all answers are right
    assert group is not None
    assert group.accuracy == 0.0


def test_one_model_or_other_prompts_give_no_comparison() -> None:
    assert by_difficulty({"a": answers({0: [1]})}) is None
    assert by_difficulty({"a": answers({0: [1]}), "b": answers({1: [1]})}) is None
    unknown = [Answer(0, 0, False, 5, "stop", OUTCOME["unknown"], "")]
    assert by_difficulty({"a": unknown, "b": unknown}) is None
