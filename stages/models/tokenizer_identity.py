"""What a tokenizer does, in a few digests, however its files are written.

Token ids of one model may be read by another when both tokenizers give each id the same meaning and
encode text alike. Files say little about that: versions of `tokenizers` write merges as strings or
as pairs, leave defaults out or spell them out, and every `save_pretrained` of another version
orders its fields anew. So a tokenizer is parsed and described by a few digests over its meaning,
small enough to travel in manifests and footers:

    ids           one above the highest id
    vocabulary    over (id, token, whether it is an added token), in the order of ids
    below         the same over the first ids - 1, ids - 2, ... ids: whether another tokenizer only
                  adds ids above can be told without files
    merges        merges of BPE in their order, scores of Unigram
    sections      normalizer, pre-tokenizer, decoder and options of the model, one digest each
    added         how added tokens are matched: `special`, `lstrip`, ...
    probes        what a fixed list of texts is encoded to and decoded from
    loaded        the same through the class of transformers that loads it here, which may rebuild
                  normalizer and pre-tokenizer in its own way
    begin, end    ids that the post-processor puts around a text

`stages.models.tokenizer_comparison` compares two. Keys do not depend on any of this: they hold the
digest over the files (`hash`).

Importing this module imports neither `tokenizers` nor transformers.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files.place import Place

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

_BELOW = 64
"""Prefixes of the vocabulary that have a digest of their own."""
_DIGITS = 12
"""Hexadecimal digits of a digest; by chance two differing tokenizers share one in 2^48."""
SECTIONS = ("normalizer", "pre_tokenizer", "decoder", "model")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

PROBES = (
    "Hello, world! It's 2024; we'll see you at 10:45, won't we? I'D SAY SO.",
    "  two spaces,\ta tab,\n\n a blank line \r\nand   trailing   ",
    "def f(x):\n    return {'a': [1, 2.5e-10], \"b\": x ** 2}  # 100%\n\n\n",
    "1234567890 12 123 1,234,567.89 007 3.14159 $5 #1 50% x=y+z",
    "naïve café Ångström ß ŒUVRE İstanbul ﬁ ½ ² ™",
    "e\u0301 a\u030a o\u0308 \u1e9b\u0323 \u212b \uff21\uff22 \u00a0\u2003\u200b\ufeff\u00ad",
    "Привет, мир! Ελληνικά שלום مرحبا हिन्दी ไทย",
    "한국어 日本語のテキスト 中文\uff0c标点\u3002 \U0002070e",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \U0001d518 ☃\ufe0f",
    "https://example.org/a_b?c=d&e=%20f <div class='x'>&nbsp;</div> [1] (2) {3} a@b.c",
    "snake_case camelCase SCREAMING don't 'quoted' \"double\" `code` ~~x~~ -- --- ... \u2026",
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i \\boxed{42} ∫√≤≠∞ ⟨x|y⟩",
    " leading", "trailing ", " ", "  ", "\n", "a", "A", ".", "\x00\x1b\x7f",
    "\u2581x", "\u0120x", "##x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ababababab",
    "abcdefghij jihgfedcba a b c d e f g h i j",
)  # fmt: skip
"""Texts that differing normalizers, pre-tokenizers and decoders treat differently."""


@dataclass(frozen=True)
class TokenizerIdentity:
    """What a tokenizer does, in digests."""

    hash: str
    """sha256 over what its files say (`stages.models.identity.tokenizer_hash`)."""
    ids: int | None = None
    """One above the highest id. None where nothing but `hash` is known; the rest is empty then."""
    vocabulary: str = ""
    below: str = ""
    """Digests of the vocabulary below ids - 1, ids - 2, ..., `_DIGITS` digits each."""
    merges: str = ""
    sections: Mapping[str, str] = field(default_factory=dict[str, str])
    added: str = ""
    probes: str = ""
    loaded: str = ""
    """Empty where it was not loaded."""
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    directory: Place | None = field(default=None, compare=False)
    """Where its files are; they tell what two tokenizers differ in, and decide what digests cannot.
    Not part of the identity."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary of what is known beside `hash`; empty if nothing is."""
        if self.ids is None:
            return {}
        left_out = ("hash", "directory")
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        shown = {name: value for name, value in values.items() if name not in left_out}
        return shown | {
            "sections": dict(self.sections),
            "begin": list(self.begin),
            "end": list(self.end),
        }

    @classmethod
    def of_json(
        cls, value: Mapping[str, Any] | None, hash: str, directory: Place | None = None
    ) -> "TokenizerIdentity":
        """The inverse of `to_json`; of sets made before there were fingerprints, `hash` alone."""
        if not value or value.get("ids") is None:
            return cls(hash, directory=directory)
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        known |= {name: tuple(value.get(name, ())) for name in ("begin", "end")}
        return cls(**known | {"hash": hash, "directory": directory})

    def prefix(self, ids: int) -> str | None:
        """Digest of the vocabulary below `ids`; None where there is none."""
        if self.ids is None or ids > self.ids:
            return None
        if ids == self.ids:
            return self.vocabulary
        start = (self.ids - ids - 1) * _DIGITS
        return self.below[start : start + _DIGITS] or None


