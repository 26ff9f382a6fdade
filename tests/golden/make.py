"""How the golden sets were made: small committed sets of every kind, one directory per version.

They are made once, when a kind is new or `FORMAT_VERSION` rises, and never again:

    python -c "from tests.golden.make import write_golden; write_golden()"

`expected.json` holds what a reader must find in a set, as plain numbers: the columns and offsets of
all rows, and the weights they stand for.
"""

import json
from pathlib import Path
from typing import Any

from storage.codec import stored, to_batch
from storage.manifest import Manifest, SetIdentity, SetMeta, write_manifest
from storage.rows import Rows
from storage.schema import FORMAT_VERSION, Array
from storage.sets import commit_parts
from storage.shard import PartWriter
from tests.storage.make import KINDS, meta_of, packed, random_rows

HERE = Path(__file__).parent
SEQUENCES = 34
"""One full row group and a small one."""
PACKED = {
    "counts-packed": meta_of("counts", draws=24),
    "head_tail-packed": meta_of("head_tail_copies"),
}
GOLDEN = (*KINDS, *PACKED)
"""Names of the sets of a version."""


def write_golden() -> None:
    """Write the sets of the current format version that are not there yet."""
    for number, kind in enumerate(GOLDEN):
        directory = HERE / f"v{FORMAT_VERSION}" / kind
        if directory.exists():
            continue
        directory.mkdir(parents=True)
        rows = random_rows(golden_meta(kind), SEQUENCES, seed=number, longest=2)
        write_golden_set(directory, kind, rows)
        (directory / "expected.json").write_text(
            json.dumps(expected(rows, kind), separators=(",", ":")) + "\n"
        )


def golden_meta(kind: str) -> SetMeta:
    """Description of one of `GOLDEN`, its layout aside."""
    return PACKED[kind] if kind in PACKED else meta_of(kind)


def write_golden_set(directory: Path, kind: str, rows: Rows) -> Manifest:
    """Commit `rows` as the only part of a set."""
    meta = golden_meta(kind)
    if kind in PACKED:
        meta = packed(meta, directory, rows)
    with PartWriter(directory, 0, meta) as writer:
        writer.write(rows)
    manifest = commit_parts(
        directory,
        SetIdentity(
            meta.stage,
            1,
            meta.key,
            f"golden {kind}",
            meta.kind,
            {"made by": "tests/golden/make.py"},
            teacher=meta.teacher,
            tokenizer=meta.tokenizer,
        ),
        1,
    )
    return write_manifest(directory, manifest)


def expected(rows: Rows, kind: str) -> dict[str, object]:
    """What is to be found in the set, JSON-ready."""
    rows, meta = stored(rows), golden_meta(kind)
    batches = [to_batch(rows, meta, draw) for draw in range(meta.copies)]
    draws = [
        {
            "entry_off": batch.entry_off.tolist(),
            "ids": batch.ids.tolist(),
            "weight": shortest(batch.weight),
        }
        for batch in batches
    ]
    return {
        "columns": {name: shortest(values) for name, values in rows.columns.items()},
        "offsets": offsets(rows),
        "draws": draws,
    }


def offsets(rows: Rows) -> dict[str, list[int]]:
    """By level; those of `draw` are a multiple of those of `position`."""
    return {level: value.tolist() for level, value in rows.offsets.items() if level != "draw"}


def shortest(values: Array) -> list[Any]:
    """Numbers with as few digits as tell them apart in their type."""
    return values.tolist() if values.dtype.kind in "iu" else [float(str(value)) for value in values]
