"""Committed sets under their true keys, for the verbs that look after a store."""

from dataclasses import replace
from pathlib import Path

from pipeline.planning import fingerprint
from storage.manifest import Manifest
from storage.store import Store
from tests.storage.make import meta_of, random_rows, write_parts

PLAN = ((40, "train"), (7, "holdout"))


def make_set(root: Path, kind: str = "head_tail", *, seed: int = 0) -> tuple[Path, Manifest]:
    """A set of two parts in a store; its directory and its manifest."""
    meta = meta_of(kind)
    payload = {"stage": meta.stage, "version": 1, "seed": seed}
    meta = replace(meta, key=fingerprint.digest(payload))
    directory = Store(root).site(meta.stage, meta.key)
    parts = [
        (random_rows(meta, count, first=first, seed=seed), split)
        for first, (count, split) in zip((0, PLAN[0][0]), PLAN, strict=True)
    ]
    about = {} if meta.record is None else {"record": dict(meta.record)}
    return directory, write_parts(directory, meta, parts, payload=payload, about=about)
