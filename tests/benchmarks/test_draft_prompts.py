"""Prompts that the target of a draft writes, and the recipe that learns from them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.draft_prompts import TEMPLATE, dialogues, lines, usable
from benchmarks.draft_sets import RECIPE, other_prompts
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from stages.config.data import PromptSource
from stages.config.template import Template
from stages.config.training import Student
from stages.data.render import Renderer
from stages.data.tasks import task
from tests.world import END, PAD, tokenizer


def test_the_last_turn_is_the_users_and_left_open() -> None:
    source = PromptSource(task="reading", limit=1, template=Template(file=str(TEMPLATE)))
    renderer = Renderer(tokenizer(), source)
    (row,) = dialogues(7, 1)
    problems = task("reading").problems(7, 2, seed=0)
    turns = renderer.text(renderer.dialogue(7, row)).split("<|im_start|>")[1:]
    assert turns[0].startswith("system\nYou are")
    said: list[str] = []
    for one in problems:
        said += [f"user\n{one.prompt}<|im_end|>\n", f"assistant\n{one.response}<|im_end|>\n"]
    assert turns[1:] == [*said, "user\n"]


def test_turns_that_ended_and_say_something_new_are_prompts() -> None:
    words = tokenizer()
    a, b = (words.get_vocab()[letter] for letter in "ab")
    turns = [[a, b, END], [a, b], [END], [b, END], [a, b, END], [a, PAD, END]]
    assert usable([np.array(ids) for ids in turns], words) == ["ab", "b"]


def test_a_row_is_a_line_that_reads_back() -> None:
    rows = [{"prompt": "a\nb"}, {"prompt": "Zoë's"}]
    assert [json.loads(line) for line in lines(rows).decode().splitlines()] == rows


def test_the_live_student_takes_the_steps_of_the_others() -> None:
    recipe = load_recipe(None, [RECIPE])
    students = {node.variant: node.config for node in build(recipe) if node.stage.name == "train"}
    main, live = students[recipe.train.objective.name], students["live"]
    assert isinstance(main, Student)
    assert isinstance(live, Student)
    assert live.data == "live"
    assert live.model_copy(update={"data": main.data}) == main
    assert recipe.rollouts is not None
    assert recipe.sft_data is not None
    for table in (recipe.rollouts, recipe.sft_data):
        assert table.prompts.limit is not None
        trained = table.prompts.limit - round(table.holdout * table.prompts.limit)
        assert trained % recipe.train.batch_size == 0


def test_other_prompts_are_as_many_and_no_prompt_serves_twice(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text("{}")  # planning asks whether it is there
    real = load_recipe(None, [RECIPE])
    other = load_recipe(None, [RECIPE], other_prompts(real, tmp_path / "file", tmp_path / "set"))
    tables = [(one.sft_data, one.rollouts) for one in (real, other)]
    (a, b), (c, d) = [(x.prompts, y.prompts) for x, y in tables if x and y]
    assert (a.limit, b.limit) == (c.limit, d.limit)
    assert (c.path, c.task) == (d.path, d.task) == (str(tmp_path / "file"), None)
    for first, second in pairwise([c, d]):
        assert first.limit is not None
        assert first.first + first.limit <= second.first
    assert other.evaluate.text is not None
    assert other.evaluate.text.data == str(tmp_path / "set")
    (sft,) = [node for node in build(other) if node.name == "sft"]
    assert sft.config == next(node for node in build(real) if node.name == "sft").config
