"""Committed sets under their true keys, for the verbs that look after a store."""

from dataclasses import replace
from pathlib import Path

from pipeline.planning import fingerprint
from storage.manifest import Manifest, SetIdentity, write_manifest
from storage.sets import commit_parts
from storage.shard import PartWriter
from storage.store import Store
from tests.storage.make import meta_of, random_rows

PLAN = ((40, "train"), (7, "holdout"))


def make_set(root: Path, kind: str = "head_tail", *, seed: int = 0) -> tuple[Path, Manifest]:
    """A set of two parts in a store; its directory and its manifest."""
    meta = meta_of(kind)
    payload: dict[str, object] = {"stage": meta.stage, "version": 1, "seed": seed}
    meta = replace(meta, key=fingerprint.digest(payload))
    directory = Store(root).site(meta.stage, meta.key)
    first = 0
    for index, (count, split) in enumerate(PLAN):
        with PartWriter(directory, index, meta, split) as writer:
            writer.write(random_rows(meta, count, first=first, seed=seed))
        first += count
    manifest = commit_parts(
        directory,
        SetIdentity(
            meta.stage,
            1,
            meta.key,
            meta.stage,
            meta.kind,
            payload,
            teacher=meta.teacher,
            tokenizer=meta.tokenizer,
            meta={} if meta.record is None else {"record": dict(meta.record)},
        ),
        len(PLAN),
    )
    return directory, write_manifest(directory, manifest)
