"""Pieces in bytes: joined, they are the text that the tokenizer decodes."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from stages.config.corpus import Tokenizer as TokenizerTable
from stages.inspection.pieces import token_bytes
from stages.models.tokenizer import load_tokenizer, make_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("bytes")
    make_tokenizer(TokenizerTable(kind="byte_bpe", vocab_size=300), ["a cat, a hat"], directory)
    found = load_tokenizer(directory)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


@pytest.mark.parametrize("text", ["a cat", " two\n\tlines", "naïve 猫 🙂", "</script>\x00\u202e"])
def test_bytes_join_to_the_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False)
    assert b"".join(token_bytes(byte_level, ids)) == text.encode()


def test_a_piece_need_not_be_whole_utf8(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level.encode("猫", add_special_tokens=False)
    assert token_bytes(byte_level, ids) == [b"\xe7", b"\x8c", b"\xab"]


def test_control_tokens_have_their_names_and_unknown_ids_nothing(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    assert token_bytes(byte_level, [2, 10**6]) == [b"<eos>", b""]


def test_a_byte_fallback_is_one_byte_and_a_marked_word_has_its_space() -> None:
    words = {"<unk>": 0, "<0xE7>": 1, "\u2581cat": 2, "s": 3}
    made = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    found = token_bytes(PreTrainedTokenizerFast(tokenizer_object=made), [1, 2, 3])
    assert found == [b"\xe7", b" cat", b"s"]
