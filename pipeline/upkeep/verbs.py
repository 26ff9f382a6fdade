"""The verbs for sets, models and stores that are there already; as those of `pipeline.verbs`."""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from pipeline.execution.units import parse_shards
from pipeline.opened import Rejected, Result, read_recipe
from pipeline.planning import nodes, plan
from pipeline.upkeep import publish
from pipeline.upkeep.adopt import adopt_parts, adopt_set
from pipeline.upkeep.sweep import find_strays, remove
from stages.job import Input
from stages.progress import Progress
from storage.errors import DataError, UsageError
from storage.files.place import Place
from storage.manifest import FILE_NAME, read_manifest
from storage.sets import verify_set

log = logging.getLogger(__name__)


def cmd_verify(options: argparse.Namespace) -> Result:
    """Check every hash and checksum of sets; with a teacher, whether it sampled or scored them.

    Raises:
        DataError: something is damaged; the message names every problem.
        Rejected: the teacher did not sample or score one of the sets.
    """
    if options.teacher is not None:
        return _verify_teacher(options)
    problems: list[str] = []
    for directory in options.directories:
        found = _verified(directory)
        log.info("%s: %s", directory, f"{len(found)} problems" if found else "sound")
        problems += found
    if problems:
        raise DataError("; ".join(problems))
    return {"verb": "verify", "sound": [str(directory) for directory in options.directories]}


def _verified(directory: Place) -> list[str]:
    """Everything wrong with a set, while a line or a bar says how much of it has been read."""
    try:
        size = read_manifest(directory).totals.bytes
    except DataError as error:
        return [str(error)]
    with Progress(f"verify {directory}", size, "bytes") as progress:
        return verify_set(directory, progress.advance)


def _verify_teacher(options: argparse.Namespace) -> Result:
    from stages.attribution.verify import Settings, verify_teacher  # torch

    fields = ("tokens", "level", "temperature", "dtype")
    given = {name: value for name in fields if (value := getattr(options, name)) is not None}
    found = verify_teacher(Input(options.teacher), options.directories, Settings(**given))
    sys.stdout.write("".join(f"{line}\n" for one in found for line in one.lines()))
    result: Result = {"verb": "verify", "findings": [one.to_json() for one in found]}
    rejected = [one for one in found if one.rejected]
    if rejected:
        sets = "; ".join(f"{one.set} ({', '.join(one.reasons)})" for one in rejected)
        raise Rejected(f"{options.teacher} did not make {sets}", result)
    return result


def cmd_prune(options: argparse.Namespace) -> Result:
    """Write a model with some layers of another, its tokenizer and template beside it.

    Raises:
        UsageError: the directory exists, or the layers are no list of indices.
        ConfigError, DataError: the model cannot be pruned so, or cannot be loaded.
    """
    layers, into = parse_shards(options.layers, "--layers"), options.into
    if into.exists():
        raise UsageError(f"{into}: exists already; give a directory that does not")
    from stages.models.identity import local_directory
    from stages.models.prune import prune_directory  # torch
    from stages.training.output import write_model

    source = local_directory(Input(options.model))
    model = prune_directory(source, layers)
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=into) as work:
        write_model(model, into, source, model.dtype, Path(work))
    millions = model.num_parameters() / 1e6
    log.info("%s: %d layers, %.1f million parameters", into, len(layers), millions)
    return {"verb": "prune", "directory": str(into), "layers": layers}


def cmd_gc(options: argparse.Namespace) -> Result:
    """Print what the store holds that nothing uses; with `--yes`, remove it."""
    if not options.older_than >= 0:
        raise UsageError(f"--older-than {options.older_than}: give hours, 0 or more")
    recipe, store = read_recipe(options)
    if not isinstance(store.root, Path):
        raise UsageError(
            f"{store.root}: gc works on stores on this machine. On an object store let a lifecycle "
            "rule remove unfinished uploads, and remove sets by hand."
        )
    planned = plan.resolve(nodes.build(recipe), store)
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


def cmd_adopt(options: argparse.Namespace) -> Result:
    """Copy sets that were made elsewhere into the store, after checking every byte."""
    recipe, store = read_recipe(options)
    sets: dict[str, str] = {}
    for source in options.directories:
        with Progress(f"adopt {source}"):
            if (source / FILE_NAME).exists():
                manifest = adopt_set(source, store)
            else:
                manifest = adopt_parts(source, plan.resolve(nodes.build(recipe), store), store)
        sets[str(source)] = str(store.path(manifest.stage, manifest.key))
        log.info("%s: adopted as %s", source, sets[str(source)])
    return {"verb": "adopt", "sets": sets}


def cmd_publish(options: argparse.Namespace) -> Result:
    """Send sets to the Hub with a card; as a dry run, write what would be sent."""
    kind, content = publish.contents(options.repo, options.directories, options.licence)
    result = {"verb": "publish", "repo": options.repo, "type": kind, "files": len(content)}
    if options.dry_run:
        into: Path = options.into or Path(options.repo.replace("/", "--"))
        publish.write(content, into)
        log.info("%s: %d files in %s", options.repo, len(content), into)
        return {**result, "into": str(into), "url": None}
    with Progress(f"publish {options.repo}"):
        url = publish.upload(options.repo, kind, content, private=options.private)
    log.info("%s: %d files at %s", options.repo, len(content), url)
    return {**result, "into": None, "url": url}
