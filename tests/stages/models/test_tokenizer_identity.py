"""Tokenizers by meaning: what is the same however it is written, and what is not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages.models.chat_template import same_template
from stages.models.identity import (
    check_tokenizer,
    described_tokenizer,
    recorded_tokenizer,
    tokenizer_hash,
    tokenizer_of,
)
from stages.models.tokenizer import load_tokenizer
from stages.models.tokenizer_comparison import Comparison, Compatible, Different, Same, compare
from stages.models.tokenizer_identity import TokenizerIdentity
from storage.errors import DataError

SAVED = Path(__file__).parent / "saved"
COPIES = sorted(
    path.relative_to(SAVED).as_posix()
    for path in SAVED.glob("*/*")
    if path.is_dir() and path.name != "original"
)
MORE = {"pad": 1, "chat": 4}
"""Tokens that a copy has added."""

Edit = Callable[[dict[str, Any]], object]


def original(copy: str) -> Path:
    return SAVED / copy.split("/")[0] / "original"


def recorded(directory: Path) -> TokenizerIdentity:
    """What a manifest keeps of a tokenizer: no files."""
    stored = json.loads(json.dumps(described_tokenizer(directory)))
    return recorded_tokenizer(stored)


def edited(root: Path, family: str, edit: Edit) -> Path:
    """The original with a change of its `tokenizer.json`."""
    source, target = SAVED / family / "original", root / "edited"
    target.mkdir()
    content = json.loads((source / "tokenizer.json").read_text())
    edit(content)
    (target / "tokenizer.json").write_text(json.dumps(content))
    (target / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    return target


def both_ways(a: Path, b: Path) -> list[Comparison]:
    """By files, and by what manifests keep, in both orders."""
    files, kept = (tokenizer_of(a), tokenizer_of(b)), (recorded(a), recorded(b))
    return [compare(*files), compare(*files[::-1]), compare(*kept), compare(*kept[::-1])]


@pytest.mark.parametrize("copy", COPIES)
def test_what_other_versions_and_tools_save_is_accepted(copy: str) -> None:
    teacher, student = original(copy), SAVED / copy
    more = MORE.get(copy.split("/")[1].split("-")[0], 0)
    for found in both_ways(teacher, student):
        assert not isinstance(found, Different), found
        if more:
            assert isinstance(found, Compatible)
            assert f"{more} more id" in found.note
    assert recorded(student).ids == (recorded(teacher).ids or 0) + more
    assert same_template(described_tokenizer(teacher), described_tokenizer(student))


def test_most_copies_are_not_merely_compatible() -> None:
    plain = [copy for copy in COPIES if copy.split("/")[1].split("-")[0] not in MORE]
    rewritten = {"llama/saved-5.19", "llama/trl-1.16", "llama/peft-0.21"}
    for copy in plain:
        found = compare(recorded(original(copy)), recorded(SAVED / copy))
        assert isinstance(found, Compatible if copy in rewritten else Same), copy


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(COPIES))
def test_texts_are_encoded_alike_whenever_tokenizers_are_the_same(text: str, copy: str) -> None:
    a, b = original(copy), SAVED / copy
    if isinstance(compare(tokenizer_of(a), tokenizer_of(b)), Same):
        first, second = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (a, b))
        ids = first.encode(text, add_special_tokens=False).ids
        assert second.encode(text, add_special_tokens=False).ids == ids
        assert second.decode(ids) == first.decode(ids)
    loaded = [load_tokenizer(one) for one in (a, b)]
    made = [one(text, add_special_tokens=False)["input_ids"] for one in loaded]
    assert made[0] == made[1]


def swapped(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def reversed_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"].reverse()


def other_split(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "."


def no_decoder(content: dict[str, Any]) -> None:
    content["decoder"] = None


def lost_token(content: dict[str, Any]) -> None:
    content["added_tokens"] = content["added_tokens"][:-2]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (swapped, r'id \d+ is "a" in one and "b" in the other'),
        (reversed_merges, r'merge 0 is \["t", "h"\] in one and \[.*\] in the other'),
        (other_split, "pre-tokenizer differ: .* is .* to one and .* to the other"),
        (no_decoder, "decoder differ"),
    ],
)
def test_what_encodes_or_decodes_differently_is_refused_with_an_example(
    tmp_path: Path, edit: Edit, reason: str
) -> None:
    other, first = edited(tmp_path, "qwen", edit), SAVED / "qwen" / "original"
    settings_file = other / "tokenizer_config.json"  # Qwen2Tokenizer would repair some of it
    settings_file.write_text(
        settings_file.read_text().replace("Qwen2Tokenizer", "PreTrainedTokenizerFast")
    )
    for found in both_ways(first, other):
        assert isinstance(found, Different)
    with pytest.raises(DataError, match=reason) as caught:
        check_tokenizer(tokenizer_of(first), tokenizer_of(other), "the set", "the model")
    for directory in (first, other):
        assert tokenizer_hash(directory)[:12] in str(caught.value)


def test_fewer_ids_are_fine_if_the_others_agree(tmp_path: Path) -> None:
    other = edited(tmp_path, "qwen", lost_token)
    for found in both_ways(SAVED / "qwen" / "original", other):
        assert isinstance(found, Compatible)
        assert "2 more ids, from 303 on" in found.note


def test_an_added_token_that_is_plain_text_to_the_other_is_refused(tmp_path: Path) -> None:
    def plain(content: dict[str, Any]) -> None:
        content["added_tokens"].pop(2)

    found = compare(
        tokenizer_of(SAVED / "llama" / "original"), tokenizer_of(edited(tmp_path, "llama", plain))
    )
    assert isinstance(found, Different)
    assert '"</s>"' in found.reason
    assert "added token in the first alone" in found.reason


def test_a_begin_token_added_around_texts_is_a_note(tmp_path: Path) -> None:
    def bare(content: dict[str, Any]) -> None:
        content["post_processor"] = None

    other = edited(tmp_path, "llama", bare)
    found = compare(tokenizer_of(SAVED / "llama" / "original"), tokenizer_of(other))
    assert isinstance(found, Compatible)
    assert "[1] ... [] in one and [] ... [] in the other" in found.note


def test_many_more_ids_need_the_files(tmp_path: Path) -> None:
    def enlarged(content: dict[str, Any]) -> None:
        first = max(content["model"]["vocab"].values()) + 6
        content["added_tokens"] += [
            {**content["added_tokens"][-1], "id": first + i, "content": f"<extra_{i}>"}
            for i in range(200)
        ]

    small, large = SAVED / "qwen" / "original", edited(tmp_path, "qwen", enlarged)
    assert isinstance(compare(tokenizer_of(small), tokenizer_of(large)), Compatible)
    found = compare(recorded(small), recorded(large))
    assert isinstance(found, Different)
    assert "their digests do not tell" in found.reason


def test_sets_from_before_are_compared_by_their_hash() -> None:
    known = tokenizer_of(SAVED / "qwen" / "original")
    old = TokenizerIdentity.of_json(None, known.hash)
    assert isinstance(compare(old, known), Same)
    other = tokenizer_of(SAVED / "qwen" / "pad-4.46")
    assert isinstance(compare(old, replace(other, directory=None)), Different)


def test_a_tokenizer_without_tokenizer_json_is_loaded_to_be_compared(tmp_path: Path) -> None:
    """As `vocab.json` and `merges.txt`, which older repositories have alone."""
    source = SAVED / "qwen" / "original"
    content = json.loads((source / "tokenizer.json").read_text())
    vocabulary = dict(content["model"]["vocab"])
    vocabulary |= {one["content"]: one["id"] for one in content["added_tokens"]}
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(content["model"]["merges"]) + "\n")
    settings_of = json.loads((source / "tokenizer_config.json").read_text())
    settings_of["added_tokens_decoder"] = {
        str(one["id"]): {name: one[name] for name in one if name != "id"}
        for one in content["added_tokens"]
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_of))
    found = compare(tokenizer_of(source), tokenizer_of(tmp_path))
    assert not isinstance(found, Different), found


def test_a_template_is_its_text_wherever_it_is_kept(tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.content }}{% endfor %}\n"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
    places = {"file": None, "field": text, "list": named, "crlf": text.replace("\n", "\r\n")}
    described: list[dict[str, Any]] = []
    for name, value in places.items():
        directory = tmp_path / name
        directory.mkdir()
        source = SAVED / "qwen" / "original"
        (directory / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        settings_of = json.loads((source / "tokenizer_config.json").read_text())
        settings_of.pop("chat_template")
        if value is None:
            (directory / "chat_template.jinja").write_text(text)
        else:
            settings_of["chat_template"] = value
        (directory / "tokenizer_config.json").write_text(json.dumps(settings_of))
        described.append(described_tokenizer(directory) | {"directory": directory})
    assert all(same_template(described[0], other) for other in described)
    old = {"chat_template": described[1]["chat_template"]}  # from before there was a text digest
    assert same_template(old, described[0])
    assert not same_template(old, {"chat_template": ""})
