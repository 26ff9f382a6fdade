"""What each token id adds to a text, in bytes: a piece need not be whole UTF-8 by itself."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[bytes]:
    """The bytes of every id, as the tokenizer's decoder joins them.

    Byte-level pieces become the bytes they stand for, `<0x0A>` of a byte fallback one byte, and the
    mark of a word's beginning (U+2581) a space. Control tokens are given by their name, an id that
    the tokenizer lacks as nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    state = b"" if decoder is None else bytes(decoder.__getstate__())
    byte_level, marked = b'"ByteLevel"' in state, "\u2581".encode() in state
    fallback = b'"ByteFallback"' in state
    added = tokenizer.added_tokens_decoder
    out: list[bytes] = []
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    for number, piece in zip(ids, pieces, strict=True):
        if number in added:
            out.append(str(added[number].content).encode())
        elif piece is None:
            out.append(b"")
        elif byte_level and all(letter in _BYTES for letter in piece):
            out.append(bytes(_BYTES[letter] for letter in piece))
        elif fallback and (found := _BYTE.fullmatch(piece)):
            out.append(bytes([int(found[1], 16)]))
        else:
            out.append((piece.replace("\u2581", " ") if marked else piece).encode())
    return out


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_letters()
