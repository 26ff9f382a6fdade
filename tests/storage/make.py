"""Rows and sets for tests, at random or by Hypothesis; valid unless a test spoils them.

Apart from `tests.world`, since nothing here needs a model: the format allows any numbers, storage's
tests want them at their extremes, and they run where torch is not installed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from storage.files.place import Place
from storage.manifest import Json, Manifest, SetIdentity, SetMeta, read_manifest, write_manifest
from storage.packed.frequencies import write_ranks
from storage.rows import Rows
from storage.schema import column_names
from storage.sets import commit_parts
from storage.shard import PartWriter, read_rows

KEY = "0123456789abcdef" * 4
DRAWS = 8
RECORDS: dict[str, dict[str, object]] = {
    "sampled": {"kind": "sampled"},
    "counts": {"kind": "counts"},
    "head_tail": {"kind": "head_tail"},
    "head_tail_floor": {"kind": "head_tail", "tail_floor": 0.4},
    "top_k": {"kind": "top_k", "k": 5, "tau": None},
    "counts_copies": {"kind": "counts", "copies": 3, "logp": True},
    "head_tail_copies": {"kind": "head_tail", "copies": 2, "logp": True, "loss_temperature": 2.0},
}
"""Record parameters by name of the case."""
KINDS = ("sequences", *RECORDS)
"""Plain sequences and every kind of records."""
PACKABLE = tuple(kind for kind in RECORDS if kind != "sampled")
"""Kinds with entries."""


def meta_of(kind: str, vocab_size: int = 1 << 20, candidates: int = 2, **record: object) -> SetMeta:
    """Description of a set of one of `KINDS`, some record parameters replaced."""
    common = {"draws": DRAWS, "tau": 0.05, "temperature": 1.0}
    plain = kind == "sequences"
    return SetMeta(
        stage="rollouts" if plain else "teacher-logits",
        key=KEY,
        kind="sequences" if plain else "records",
        vocab_size=vocab_size,
        candidates=candidates,
        record=None if plain else common | RECORDS[kind] | record,
        tokenizer={"hash": "t" * 8},
        teacher={"path": "teacher", "weights": "w" * 8},
    )


def packed(meta: SetMeta, directory: Path, rows: Rows) -> SetMeta:
    """The packed layout of a set in `directory`, with ranks from the tokens of `rows`."""
    ranks = write_ranks(directory, lambda: np.bincount(rows["tok"], minlength=meta.vocab_size))
    return replace(meta, layout="packed", ranks=ranks)


def sequence(
    rng: np.random.Generator,
    meta: SetMeta,
    seq_id: int,
    prompt: int = 3,
    positions: int = 5,
    reference: bool = True,
) -> dict[str, Any]:
    """One random sequence as a mapping, as `Rows.from_sequences` takes it."""
    top = meta.vocab_size
    out: dict[str, Any] = {
        "seq_id": seq_id,
        "prompt_id": seq_id // 2,
        "sample": seq_id % 2,
        "finish": int(rng.integers(2)),
        "outcome": int(rng.integers(-1, 2)),
        "prompt": rng.integers(0, top, prompt),
        "tok": frequent(rng, meta, positions),
    }
    if reference:
        out["ref_lp"] = -rng.exponential(3.0, positions)
    if meta.kind == "sequences":
        if meta.candidates:
            out["cand"] = rng.integers(0, top, positions * meta.candidates)
        return out
    out |= {"lp": -rng.exponential(3.0, positions), "ent": rng.exponential(1.0, positions)}
    if meta.record_params.get("loss_temperature") is not None:
        out["lz"] = rng.exponential(1.0, positions)
    return out | _record(rng, meta, positions)


def _record(rng: np.random.Generator, meta: SetMeta, positions: int) -> dict[str, Any]:
    if meta.record_kind is None or not meta.record_kind.entries:
        return {}
    one = _counts if meta.record_kind.counts else _head_and_tail
    made = [one(rng, meta) for _ in range(positions + 1)]  # the last one gives names and types only
    return {
        name: np.concatenate([values[:0], *(each[name] for each in made[:-1])])
        for name, values in made[-1].items()
        if name in column_names(meta.kind, meta.record, 0, reference=False)
    }


def frequent(rng: np.random.Generator, meta: SetMeta, count: int) -> Any:
    """Ids, some of which are much more frequent than others; small ones need not be frequent."""
    rank = np.exp(rng.random(count) * np.log(meta.vocab_size)).astype(np.int64)
    return rank * 7919 % meta.vocab_size


def _counts(rng: np.random.Generator, meta: SetMeta) -> dict[str, Any]:
    """One position: ids by descending count, then ascending, of each draw."""
    ids: list[Any] = []
    counts: list[Any] = []
    for _ in range(meta.copies):
        drawn = frequent(rng, meta, int(meta.record_params["draws"]))
        if rng.random() < 0.5:  # a position that repeats itself
            drawn[rng.random(len(drawn)) < rng.random()] = drawn[0]
        found, times = np.unique(drawn, return_counts=True)
        order = np.lexsort((found, -times))
        ids.append(found[order])
        counts.append(times[order])
    nu = np.array([len(each) for each in ids])
    tlp = -rng.exponential(2.0, nu.sum())
    return {"nu": nu, "ids": np.concatenate(ids), "cnt": np.concatenate(counts), "tlp": tlp}


def _head_and_tail(rng: np.random.Generator, meta: SetMeta) -> dict[str, Any]:
    """One position: the head by descending probability, then the ascending tail of each draw."""
    pool = rng.permutation(np.unique(frequent(rng, meta, 12)))
    head, left = np.split(pool, [rng.integers(0, min(len(pool), 5) + 1)])
    if meta.record_kind is not None and meta.record_kind.top:
        k = min(int(meta.record_params["k"]), meta.vocab_size)
        likely = np.unique(frequent(rng, meta, 8 * k))
        head = likely if len(likely) >= k else np.arange(min(meta.vocab_size, 4 * k))
        head, left = rng.permutation(head)[:k], pool[:0]
    least = 0 if len(head) else 1
    sizes = rng.integers(least, len(left) + 1, meta.copies)
    tails = [np.sort(rng.permutation(left)[:size]) for size in sizes]
    return {
        "nu": len(head) + sizes,
        "nh": np.array([len(head)]),
        "rest": rng.random(1),
        "ids": np.concatenate([head, *tails]),
        "hlp": np.sort(-rng.exponential(2.0, len(head)))[::-1],
        "tlp": -rng.exponential(2.0, int(sizes.sum())),
    }


def random_rows(
    meta: SetMeta, count: int, *, first: int = 0, seed: int = 0, longest: int = 12
) -> Rows:
    """`count` random sequences with ids from `first` on and up to `longest` positions."""
    rng = np.random.default_rng([seed, first])
    return Rows.from_sequences(
        sequence(rng, meta, seq_id, int(rng.integers(0, 6)), int(rng.integers(1, longest + 1)))
        for seq_id in range(first, first + count)
    )


@st.composite
def rows_strategy(draw: st.DrawFn, kind: str) -> tuple[Rows, SetMeta]:
    """Any valid table of a kind: empty prompts, one-token responses, tiny and huge vocabularies."""
    meta = meta_of(
        kind, draw(st.sampled_from([1, 2, 300, 1 << 17, 1 << 20])), draw(st.integers(0, 3))
    )
    lengths = draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=70)
    )
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    reference = draw(st.booleans())
    rows = Rows.from_sequences(
        sequence(rng, meta, seq_id, prompt, positions, reference)
        for seq_id, (prompt, positions) in enumerate(lengths)
    )
    return rows, meta


def write_set(
    directory: Place,
    meta: SetMeta,
    sizes: Sequence[int] | Mapping[int, tuple[int, str]],
    *,
    seed: int = 0,
    longest: int = 12,
) -> Manifest:
    """A committed set with parts of the given numbers of sequences; seq_id counts through.

    Args:
        sizes: Sequences per part, or (sequences, split) by index.
    """
    plan = (
        dict(sizes)
        if isinstance(sizes, Mapping)
        else {i: (n, "train") for i, n in enumerate(sizes)}
    )
    first = 0
    for index, (count, split) in plan.items():
        with PartWriter(directory, index, meta, split) as writer:
            writer.write(random_rows(meta, count, first=first, seed=seed, longest=longest))
        first += count
    return write_manifest(directory, commit(directory, meta, len(plan)))


def write_parts(
    directory: Place,
    meta: SetMeta,
    parts: Iterable[tuple[Rows, str]],
    *,
    payload: Json | None = None,
    about: Json | None = None,
) -> Manifest:
    """A committed set of the given parts, each with its split.

    Args:
        directory: Where to.
        meta: Description of the set, as each part holds it.
        parts: In order.
        payload: What the key is the digest of.
        about: What else the manifest says.
    """
    count = 0
    for rows, split in parts:
        with PartWriter(directory, count, meta, split) as writer:
            writer.write(rows)
        count += 1
    return write_manifest(directory, commit(directory, meta, count, payload, about))


def commit(
    directory: Place,
    meta: SetMeta,
    count: int,
    payload: Json | None = None,
    about: Json | None = None,
) -> Manifest:
    """The manifest of the parts in `directory`, not written."""
    identity = SetIdentity(
        meta.stage,
        1,
        meta.key,
        meta.stage,
        meta.kind,
        payload or {"seed": 0},
        meta.teacher,
        meta.tokenizer,
        about or {},
    )
    return commit_parts(directory, identity, count)


def rows_of(directory: Place, split: str | None = None) -> Rows:
    """Everything in a set, or in one of its splits."""
    parts = [part for part in read_manifest(directory).parts if split in (None, part.split)]
    return Rows.concat([rows for part in parts for rows in read_rows(directory / part.file)])


def same_rows(a: Rows, b: Rows) -> bool:
    """Whether two tables hold bitwise the same values."""
    return (
        list(a.columns) == list(b.columns)
        and all(a[name].dtype == b[name].dtype for name in a.columns)
        and all(a[name].tobytes() == b[name].tobytes() for name in a.columns)
        and all(np.array_equal(a.offsets[level], b.offsets[level]) for level in a.offsets)
    )
