"""Messages through chat templates as they occur: arguments, clocks, several, broken ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.config.corpus import Tokenizer
from stages.config.template import Template
from stages.data.chat_template import ChatTemplate, Message, reads_clock, template_digests
from stages.models.chat_template import template_digest
from stages.models.identity import chat_template_hash
from stages.models.tokenizer import load_tokenizer, make_tokenizer
from storage.errors import DataError

ASK: list[Message] = [{"role": "user", "content": "a"}]
ROLES = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The three ways in which published templates ask for the date: under a name that an argument may
# set, inside of a macro, and straight away.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}{{ date_string }}:"
) + ROLES
GPT_OSS = "{% macro head() %}{{ strftime_now('%Y-%m-%d') }}:{% endmacro %}{{ head() }}" + ROLES
GRANITE = "{{ strftime_now('%B %d, %Y') }}:" + ROLES


@pytest.fixture
def words(tmp_path: Path) -> Path:
    make_tokenizer(Tokenizer(vocab_size=259), [], tmp_path)
    return tmp_path


def template(words: Path, text: str, **table: Any) -> ChatTemplate:
    (words / "chat_template.jinja").write_text(text)
    return ChatTemplate(load_tokenizer(words), Template(**table))


def render(words: Path, text: str, messages: list[Message] | None = None, **table: Any) -> str:
    return template(words, text, **table).render("p.jsonl, row 3", messages or ASK)


# ---------------------------------------------------------------------------------------------
# Arguments


def test_arguments_reach_the_template(words: Path) -> None:
    text = "{% if enable_thinking is defined and not enable_thinking %}quick:{% endif %}" + ROLES
    assert render(words, text) == "[user]a[assistant]"
    assert render(words, text, kwargs={"enable_thinking": False}) == "quick:[user]a[assistant]"


def test_an_argument_that_no_template_knows_is_named(words: Path) -> None:
    table = {"kwargs": {"enable_thinkin": False, "effort": "low"}, "tools": "t"}
    assert template(words, ROLES + "{{ effort }}", **table).without_effect() == [
        "kwargs.enable_thinkin",
        "tools",
    ]


@pytest.mark.parametrize(
    ("name", "instead"),
    [("messages", "prompts.field"), ("tools", "template.tools"), ("strftime_now", "template.date")],
)
def test_arguments_that_fields_set(name: str, instead: str) -> None:
    with pytest.raises(ValidationError, match=f"`{name}` is set by {instead}"):
        Template(kwargs={name: "x"})


def test_a_file_takes_the_place_of_the_models_template(words: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("\ufeffown:" + ROLES)
    table = Template(file=str(file))
    assert render(words, ROLES, file=str(file)) == "own:[user]a[assistant]"
    with pytest.raises(DataError, match=r"nowhere\.jinja: cannot be read .* `template\.file`"):
        template(words, ROLES, file="nowhere.jinja")
    (words / "chat_template.jinja").write_text("own:" + ROLES)  # as a student has it afterwards
    assert template_digests(Template()) == {}
    assert template_digests(table) == {
        "chat_template": chat_template_hash(words),
        "template": template_digest(words),
    }


def test_what_rendered_is_described(words: Path) -> None:
    made = template(words, ROLES, kwargs={"a": 1}, date="2024-07-26", system="s").described()
    assert len(made.pop("sha256")) == 64
    assert made == {"kwargs": {"a": 1}, "date": "2024-07-26", "system": "s"}
    assert list(template(words, ROLES).described()) == ["sha256"]


# ---------------------------------------------------------------------------------------------
# The clock


@pytest.mark.parametrize(
    ("text", "shown"),
    [(LLAMA, "26 Jul 2024:"), (GPT_OSS, "2024-07-26:"), (GRANITE, "July 26, 2024:")],
)
def test_a_template_that_reads_the_clock_needs_a_date(words: Path, text: str, shown: str) -> None:
    with pytest.raises(DataError, match=r"row 3: the chat template prints today's date .*line 1"):
        render(words, text)
    assert render(words, text, date="2024-07-26") == f"{shown}[user]a[assistant]"
    assert reads_clock(load_tokenizer(words))
    assert reads_clock(load_tokenizer(words), Template(date="2024-07-26"))


def test_an_argument_may_make_the_clock_unnecessary(words: Path) -> None:
    table = Template(kwargs={"date_string": "today"})
    assert render(words, LLAMA, kwargs=table.kwargs) == "today:[user]a[assistant]"
    assert not reads_clock(load_tokenizer(words), table)


def test_a_template_without_a_clock_reads_none(words: Path) -> None:
    for text in (ROLES, ROLES + "{# strftime_now #}"):
        template(words, text)
        assert not reads_clock(load_tokenizer(words))


@pytest.mark.parametrize("date", ["26.07.2024", "yesterday", 3])
def test_a_date_is_a_day(date: object) -> None:
    with pytest.raises(ValidationError, match="date"):
        Template.model_validate({"date": date})


# ---------------------------------------------------------------------------------------------
# Templates that fail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n{{ 1 + messages[0]['content'] }}\n", r"TypeError: unsupported .*, line 2: \{\{ 1 \+"),
        ("\n\n{{ messages[0]['content'].x.y }}", r"has no attribute 'x', line 3: "),
        ("{% if %}", r"Expected an expression, got .*, line 1: \{% if %\}"),
        ("\n{{ raise_exception('no users') }}", r"\(no users, line 2"),
        ("{{ 1 // 0 }}", r"ZeroDivisionError: .*, line 1"),
    ],
)
def test_errors_name_the_line_of_the_template(words: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl, row 3: the chat template rejects.*" + said):
        render(words, text)


def test_several_templates_without_a_default(words: Path) -> None:
    settings = json.loads((words / "tokenizer_config.json").read_text())
    (words / "chat_template.jinja").unlink()
    named = [{"name": "rag", "template": "r"}, {"name": "plain", "template": "p" + ROLES}]
    settings["chat_template"] = named
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    made = ChatTemplate(load_tokenizer(words), Template())
    with pytest.raises(DataError, match=r"several chat templates \(plain, rag\).*template\.file"):
        made.render("p.jsonl, row 3", ASK)
    named[1]["name"] = "default"
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    made = ChatTemplate(load_tokenizer(words), Template())
    assert made.render("", ASK) == "p[user]a[assistant]"


# ---------------------------------------------------------------------------------------------
# Dialogues that end with the assistant


BEGUN: list[Message] = [*ASK, {"role": "assistant", "content": "It is "}]


def test_a_begun_answer_is_refused_or_continued(words: Path) -> None:
    closed = ROLES.replace("{{ m['content'] }}", "{{ m['content'] }}<end>")
    with pytest.raises(DataError, match=r"row 3: the dialogue ends with the assistant's message"):
        render(words, closed, BEGUN)
    continued = render(words, closed, BEGUN, continue_final_message=True)
    assert continued == "[user]a<end>[assistant]It is "
    assert render(words, closed, continue_final_message=True) == "[user]a<end>[assistant]"


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ({"content": ""}, "holds no text"),
        ({"content": "a", "tool_calls": [{"function": {"name": "f"}}]}, "calls a tool"),
    ],
)
def test_an_answer_that_cannot_be_continued(words: Path, last: Message, why: str) -> None:
    messages = [*ASK, {"role": "assistant", **last}]
    with pytest.raises(DataError, match=why):
        render(words, ROLES, messages, continue_final_message=True)


def test_a_dialogue_cannot_be_both_continued_and_cut() -> None:
    with pytest.raises(ValidationError, match="set one of"):
        Template(continue_final_message=True, drop_final_message=True)
