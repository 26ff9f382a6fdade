"""Takes in a set that was made elsewhere: `afterglow adopt`.

Nothing is trusted: every part is hashed and decoded, the key is computed again, and no path may
leave the directory. The files are copied under our own names and in the order of our own writers,
so that a set that is adopted in part does not exist yet.
"""

import shutil
from pathlib import Path

from pipeline.execution import runner
from pipeline.ledger import PROVENANCE, RESOLVED
from pipeline.planning import fingerprint
from pipeline.planning.plan import Planned
from storage.errors import DataError
from storage.files.place import Place
from storage.files.write import disk_errors, sha256_file, size_of, sync_directory, temporary_name
from storage.manifest import FILE_NAME, RANKS, Manifest, read_manifest, write_manifest
from storage.sets import verify_set
from storage.shard import find_part, read_meta, verify_part
from storage.store import Store


def adopt_set(source: Path, store: Store) -> Manifest:
    """Register a committed set that lies outside the store.

    Args:
        source: Directory with a `manifest.json`: from another store, or downloaded.
        store: Where it is to go.

    Raises:
        DataError: it is damaged, its key is not that of its payload, or a path leaves it.
        RetryError: the disk is full or read-only.
    """
    manifest = read_manifest(source)
    computed = fingerprint.digest(manifest.payload)
    if computed != manifest.key or manifest.payload.get("stage") != manifest.stage:
        raise DataError(
            f"{source}: its key is {manifest.key[:12]} ({manifest.stage}), but that of its payload "
            f"is {computed[:12]} ({manifest.payload.get('stage')}). The manifest was changed; "
            "get the set from its origin again."
        )
    sizes = {part.file: part.bytes for part in manifest.parts}
    sizes |= {file.path: file.bytes for file in manifest.files}
    _check_inside(source, list(sizes))
    _refuse(source, verify_set(source))
    parts = [source / part.file for part in manifest.parts]
    keys = {path: read_meta(path).key for path in parts}
    foreign = [
        f"{path}: belongs to set {key[:12]}, not {manifest.key[:12]}"
        for path, key in keys.items()
        if key != manifest.key
    ]
    _refuse(source, foreign)
    written = store.manifest(manifest.stage, manifest.key)
    directory = store.path(manifest.stage, manifest.key)
    if written is None:
        extra = [name for name in (PROVENANCE, RESOLVED) if (source / name).is_file()]
        _check_inside(source, extra)
        for name in dict.fromkeys([*sizes, *extra]):
            _copy(source / name, directory / name)
        wrong = [
            f"{directory / name}: {found} bytes, not {size}"
            for name, size in sizes.items()
            if (found := size_of(directory / name)) != size
        ]
        _refuse(directory, wrong)
        written = write_manifest(directory, manifest)
    if written.digest != manifest.digest:  # two runs under one key may differ in their bytes
        raise DataError(
            f"{directory}: holds another run of the same set, which was left unchanged. To replace "
            "it, remove it first."
        )
    return written


def adopt_parts(source: Path, planned: list[Planned], store: Store) -> Manifest:
    """Register a directory of parts without a manifest as the planned set that they belong to.

    Args:
        source: Directory of parts without a manifest.
        planned: The plan whose sets they may be.
        store: Where they are to go.

    Raises:
        DataError: there are none, one is damaged, or they belong to no set of the plan.
        RetryError: parts of the set are missing; those that were there have been copied.
    """
    paths = sorted(source.glob("part-*.parquet"))
    if not paths:
        raise DataError(f"{source}: neither {FILE_NAME} nor parts; there is nothing to adopt")
    _check_inside(source, [path.name for path in paths])
    keys = {read_meta(path).key for path in paths}
    chosen = [one for one in planned if one.key in keys]
    if len(keys) > 1 or not chosen:
        shown = ", ".join(sorted(key[:12] for key in keys))
        raise DataError(
            f"{source}: its parts belong to {shown}, which is not one set of this recipe. Give the "
            "recipe they were made with (`afterglow plan` prints its keys)."
        )
    directory = chosen[0].directory(store)
    if chosen[0].manifest(store) is not None:
        raise DataError(f"{directory}: is committed already; nothing was adopted")
    problems: list[str] = []
    for path in paths:
        part = find_part(source, int(path.name.split("-")[1]))
        problems += [f"{path}: damaged"] if part is None else verify_part(source, part)
    _refuse(source, problems)
    if (source / RANKS).is_file():
        _check_inside(source, [RANKS])
        _copy(source / RANKS, directory / RANKS)
    for path in paths:
        _copy(path, directory / path.name)
    return runner.commit(chosen[0], store)


def _check_inside(source: Path, names: list[str]) -> None:
    """No link leads out of the directory."""
    root = source.resolve()
    for name in names:
        path = source / name
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            raise DataError(
                f"{path}: a link. A set is adopted from plain files; copy them with `cp -L` first."
            )


def _copy(source: Path, target: Place) -> None:
    if not isinstance(target, Path):
        target.upload(source, sha256_file(source))
        return
    temporary = temporary_name(target.parent, target.name)
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary)
            temporary.rename(target)
            sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse(source: Place, problems: list[str]) -> None:
    if problems:
        raise DataError(f"{source}: not adopted. {'; '.join(problems)}")