def identify_tokenizer(directory: Place, hash: str) -> TokenizerIdentity:
    """What the tokenizer in `directory` does.

    Reads `tokenizer.json`. A tokenizer without one is known by `hash` until a comparison needs
    more; it is loaded through transformers then.

    Args:
        directory: Of the tokenizer.
        hash: `stages.models.identity.tokenizer_hash` of it.
    """
    fast = directory / "tokenizer.json"
    parsed = _read(directory, hash) if fast.exists() else None
    if parsed is None:
        return TokenizerIdentity(hash, directory=directory)
    return TokenizerIdentity(**vars(parsed.identity) | {"hash": hash, "directory": directory})


@dataclass(frozen=True)
class ParsedTokenizer:
    """A tokenizer as the library reads it, defaults filled in."""

    tokenizer: "Tokenizer"
    tokens: dict[int, str]
    """By id, added tokens included."""
    content: dict[str, Any]
    """`tokenizer.json` as the library writes it."""
    added: dict[int, dict[str, Any]]
    """Added tokens by id."""
    identity: TokenizerIdentity

    @property
    def ids(self) -> int:
        """One above the highest id."""
        return max(self.tokens, default=-1) + 1

    def section(self, name: str) -> object:
        """One part of the pipeline; of the model its options, without vocabulary and merges."""
        section = self.content.get(name)
        if name != "model" or not isinstance(section, dict):
            return section
        return {  # None, "" and False all stand for the default
            key: value for key, value in section.items() if value and key not in ("vocab", "merges")
        }


