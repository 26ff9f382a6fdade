"""Records of a teacher's positions as rows, and sets made of them.

Shape letters: T positions, R rows of a block, V vocabulary, C candidates, U uniforms, E entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.generator import Counts as Counted
from benchmarks.generator import Teacher
from benchmarks.sources import Block, Source
from stages.config.record_kinds import Record
from stages.scoring.drawn import Records, concat
from stages.scoring.sampler import on_cpu
from storage.manifest import Manifest, Part, SetMeta, write_manifest
from storage.packed.frequencies import write_ranks
from storage.rows import Rows, offsets_of
from storage.shard import PartWriter

Array = NDArray[Any]

SEQUENCES_PER_PART = 2048


@dataclass(frozen=True)
class Sequences:
    """Positions with their tokens and records, before they become rows."""

    tok_T: Array
    lp_T: Array
    ent_T: Array
    columns: Mapping[str, Array]
    """Of the record."""
    lengths: NDArray[np.int64]
    """Positions of each sequence."""

    def rows(self) -> Rows:
        """Sequences of these lengths, each after a prompt of one token."""
        columns: dict[str, Any] = {
            "tok": self.tok_T.astype(np.uint32),
            # The policy that drew the token is a little off the teacher.
            "ref_lp": np.minimum(0.0, self.lp_T - 0.05 * self.ent_T).astype(np.float32),
            "lp": self.lp_T.astype(np.float32),
            "ent": self.ent_T.astype(np.float16),
            **self.columns,
        }
        return rows_of(columns, self.lengths)


def rows_of(columns: Mapping[str, Array], lengths: NDArray[np.int64]) -> Rows:
    """Sequences of these lengths, numbered, each after a prompt of one token.

    Args:
        columns: With a value for each position.
        lengths: Positions of each sequence.
    """
    count = len(lengths)
    whole = {
        "seq_id": np.arange(count),
        "prompt_id": np.arange(count),
        "sample": np.zeros(count, np.int32),
        "finish": np.zeros(count, np.uint8),
        "outcome": np.full(count, -1, np.int8),
        "prompt": np.zeros(count, np.uint32),
    }
    offsets = {"prompt": np.arange(count + 1), "position": offsets_of(lengths)}
    return Rows.from_columns({**whole, **columns}, offsets)


def counts_of(teacher: Teacher, positions: int, draws: int = 50) -> Sequences:
    """Records of N independent draws."""
    parts: list[Counted] = []
    blocks: list[tuple[Array, ...]] = []
    for block in teacher.blocks(positions):
        parts.append(teacher.counts(block, draws))
        blocks.append((block.tok_T, block.lp_T, block.ent_T))
    tok_T, lp_T, ent_T = (np.concatenate(column) for column in zip(*blocks, strict=True))
    nu, ids, cnt = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = {"nu": nu, "ids": ids, "cnt": cnt}
    return Sequences(tok_T, lp_T, ent_T, columns, teacher.lengths(positions))


def drawn(source: Source, positions: int, record: Record) -> Sequences:
    """Records of the first positions of a teacher, by the product's own sampler."""
    (made,) = all_drawn(source, positions, [record])
    return made


def all_drawn(source: Source, positions: int, records: Sequence[Record]) -> list[Sequences]:
    """Several kinds of records of the same positions, in one walk over the teacher's logits."""
    rng = [np.random.default_rng(0) for _ in records]
    found: list[list[Records]] = [[] for _ in records]
    tok: list[Array] = []
    for block in source.blocks(positions):
        for made, record, random in zip(found, records, rng, strict=True):
            made.append(draw(block, record, random))
        tok.append(block.tok_R)
    tok_T, lengths = np.concatenate(tok), source.lengths(positions)
    out: list[Sequences] = []
    for made in found:
        columns = concat(made).columns()
        out.append(Sequences(tok_T, columns.pop("lp"), columns.pop("ent"), columns, lengths))
    return out


def draw(block: Block, record: Record, rng: np.random.Generator) -> Records:
    """Records of one block."""
    cand_RC = block.cand_RC[:, : record.forced]
    u_RU = rng.random((len(block.tok_R), record.uniforms))
    return on_cpu(block.z_RV, block.z_RV.shape[1], block.tok_R, cand_RC, u_RU, record)


def write_part(directory: Path, index: int, rows: Rows, meta: SetMeta) -> Part:
    """One part with these rows."""
    with PartWriter(directory, index, meta) as writer:
        writer.write(rows)
    return writer.part


def write_set(directory: Path, parts: Sequence[Part], meta: SetMeta) -> Manifest:
    """The manifest of a set made of these parts."""
    manifest = Manifest(
        stage=meta.stage,
        version=1,
        key=meta.key,
        name=directory.name,
        kind="records",
        payload={},
        meta={"vocab_size": meta.vocab_size, "record": meta.record},
        parts=tuple(parts),
    )
    return write_manifest(directory, manifest)


def meta_of(record: Record, vocabulary: int) -> SetMeta:
    """What the footer of a part says."""
    return SetMeta(
        stage="teacher-logits",
        key="0" * 64,
        kind="records",
        vocab_size=vocabulary,
        record=record.described(),
    )


def packed_meta(directory: Path, meta: SetMeta, count_V: Array) -> SetMeta:
    """The same for the packed layout; the order of ids, by their frequency, is written."""
    return replace(meta, layout="packed", ranks=write_ranks(directory, lambda: count_V))
