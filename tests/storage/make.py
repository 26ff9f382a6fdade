"""Rows and sets for tests, at random or by Hypothesis; valid unless a test spoils them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from storage.manifest import Manifest, SetMeta, commit_parts, write_manifest
from storage.rows import Rows
from storage.shard import PartWriter

KEY = "0123456789abcdef" * 4
DRAWS = 8
KINDS = ("sequences", "sampled", "counts", "head_tail")
"""Plain sequences and the three kinds of records."""


def meta_of(kind: str, vocab_size: int = 1 << 20, candidates: int = 2) -> SetMeta:
    """Description of a set of one of `KINDS`."""
    record: dict[str, object] = {"kind": kind, "draws": DRAWS, "tau": 0.05, "temperature": 1.0}
    plain = kind == "sequences"
    return SetMeta(
        stage="rollouts" if plain else "teacher-logits",
        key=KEY,
        kind="sequences" if plain else "records",
        vocab_size=vocab_size,
        candidates=candidates,
        record=None if plain else record,
        tokenizer={"hash": "t" * 8},
        teacher={"path": "teacher", "weights": "w" * 8},
    )


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
        "tok": rng.integers(0, top, positions),
    }
    if reference:
        out["ref_lp"] = -rng.exponential(3.0, positions)
    if meta.kind == "sequences":
        if meta.candidates:
            out["cand"] = rng.integers(0, top, positions * meta.candidates)
        return out
    out |= {"lp": -rng.exponential(3.0, positions), "ent": rng.exponential(1.0, positions)}
    return out | _record(rng, meta, positions)


def _record(rng: np.random.Generator, meta: SetMeta, positions: int) -> dict[str, Any]:
    if meta.record_kind == "counts":
        draws = [
            rng.integers(0, 5, DRAWS) + rng.integers(meta.vocab_size) for _ in range(positions)
        ]
        pairs = [np.unique(d % meta.vocab_size, return_counts=True) for d in draws]
        return {
            "nu": np.array([len(ids) for ids, _ in pairs], np.int64),
            "ids": np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in pairs)]),
            "cnt": np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in pairs)]),
        }
    if meta.record_kind == "head_tail":
        nu = rng.integers(1, 7, positions)
        nh = rng.integers(0, nu + 1)
        return {
            "nu": nu,
            "nh": nh,
            "rest": rng.random(positions),
            "ids": rng.integers(0, meta.vocab_size, nu.sum()),
            "hlp": -rng.exponential(2.0, nh.sum()),
        }
    return {}


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
    directory: Path,
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


def commit(directory: Path, meta: SetMeta, count: int) -> Manifest:
    """The manifest of the parts in `directory`, not written."""
    return commit_parts(
        directory,
        count,
        stage=meta.stage,
        version=1,
        key=meta.key,
        name=meta.stage,
        kind=meta.kind,
        payload={"seed": 0},
        teacher=meta.teacher,
        tokenizer=meta.tokenizer,
    )


def same_rows(a: Rows, b: Rows) -> bool:
    """Whether two tables hold bitwise the same values."""
    return (
        list(a.columns) == list(b.columns)
        and all(a[name].dtype == b[name].dtype for name in a.columns)
        and all(a[name].tobytes() == b[name].tobytes() for name in a.columns)
        and all(np.array_equal(a.offsets[level], b.offsets[level]) for level in a.offsets)
    )
