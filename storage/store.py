"""Where sets live: one directory per set under a root, named by stage and key."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from storage.errors import DataError
from storage.files.place import Place, cache_root
from storage.manifest import FILE_NAME, Manifest, read_manifest

_SHOWN = 12
"""Digits of the key in a directory name: 48 bits, and the manifest holds all 256."""


@dataclass(frozen=True)
class Store:
    """A directory of sets, or a prefix of an object store."""

    root: Place
    _found: dict[Place, Manifest] = field(
        default_factory=dict[Place, Manifest], init=False, repr=False, compare=False
    )
    """Manifests read so far: a committed set never changes."""

    @property
    def local(self) -> Path:
        """Directory of local files that belong to no set: the root, or the cache if remote."""
        return self.root if isinstance(self.root, Path) else cache_root()

    @property
    def digests(self) -> Path:
        """File of remembered digests of model files."""
        return self.local / ".digests.json"

    def site(self, stage: str, key: str) -> Path:
        """Local directory in which a set is made: its own, or one in the cache if it is remote."""
        path = self.path(stage, key)
        if isinstance(path, Path):
            return path
        return (
            cache_root() / "work" / f"{path.name}-{sha256(str(self.root).encode()).hexdigest()[:8]}"
        )

    def path(self, stage: str, key: str) -> Place:
        """Directory of a set, whether it exists or not."""
        return self.root / f"{stage}-{key[:_SHOWN]}"

    def named(self, key: str) -> Iterator[Place]:
        """Directories of committed sets of this key, of any stage."""
        for path in self.root.glob(f"*-{key[:_SHOWN]}/{FILE_NAME}"):
            yield path.parent

    def holds(self, stage: str, key: str) -> bool:
        """Whether there is a committed set of this key; its manifest is not read."""
        return (self.path(stage, key) / FILE_NAME).exists()

    def read(self, directory: Place) -> Manifest:
        """The manifest of the set in `directory`, read once.

        Raises:
            DataError: as `storage.manifest.read_manifest`.
        """
        if directory not in self._found:
            self._found[directory] = read_manifest(directory)
        return self._found[directory]

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a committed set, or None where there is none yet.

        Raises:
            DataError: the manifest is unreadable, or the directory holds another set.
        """
        directory = self.path(stage, key)
        if directory not in self._found and not (directory / FILE_NAME).exists():
            return None
        manifest = self.read(directory)
        if manifest.key != key:
            raise DataError(
                f"{directory}: holds set {manifest.key}, but {key} was asked for; the first "
                f"{_SHOWN} digits agree by accident or by hand. Move the directory away."
            )
        return manifest

    def sets(self, stage: str | None = None) -> Iterator[tuple[Place, Manifest]]:
        """All committed sets, or those of one stage, sorted by directory name.

        Raises:
            DataError: a manifest is unreadable.
        """
        for path in sorted(self.root.glob(f"*/{FILE_NAME}"), key=lambda path: path.parent.name):
            manifest = read_manifest(path.parent)
            if stage is None or manifest.stage == stage:
                yield path.parent, manifest
