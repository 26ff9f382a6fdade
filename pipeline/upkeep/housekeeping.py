"""The verbs that look after a store: `gc`, `adopt` and `publish`."""

import argparse
import logging
import sys
import time
from pathlib import Path

from pipeline.planning.config import Recipe
from pipeline.planning.nodes import build
from pipeline.planning.plan import resolve
from pipeline.upkeep import publish as publishing
from pipeline.upkeep.adopt import adopt_parts, adopt_set
from pipeline.upkeep.sweep import find_strays, remove
from storage.errors import UsageError
from storage.manifest import FILE_NAME
from storage.store import Store

log = logging.getLogger(__name__)

Result = dict[str, object]


def gc(options: argparse.Namespace, recipe: Recipe, store: Store) -> Result:
    """Print what the store holds for nothing, with `--yes` remove it."""
    if not options.older_than >= 0:
        raise UsageError(f"--older-than {options.older_than}: give hours, 0 or more")
    if not isinstance(store.root, Path):
        raise UsageError(
            f"{store.root}: gc looks after stores on this machine. On an object store let its own "
            "rules remove unfinished uploads, and remove sets that are no longer wanted by hand."
        )
    planned = resolve(build(recipe), store)
    keep = {one.directory(store).name if one.key else one.node.stage.name for one in planned}
    strays = find_strays(store.root, keep, time.time() - 3600.0 * options.older_than)
    for stray in strays:
        sys.stdout.write(f"{stray.bytes:>15,}  {stray.path}  ({stray.why})\n")
    total = sum(stray.bytes for stray in strays)
    removed = remove(strays) if options.yes else 0
    what = "removed" if options.yes else "to be removed with --yes"
    sys.stdout.write(f"{total:>15,}  bytes {what}\n")
    items = [{"path": str(one.path), "bytes": one.bytes, "why": one.why} for one in strays]
    return {"verb": "gc", "strays": items, "bytes": total, "removed": removed}


def adopt(options: argparse.Namespace, recipe: Recipe, store: Store) -> Result:
    """Copy sets that were made elsewhere into the store, once every byte has been checked."""
    sets: dict[str, str] = {}
    for source in options.directories:
        if (source / FILE_NAME).exists():
            manifest = adopt_set(source, store)
        else:
            manifest = adopt_parts(source, resolve(build(recipe), store, ready=False), store)
        sets[str(source)] = str(store.path(manifest.stage, manifest.key))
        log.info("%s: adopted as %s", source, sets[str(source)])
    return {"verb": "adopt", "sets": sets}


def publish(options: argparse.Namespace) -> Result:
    """Send sets to the Hub with a card; as a dry run, write what would be sent."""
    kind, content = publishing.contents(options.repo, options.directories, options.licence)
    result: Result = {"verb": "publish", "repo": options.repo, "type": kind, "files": len(content)}
    if options.dry_run:
        into: Path = options.into or Path(options.repo.replace("/", "--"))
        publishing.write(content, into)
        return result | {"into": str(into), "url": None}
    url = publishing.upload(options.repo, kind, content, private=options.private)
    return result | {"into": None, "url": url}