@lru_cache(maxsize=4)
def _read(directory: Place, hash: str) -> ParsedTokenizer | None:
    """`tokenizer.json` of `directory`, whose hash is `hash`; None if the library cannot read it."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str((directory / "tokenizer.json").read_text())
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        log.debug("%s: tokenizer.json cannot be parsed: %s", directory, error)
        return None
    return _parse(tokenizer, directory)


def loaded_probes(directory: Place) -> str:
    """Digest of what transformers makes of the test texts; empty if it cannot load the tokenizer.

    Imports transformers.
    """
    loaded = _load(directory)
    if loaded is None:
        return ""
    made: list[object] = []
    for text in PROBES:
        try:
            ids = loaded(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # noqa: BLE001 - as in `_encoded`
            log.debug("%r: cannot be encoded: %s", text, error)
            made.append(None)
            continue
        made.append([ids, loaded.decode(ids, clean_up_tokenization_spaces=False)])
    return _digest(made)


def parsed_tokenizer(directory: Place, hash: str) -> ParsedTokenizer | None:
    """The tokenizer in `directory`, through transformers where there is no `tokenizer.json`."""
    if (directory / "tokenizer.json").exists():
        return _read(directory, hash)
    backend = getattr(_load(directory), "backend_tokenizer", None)
    return None if backend is None else _parse(type(backend).from_str(backend.to_str()), directory)


def _load(directory: Place) -> Any:
    """The tokenizer in `directory` as transformers loads it, or None."""
    from stages.models.tokenizer import load_tokenizer
    from storage.copies import local_copy
    from storage.errors import DataError

    try:
        return load_tokenizer(
            directory
            if isinstance(directory, Path)
            else local_copy(directory.parent, directory.name)
        )
    except DataError as error:
        log.warning("%s", error)
        return None


def _parse(tokenizer: "Tokenizer", directory: Place) -> ParsedTokenizer:
    """Everything about a tokenizer; padding and truncation are switched off in it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    content = json.loads(tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {int(one["id"]): one for one in content.get("added_tokens") or ()}
    vocabulary, below = _vocabulary(tokens, added)
    parsed = ParsedTokenizer(tokenizer, tokens, content, added, TokenizerIdentity(""))
    begin, end = _surrounding(tokenizer)
    identity = TokenizerIdentity(
        hash="",
        ids=parsed.ids,
        vocabulary=vocabulary,
        below=below,
        merges=_digest(list(ranked(content["model"], added))),
        sections={name: _digest(parsed.section(name)) for name in SECTIONS},
        added=_digest([[index, *_flags(one)] for index, one in sorted(added.items())]),
        probes=_digest([probe(tokenizer, text) for text in PROBES]),
        begin=begin,
        end=end,
        directory=directory,
    )
    return ParsedTokenizer(tokenizer, tokens, content, added, identity)


def _vocabulary(tokens: Mapping[int, str], added: Mapping[int, object]) -> tuple[str, str]:
    """Digest of the vocabulary, and those of its prefixes, the longest first."""
    ids = max(tokens, default=-1) + 1
    running = hashlib.sha256()
    below: list[str] = []
    for index in range(ids):
        if index >= ids - _BELOW:
            below.append(running.hexdigest()[:_DIGITS])
        token = tokens.get(index)
        if token is not None:
            mark = "+" if index in added else ""
            running.update(f"{index}{mark} {len(token)} {token}".encode())
    return running.hexdigest()[:_DIGITS], "".join(reversed(below))


def ranked(model: Mapping[str, Any], added: Mapping[int, Any]) -> Iterator[object]:
    """Merges in their order; pieces and scores of Unigram, which have no merges."""
    if model.get("type") == "Unigram":
        matched = {one["content"] for one in added.values() if not one["single_word"]}
        yield from (pair for pair in model["vocab"] if pair[0] not in matched)
    yield from model.get("merges") or ()


def _flags(one: Mapping[str, Any]) -> list[bool]:
    return [bool(one.get(name)) for name in _FLAGS]


def probe(tokenizer: "Tokenizer", text: str) -> tuple[list[int] | None, str | None]:
    """Ids of a text, and the text they give; None where it cannot be encoded."""
    ids = _encoded(tokenizer, text)
    return ids, None if ids is None else tokenizer.decode(ids, skip_special_tokens=False)


def _encoded(tokenizer: "Tokenizer", text: str, *, whole: bool = False) -> list[int] | None:
    """Ids of a text, with those the post-processor adds if `whole`."""
    try:
        return tokenizer.encode(text, add_special_tokens=whole).ids
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type
        log.debug("%r: cannot be encoded: %s", text, error)
        return None


def _surrounding(tokenizer: "Tokenizer") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts before and after a text."""
    inner = _encoded(tokenizer, "a") or []
    outer = _encoded(tokenizer, "a" if inner else "", whole=True) or []
    length = len(inner)
    at = next((i for i in range(len(outer) + 1) if outer[i : i + length] == inner), 0)
    return tuple(outer[:at]), tuple(outer[at + length :])


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
