"""Tokenizers made here are ordinary Hugging Face directories."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stages.config.corpus import Tokenizer
from stages.models.identity import chat_template_hash, tokenizer_hash
from stages.models.tokenizer import copy_tokenizer, load_tokenizer, make_tokenizer
from storage.errors import ConfigError, DataError

TEXT = ["the cat sat on the mat\n", "naïve café, the cat \t sat\n"] * 20


@pytest.mark.parametrize("kind", ["characters", "byte_bpe"])
def test_text_survives_encoding(tmp_path: Path, kind: str) -> None:
    make_tokenizer(Tokenizer.model_validate({"kind": kind, "vocab_size": 300}), TEXT, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXT[:2], " the  mat ", "\n\n"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    ended = [*tokenizer("cat")["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == "cat"


def test_special_tokens_come_first(tmp_path: Path) -> None:
    make_tokenizer(Tokenizer(kind="characters"), ["ba"], tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4}
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (0, 1, 2)


def test_the_chat_template_is_bos_and_text(tmp_path: Path) -> None:
    make_tokenizer(Tokenizer(kind="characters"), ["ab"], tmp_path)
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "a"}]
    tokenizer = load_tokenizer(tmp_path)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<bos>aba"
    assert tokenizer("<bos>aba", add_special_tokens=False)["input_ids"] == [1, 3, 4, 3]


def test_byte_bpe_encodes_what_it_never_saw(tmp_path: Path) -> None:
    make_tokenizer(Tokenizer(vocab_size=270), TEXT, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 270
    text = "日本 \U0001f600 \x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_ids_beyond_17_bits(tmp_path: Path) -> None:
    """More characters than 2**17: ids of real vocabularies do not fit into 17 bits either."""
    letters = "".join(chr(code) for code in range(0x20000, 0x20000 + 140_000) if code < 0x110000)
    make_tokenizer(Tokenizer(kind="characters"), [letters], tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 140_003
    assert tokenizer(letters[-1])["input_ids"] == [140_002]
    assert tokenizer.decode([140_002]) == letters[-1]


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size = 258: .* at least 259"):
        make_tokenizer(Tokenizer(vocab_size=258), TEXT, tmp_path)


def test_a_tokenizer_can_be_taken_from_a_directory(tmp_path: Path) -> None:
    make_tokenizer(Tokenizer(vocab_size=270), TEXT, tmp_path / "a")
    make_tokenizer(Tokenizer(path=str(tmp_path / "a")), [], tmp_path / "b")
    assert tokenizer_hash(tmp_path / "a") == tokenizer_hash(tmp_path / "b")
    assert chat_template_hash(tmp_path / "a") == chat_template_hash(tmp_path / "b") != ""


def test_a_copy_is_byte_for_byte_and_stays(tmp_path: Path) -> None:
    make_tokenizer(Tokenizer(vocab_size=270), TEXT, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    copies = copy_tokenizer(tmp_path / "a", tmp_path / "b")
    assert {path.name for path in copies} == {path.name for path in (tmp_path / "b").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in copies}
    assert not (tmp_path / "b" / "model.safetensors").exists()
    for path in copies:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert copy_tokenizer(tmp_path / "a", tmp_path / "b") == copies


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_no_tokenizer_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="tokenizer"):
        load_tokenizer(tmp_path)
