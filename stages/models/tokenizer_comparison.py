"""Whether two tokenizers are the same: by what they do, not by how their files are written."""

import json
from dataclasses import dataclass

from stages.models.tokenizer_identity import (
    PROBES,
    SECTIONS,
    ParsedTokenizer,
    TokenizerIdentity,
    loaded_probes,
    parsed_tokenizer,
    probe,
    ranked,
)


@dataclass(frozen=True)
class Same:
    """Both encode every text to the same ids and decode them alike."""


@dataclass(frozen=True)
class Compatible:
    """Ids of one may be read by the other."""

    note: str
    """What differs all the same, as a clause."""


@dataclass(frozen=True)
class Different:
    """Ids of one mean something else to the other."""

    reason: str
    """What differs, as a clause."""


Comparison = Same | Compatible | Different


def compare(a: TokenizerIdentity, b: TokenizerIdentity) -> Comparison:
    """Whether ids made with `a` mean the same to `b`.

    Args:
        a: Of the data, or of the teacher.
        b: Of the model that is to read them.

    Returns:
        `Same`; `Compatible` where one only has further ids above those of the other, matches added
        tokens otherwise, puts other ids around a text, or describes the same behaviour in another
        way; `Different` with what differs, an example included where the files of both are there.
    """
    if a.hash and a.hash == b.hash:
        return Same() if a.ids is None or b.ids is None else _accepted(a, b, [])
    found = _by_digests(a, b)
    if a.directory is None or b.directory is None or not isinstance(found, Different | _Unknown):
        return Different(found.reason) if isinstance(found, _Unknown) else found
    ours, theirs = parsed_tokenizer(a.directory, a.hash), parsed_tokenizer(b.directory, b.hash)
    if ours is None or theirs is None:
        return Different(found.reason)
    return _by_content(ours, theirs)


@dataclass(frozen=True)
class _Unknown:
    """The digests do not tell."""

    reason: str


def _by_digests(a: TokenizerIdentity, b: TokenizerIdentity) -> Comparison | _Unknown:
    if a.ids is None or b.ids is None:
        return _Unknown("one of them is known by the digest of its files alone")
    shared = min(a.ids, b.ids)
    ours, theirs = a.prefix(shared), b.prefix(shared)
    if ours is None or theirs is None:
        return _Unknown(
            f"they have {a.ids:,} and {b.ids:,} ids, and their digests do not tell whether the "
            f"first {shared:,} agree"
        )
    if ours != theirs:
        return Different(f"their vocabularies differ below id {shared}")
    if a.merges != b.merges:
        return Different("their merges or scores differ")
    notes: list[str] = []
    rewritten = [name for name in SECTIONS if a.sections.get(name) != b.sections.get(name)]
    if rewritten and a.probes != b.probes:
        if not _loaded_alike(a, b):
            return Different(f"{_named(rewritten)} differ, and so does what texts are encoded to")
        notes.append(_LOADED_ALIKE.format(_named(rewritten)))
    elif rewritten:
        notes.append(_WRITTEN.format(_named(rewritten)))
    return _accepted(a, b, notes)


def _accepted(a: TokenizerIdentity, b: TokenizerIdentity, notes: list[str]) -> Same | Compatible:
    """What else differs of tokenizers that share their ids."""
    assert a.ids is not None and b.ids is not None  # noqa: PT018
    if a.ids != b.ids:
        more, least = abs(a.ids - b.ids), min(a.ids, b.ids)
        which = "the second" if b.ids > a.ids else "the first"
        notes.append(f"{which} has {more:,} more id{'s' * (more > 1)}, from {least} on")
    elif a.added != b.added:
        notes.append("they match added tokens otherwise (special, lstrip, rstrip, ...)")
    if a.loaded and b.loaded and a.loaded != b.loaded:
        notes.append(
            "transformers makes them encode texts differently all the same (see `tokenizer_class` "
            "in tokenizer_config.json)"
        )
    if (a.begin, a.end) != (b.begin, b.end):
        notes.append(
            f"the ids put around a text are {_around(a)} in one and {_around(b)} in the other"
        )
    return Compatible("; ".join(notes)) if notes else Same()


