"""Makes damaged parts of committed sets again, under the same key and the same name.

A set never changes, so a part that is made again must be the very file that the manifest names: its
name holds its hash, and the new file replaces the damaged one in one rename. Stages whose engine is
deterministic give that file (all on the CPU; a GPU that draws tokens may not). If another file
comes out, it is removed, the damaged one stays, and an error says so.
"""

import logging
from collections.abc import Iterable

from pipeline.execution.chain import Chain, StageFailed
from pipeline.execution.runner import missing, needed
from pipeline.execution.units import format_shards
from pipeline.planning.plan import Planned
from storage.copies import check_files
from storage.errors import DataError
from storage.files.place import place
from storage.manifest import Manifest, Part
from storage.shard import verify_part
from storage.store import Store

log = logging.getLogger(__name__)


def complete(
    targets: list[Planned], planned: list[Planned], store: Store, chain: Chain
) -> list[Planned]:
    """Make `targets` and what they need; where a stage finds a damaged part, repair it and go on.

    Args:
        targets: What is asked for.
        planned: The targets and all that they descend from, in order.
        store: Where they are.
        chain: Runs the recipe's stages.

    Returns:
        The nodes that were missing.

    Raises:
        StageFailed: a stage failed for another reason, or found the same damage again.
        DataError: the damage cannot be repaired.
    """
    todo = left = needed(targets, planned, store)
    attempted: set[str] = set()
    while True:
        try:
            chain.run(left)
        except StageFailed as error:
            if error.damaged is None or error.damaged in attempted:
                raise
            attempted.add(error.damaged)
            path = place(error.damaged)
            for chosen in planned:
                manifest = chosen.manifest(store)
                if manifest is not None and chosen.directory(store) == path.parent:
                    parts = [part for part in manifest.parts if part.file == path.name]
                    if _repair(chosen, manifest, parts, store, chain):
                        break
            else:
                raise
            left = missing(todo, store)
        else:
            return todo


def check(planned: Iterable[Planned], store: Store, chain: Chain) -> list[str]:
    """Read every committed set of the plan in full, and make what is damaged again.

    Returns:
        Names of the files that were repaired.

    Raises:
        DataError: the damage cannot be repaired.
    """
    repaired: list[str] = []
    for chosen in planned:
        manifest = chosen.manifest(store)
        if manifest is not None:
            check_files(chosen.directory(store), manifest, whole=True)
            repaired += _repair(chosen, manifest, manifest.parts, store, chain)
    return repaired


def _repair(
    chosen: Planned, manifest: Manifest, parts: Iterable[Part], store: Store, chain: Chain
) -> list[str]:
    """Make those of `parts` again that are damaged; returns their files."""
    name, directory = chosen.node.name, chosen.directory(store)
    damaged: list[Part] = []
    for part in parts:
        problems = verify_part(directory, part)
        for problem in problems:
            log.warning("%s", problem)
        damaged += [part] if problems else []
    if not damaged:
        return []
    indices = sorted(part.index for part in damaged)
    log.info("%s: making damaged parts again: %s", name, format_shards(indices))
    chain.make_parts(name, indices)
    listed = {part.file for part in manifest.parts}
    for part in damaged:
        if not verify_part(directory, part):
            continue
        for other in directory.glob(f"part-{part.index:05d}-*.parquet"):
            if other.name not in listed:
                other.unlink()
        raise DataError(
            f"{directory / part.file}: damaged, and the part made in its place differs: this "
            f"machine or engine does not reproduce it byte for byte. Remove {directory} and the "
            "sets made from it, then run the same command; or restore the file from a copy."
        )
    return [part.file for part in damaged]
