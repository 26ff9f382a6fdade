"""Prompts from every kind of source, rendered as the model wants them; every bad input by name."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import zstandard
from pydantic import ValidationError

from stages.config.corpus import Tokenizer
from stages.config.data import PromptSource
from stages.data.prompts import PromptReport, Prompts, count_prompts, load_prompts
from stages.models.tokenizer import load_tokenizer, make_tokenizer
from storage.errors import DataError

Rows = Sequence[Mapping[str, Any]]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template that shows roles."""
    directory = tmp_path_factory.mktemp("chat")
    make_tokenizer(Tokenizer(vocab_size=259), [], directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer without template, which puts <bos> before text by default."""
    from tokenizers.processors import TemplateProcessing

    directory = tmp_path_factory.mktemp("plain")
    make_tokenizer(Tokenizer(vocab_size=259), [], directory)
    tokenizer = load_tokenizer(directory)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").unlink()
    return directory


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_zst(path: Path, rows: Rows) -> None:
    """Two frames, as `cat a.zst b.zst` makes them."""
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    half = len(lines) // 2
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(b"".join(lines[:half])) + compress(b"".join(lines[half:])))


def write_parquet(path: Path, rows: Rows) -> None:
    pl.DataFrame(list(rows)).write_parquet(path)


def write_datasets(path: Path, rows: Rows) -> None:
    datasets.Dataset.from_list([dict(row) for row in rows]).save_to_disk(str(path))


FORMATS: dict[str, Callable[[Path, Rows], None]] = {
    "a.jsonl": write_jsonl,
    "a.jsonl.zst": write_zst,
    "a.parquet": write_parquet,
    "a_directory": write_datasets,
}


def texts(prompts: Prompts, directory: Path) -> list[str]:
    """The prompts decoded again."""
    tokenizer = load_tokenizer(directory)
    return [str(tokenizer.decode(prompt.ids.tolist())) for prompt in prompts]


def read(path: Path, directory: Path, **fields: Any) -> Prompts:
    return load_prompts(PromptSource(path=str(path), **fields), directory)


def from_rows(tmp_path: Path, directory: Path, rows: Rows, **fields: Any) -> Prompts:
    write_jsonl(tmp_path / "a.jsonl", rows)
    return read(tmp_path / "a.jsonl", directory, **fields)


# ---------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts(tmp_path: Path, chat: Path, name: str) -> None:
    rows = [{"n": i, "prompt": f"What is {i}?", "answer": str(i)} for i in range(7)]
    FORMATS[name](tmp_path / name, rows)
    prompts = read(tmp_path / name, chat)
    assert texts(prompts, chat) == [f"[user]What is {i}?[assistant]" for i in range(7)]
    assert [prompt.answer for prompt in prompts] == [str(i) for i in range(7)]
    assert [prompt.prompt_id for prompt in prompts] == list(range(7))
    assert count_prompts(PromptSource(path=str(tmp_path / name))) == 7


@pytest.mark.parametrize("name", FORMATS)
def test_chat_messages_in_every_format(tmp_path: Path, chat: Path, name: str) -> None:
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"q": turn[:1]}, {"q": [*turn, {"role": "user", "content": "c"}]}]
    FORMATS[name](tmp_path / name, rows)
    prompts = read(tmp_path / name, chat, field="q")
    assert texts(prompts, chat) == [
        "[user]a[assistant]",
        "[user]a[assistant]b[user]c[assistant]",
    ]
    assert {prompt.answer for prompt in prompts} == {None}


@pytest.mark.parametrize("name", FORMATS)
def test_a_range_of_rows(tmp_path: Path, chat: Path, name: str) -> None:
    FORMATS[name](tmp_path / name, [{"prompt": f"{i}"} for i in range(9)])
    prompts = read(tmp_path / name, chat, first=3, limit=2)
    assert prompts.prompt_ids.tolist() == [3, 4]
    assert texts(prompts, chat) == ["[user]3[assistant]", "[user]4[assistant]"]
    source = PromptSource(path=str(tmp_path / name), first=3)
    assert count_prompts(source) == 6
    assert count_prompts(source.model_copy(update={"limit": 2})) == 2


def test_without_a_template_text_is_encoded_as_the_tokenizer_does(
    tmp_path: Path, plain: Path
) -> None:
    prompts = from_rows(tmp_path, plain, [{"prompt": "ab"}])
    assert prompts[0].ids[0] == 1
    assert texts(prompts, plain) == ["<bos>ab"]


def test_a_template_writes_special_tokens_itself(tmp_path: Path, tiny_model: Path) -> None:
    prompts = from_rows(tmp_path, tiny_model, [{"prompt": "1+2="}])
    assert prompts[0].ids.tolist() == [1, 6, 3, 7, 15]
    assert prompts[0].ids.dtype == np.uint32


def test_the_task_has_prompts_and_answers(tiny_model: Path) -> None:
    source = PromptSource(task="addition", first=10, limit=4)
    prompts = load_prompts(source, tiny_model)
    assert prompts.prompt_ids.tolist() == [10, 11, 12, 13]
    for prompt, text in zip(prompts, texts(prompts, tiny_model), strict=True):
        assert prompt.answer == f"{eval_sum(text.removeprefix('<bos>')):04d}"
    assert count_prompts(source) == 4


def eval_sum(text: str) -> int:
    """Sum of a problem such as `347+586=`."""
    return sum(int(number) for number in text.rstrip("=").split("+"))


def test_answers_may_be_numbers(tmp_path: Path, chat: Path) -> None:
    rows = [{"prompt": "a", "solution": 7}, {"prompt": "b", "solution": None}, {"prompt": "c"}]
    rows += [{"prompt": "d", "solution": float("nan")}]
    prompts = from_rows(tmp_path, chat, rows, answer_field="solution")
    assert prompts.answers == ("7", None, None, None)


def test_prompts_are_a_sequence(tmp_path: Path, chat: Path) -> None:
    prompts = from_rows(tmp_path, chat, [{"prompt": "a"}, {"prompt": "bc"}])
    assert len(prompts) == 2
    assert [p.prompt_id for p in prompts[::-1]] == [1, 0]
    assert prompts.longest == len(prompts[1].ids) == len("[user]bc[assistant]")


# ---------------------------------------------------------------------------------------------
# Dropped rows


def test_duplicates_and_empty_prompts_are_dropped_and_reported(
    tmp_path: Path, chat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "a", "answer": "first"},
        {"prompt": " \n"},
        {"prompt": "b"},
        {"prompt": [{"role": "user", "content": "a"}], "answer": "second"},
        {"prompt": []},
        {"prompt": [{"role": "user", "content": ""}]},
        {"prompt": "b"},
    ]
    with caplog.at_level(logging.INFO):
        prompts = from_rows(tmp_path, chat, rows)
    assert prompts.prompt_ids.tolist() == [0, 2]
    assert prompts.answers == ("first", None)
    report = PromptReport(7, 2, 2, 3, answers=1, first_duplicates=(3, 6), first_empty=(1, 4, 5))
    assert prompts.report == report
    assert json.loads(json.dumps(report.to_json()))["first_empty"] == [1, 4, 5]
    assert "2 rows dropped, duplicates of an earlier prompt (rows 3, 6)" in caplog.text
    assert "3 rows dropped, without text (rows 1, 4, 5)" in caplog.text


SOLVED = [
    {"prompt": "a", "answer": "so #### 1"},
    {"prompt": "b" * 30, "answer": "so #### 2"},
    {"prompt": "c", "answer": "who knows"},
    {"prompt": "d<eos>", "answer": "so #### 4"},
    {"prompt": "e", "answer": None},
]
PATTERN = {"answer_pattern": "#### (.+)"}


def test_what_the_recipe_lets_be_dropped_is_counted(
    tmp_path: Path, chat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"max_prompt_tokens": 40, "over_long": "drop", "no_answer": "drop"}
    prompts = from_rows(tmp_path, chat, SOLVED, **PATTERN, **options, control_tokens="drop")
    assert (prompts.prompt_ids.tolist(), prompts.answers) == ([0], ("1",))
    report = prompts.report.to_json()
    counts = {"rows": 5, "kept": 1, "over_long": 1, "without_answer": 2, "control_tokens": 1}
    assert {name: report[name] for name in counts} == counts
    assert report["first_without_answer"] == (2, 4)
    assert "2 rows dropped, without a reference answer (rows 2, 4)" in caplog.text


def test_by_default_such_rows_are_kept_and_counted(
    tmp_path: Path, chat: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = from_rows(tmp_path, chat, SOLVED, **PATTERN)
    assert prompts.answers == ("1", "2", None, "4", None)
    assert (prompts.report.answers, prompts.report.with_control_tokens) == (3, 1)
    assert "1 prompts spell control tokens in their text" in caplog.text
    assert 2 in prompts[3].ids.tolist(), "the text has become the end token"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_prompt_tokens": 40}, r"row 1: the prompt has 47 tokens, more than .* = 40"),
        ({"no_answer": "refuse"}, r"row 2: no reference answer: `answer` has no match of '#### "),
        ({"control_tokens": "refuse"}, r"row 3: its text spells the control token `<eos>`"),
    ],
)
def test_what_the_recipe_refuses(
    tmp_path: Path, chat: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        from_rows(tmp_path, chat, SOLVED, **PATTERN, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answer_field": "anser"}, r"no row has a reference answer in `anser`\."),
        ({"answer_pattern": "=> (.+)"}, r"no row has a reference answer in `answer` that matches"),
        ({"template": {"tools": "functions"}}, r"no row has tools in `functions`"),
    ],
)
def test_a_field_the_recipe_names_must_occur(
    tmp_path: Path, chat: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        from_rows(tmp_path, chat, SOLVED, **options)


def test_dropping_over_long_prompts_needs_a_length() -> None:
    with pytest.raises(ValidationError, match="needs `max_prompt_tokens`"):
        PromptSource(path="a", over_long="drop")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_dotted_names_reach_into_columns(tmp_path: Path, chat: Path, name: str) -> None:
    rows = [{"data": {"q": f"{n}"}, "reward_model": {"ground_truth": f"{n}"}} for n in range(3)]
    FORMATS[name](tmp_path / name, rows)
    fields = {"field": "data.q", "answer_field": "reward_model.ground_truth"}
    assert read(tmp_path / name, chat, **fields).answers == ("0", "1", "2")


# ---------------------------------------------------------------------------------------------
# Dialogues


def test_a_system_message_goes_before_dialogues_without_one(tmp_path: Path, chat: Path) -> None:
    text = TEMPLATE.partition("{% if messages")[0] + "|"
    (tmp_path / "own.jinja").write_text(text)
    own = [{"role": "developer", "content": "d"}, {"role": "user", "content": "b"}]
    table = {"system": "s", "file": str(tmp_path / "own.jinja")}
    prompts = from_rows(tmp_path, chat, [{"prompt": "a"}, {"prompt": own}], template=table)
    assert texts(prompts, chat) == ["[system]s[user]a|", "[developer]d[user]b|"]
    assert prompts.template["system"] == "s"


def test_an_answered_dialogue_may_be_answered_anew(tmp_path: Path, chat: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [{"prompt": turns}, {"prompt": turns[1:]}]
    prompts = from_rows(tmp_path, chat, rows, template={"drop_final_message": True})
    assert texts(prompts, chat) == ["[user]a[assistant]"]
    assert prompts.report.empty == 1


@pytest.mark.parametrize("as_text", [True, False])
def test_tools_are_shown_or_named_as_unused(
    tmp_path: Path, chat: Path, as_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{{ messages[0].content }}"
    )
    tool = [{"type": "function", "function": {"name": "add"}}]
    rows = [{"prompt": "a", "tools": json.dumps(tool) if as_text else tool}, {"prompt": "b"}]
    table = {"tools": "tools", "file": str(tmp_path / "own.jinja")}
    prompts = from_rows(tmp_path, chat, rows, template=table)
    assert texts(prompts, chat) == ["add a", "b"]
    assert not prompts.notes
    assert (
        "1 rows have `tools`, which the model is not shown"
        in from_rows(tmp_path, chat, rows).notes[0]
    )


def test_without_a_template_nothing_can_be_shown_beside_the_text(
    tmp_path: Path, plain: Path
) -> None:
    with pytest.raises(DataError, match=r"no chat template, so template\.system cannot be shown"):
        from_rows(tmp_path, plain, [{"prompt": "a"}], template={"system": "s"})


def test_a_prompt_does_not_end_with_the_tokenizers_end_token(
    tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(plain)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[reportAttributeAccessIssue]
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer.save_pretrained(tmp_path)
    prompts = from_rows(tmp_path, tmp_path, [{"prompt": "ab"}, {"prompt": "c<eos>"}])
    assert texts(prompts, plain) == ["<bos>ab", "<bos>c<eos>"]
    assert prompts.report.end_tokens_removed == 2
    assert "puts its end token after 2 prompts; it is left out" in caplog.text


def test_only_the_first_dropped_rows_are_listed(tmp_path: Path, chat: Path) -> None:
    report = from_rows(tmp_path, chat, [{"prompt": "a"}] * 40).report
    assert (report.duplicates, report.first_duplicates) == (39, (1, 2, 3, 4, 5))


def test_blank_lines_are_not_rows(tmp_path: Path, chat: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"prompt": "a"}\n   \n\n{"prompt": "b"}')
    prompts = read(tmp_path / "a.jsonl", chat)
    assert prompts.prompt_ids.tolist() == [0, 1]
    assert count_prompts(PromptSource(path=str(tmp_path / "a.jsonl"))) == 2


# ---------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_field_is_named_with_row_and_fields(
    tmp_path: Path, chat: Path, name: str
) -> None:
    FORMATS[name](tmp_path / name, [{"question": "a", "answer": "b"}])
    expected = rf"{name}, row 0: no field `prompt`; it has: answer, question\. Set"
    with pytest.raises(DataError, match=expected):
        read(tmp_path / name, chat)


def test_a_field_missing_later_names_that_row(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: no field `prompt`"):
        from_rows(tmp_path, chat, [{"prompt": "a"}, {"other": "b"}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"a\.jsonl, line 2: not valid JSON"),
        ('\n\n{"prompt": "a"', r"a\.jsonl, line 3: not valid JSON"),
        ('["a"]\n', r"a\.jsonl, line 1: a JSON list"),
        ('{"prompt": 3}\n', r"row 0: `prompt` is neither a string nor a list of messages"),
        (
            '{"prompt": [{"role": "user"}]}\n',
            r"row 0: `prompt`, message 0: the user's `content` is",
        ),
        ('{"prompt": "a", "answer": ["b"]}\n', r"row 0: `answer` is a list"),
        ('{"prompt": null}\n', r"row 0: `prompt` is null\. Remove the row, or fill it"),
        ("", r"a\.jsonl: the set of prompts is empty \(no rows\)"),
        ('{"prompt": " "}\n', r"a\.jsonl: the set of prompts is empty \(of 1 rows: 1 without"),
        ('{"prompt": [{"role": "system", "content": "x"}]}\n', r"row 0: the chat template rejects"),
    ],
)
def test_bad_lines(tmp_path: Path, chat: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl", chat)


def test_bytes_that_are_no_text(tmp_path: Path, chat: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not valid JSON"):
        read(tmp_path / "a.jsonl", chat)


def test_messages_without_a_template(tmp_path: Path, plain: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "a"}]}]
    with pytest.raises(DataError, match=r"row 0: .* tokenizer has no chat template"):
        from_rows(tmp_path, plain, rows)


def test_a_character_the_tokenizer_lacks(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match=r"row 1: the tokenizer cannot encode the prompt"):
        from_rows(tmp_path, tiny_model, [{"prompt": "1+2="}, {"prompt": "1*2="}])


def test_a_file_that_is_not_there(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        read(tmp_path / "nowhere.jsonl", chat)
    assert count_prompts(PromptSource(path=str(tmp_path / "nowhere.jsonl"))) is None


def test_a_format_nobody_knows(tmp_path: Path, chat: Path) -> None:
    (tmp_path / "a.xlsx").write_text("prompt\na\n")
    with pytest.raises(DataError, match=r"a\.xlsx: unknown format of prompts; supported are \.js"):
        read(tmp_path / "a.xlsx", chat)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_files(tmp_path: Path, chat: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    FORMATS[name](path, [{"prompt": f"{i}" * 40} for i in range(3000)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"noise" * 100)
    with pytest.raises(DataError, match=rf"{name}.*(damaged|not valid JSON)"):
        read(path, chat)


def test_a_compressed_file_cut_off_between_lines_is_noticed(tmp_path: Path, chat: Path) -> None:
    """What is left decompresses to whole lines; only the frame tells that it is not all."""
    compressor = zstandard.ZstdCompressor().compressobj()
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    whole = compressor.compress(b'{"prompt": "a"}\n') + compressor.flush(flush)
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: damaged .* ends in the middle"):
        read(tmp_path / "a.jsonl.zst", chat)


def test_a_directory_that_is_no_data_set(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(DataError, match=r"not a directory written by `datasets\.save_to_disk`"):
        read(tmp_path, chat)


def test_a_directory_of_several_splits(tmp_path: Path, chat: Path) -> None:
    part = datasets.Dataset.from_list([{"prompt": "a"}])
    splits = datasets.DatasetDict({"train": part, "test": part})
    splits.save_to_disk(str(tmp_path / "all"))
    with pytest.raises(DataError, match=r"several splits \(test, train\). Set `prompts.split`"):
        read(tmp_path / "all", chat)
    assert len(read(tmp_path / "all" / "train", chat)) == 1
    assert len(read(tmp_path / "all", chat, split="train")) == 1
    with pytest.raises(DataError, match="no split `dev`; it has test, train"):
        read(tmp_path / "all", chat, split="dev")


def test_a_range_beyond_the_file_is_empty(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        from_rows(tmp_path, chat, [{"prompt": "a"}], first=5)


def test_prompts_longer_than_the_context(tmp_path: Path, chat: Path) -> None:
    prompts = from_rows(tmp_path, chat, [{"prompt": "a"}, {"prompt": "b" * 30}])
    prompts.check_context(prompts.longest + 1)
    message = r"a\.jsonl, row 1: the prompt has 47 tokens, but the model's context is 47"
    with pytest.raises(DataError, match=message):
        prompts.check_context(47)