def _loaded_alike(a: TokenizerIdentity, b: TokenizerIdentity) -> bool:
    """Whether transformers is known to load both so that they encode the test texts alike."""
    first, second = (
        one.loaded or (loaded_probes(one.directory) if one.directory is not None else "")
        for one in (a, b)
    )
    return bool(first) and first == second


def _named(sections: list[str]) -> str:
    names = {"model": "options of the model", "pre_tokenizer": "pre-tokenizer"}
    return " and ".join(names.get(name, name) for name in sections)


_WRITTEN = "{} written in another way, which encodes " + f"{len(PROBES)} test texts alike"
_LOADED_ALIKE = (
    "{} written in another way, but the installed transformers loads both to encode "
    f"{len(PROBES)} test texts alike"
)


def _around(one: TokenizerIdentity) -> str:
    return f"{list(one.begin)} ... {list(one.end)}"


def _by_content(a: ParsedTokenizer, b: ParsedTokenizer) -> Comparison:
    """As `_by_digests`, decided in every case, with an example of what differs."""
    shared = min(a.ids, b.ids)
    for index in range(shared):
        if a.tokens.get(index) != b.tokens.get(index):
            return Different(
                f"id {index} is {_shown(a, index)} in one and {_shown(b, index)} in the other"
            )
        if (index in a.added) != (index in b.added):
            where = "the first" if index in a.added else "the second"
            return Different(
                f"id {index}, {_shown(a, index)}, is an added token in {where} alone, so that text "
                "which holds it is encoded differently"
            )
    notes: list[str] = []
    ours, theirs = (
        list(ranked(a.content["model"], a.added)),
        list(ranked(b.content["model"], b.added)),
    )
    if ours != theirs:
        more = b if b.ids > a.ids else a
        common = min(len(ours), len(theirs))
        if (
            a.ids == b.ids
            or ours[:common] != theirs[:common]
            or len(ours) == len(theirs)
            or ((len(theirs) > len(ours)) != (more is b))
        ):
            at = next((i for i in range(common) if ours[i] != theirs[i]), common)
            return Different(
                f"merge {at} is {_at(ours, at)} in one and {_at(theirs, at)} in the other"
            )
        notes.append("its merges go on where those of the other end")
    rewritten = [name for name in SECTIONS if a.section(name) != b.section(name)]
    if rewritten and a.identity.probes != b.identity.probes:
        if not _loaded_alike(a.identity, b.identity):
            return Different(f"{_named(rewritten)} differ: {_example(a, b)}")
        notes.append(_LOADED_ALIKE.format(_named(rewritten)))
    elif rewritten:
        notes.append(_WRITTEN.format(_named(rewritten)))
    return _accepted(a.identity, b.identity, notes)


def _example(a: ParsedTokenizer, b: ParsedTokenizer) -> str:
    """The first text that two tokenizers treat differently."""
    for text in PROBES:
        (ours, back), (theirs, other) = probe(a.tokenizer, text), probe(b.tokenizer, text)
        if ours != theirs:
            return f"{text[:32]!r} is {_few(ours)} to one and {_few(theirs)} to the other"
        if back != other:
            return f"{_few(ours)} is {_cut(back)} to one and {_cut(other)} to the other"
    return "texts are encoded differently"


def _shown(one: ParsedTokenizer, index: int) -> str:
    token = one.tokens.get(index)
    return "missing" if token is None else json.dumps(token, ensure_ascii=False)


def _at(ranked: list[object], index: int) -> str:
    return json.dumps(ranked[index], ensure_ascii=False) if index < len(ranked) else "missing"


def _cut(text: str | None) -> str:
    return repr(text and text[:32])


def _few(ids: list[int] | None) -> str:
    if ids is None:
        return "no ids"
    return str(ids[:12])[:-1] + (", ...]" if len(ids) > 12 else "]")
