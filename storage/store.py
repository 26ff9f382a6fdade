"""Where sets live: one directory per set under a root, named by stage and key."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DataError
from storage.manifest import FILE_NAME, Manifest, read_manifest

_SHOWN = 12
"""Digits of the key in a directory name: 48 bits, and the manifest holds all 256."""


@dataclass(frozen=True)
class Store:
    """A directory of sets."""

    root: Path

    def path(self, stage: str, key: str) -> Path:
        """Directory of a set, whether it exists or not."""
        return self.root / f"{stage}-{key[:_SHOWN]}"

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a committed set, or None where there is none yet.

        Raises:
            DataError: the manifest is unreadable, or the directory holds another set.
        """
        directory = self.path(stage, key)
        if not (directory / FILE_NAME).exists():
            return None
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise DataError(
                f"{directory}: holds set {manifest.key}, but {key} was asked for; the first "
                f"{_SHOWN} digits agree by accident or by hand. Move the directory away."
            )
        return manifest

    def sets(self, stage: str | None = None) -> Iterator[tuple[Path, Manifest]]:
        """All committed sets, or those of one stage, sorted by directory name.

        Raises:
            DataError: a manifest is unreadable.
        """
        for path in sorted(self.root.glob(f"*/{FILE_NAME}")):
            manifest = read_manifest(path.parent)
            if stage is None or manifest.stage == stage:
                yield path.parent, manifest
