"""One node of the plan, resolved: what a stage module gets to do its work."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from storage.files.place import Place, place
from storage.manifest import Json, Manifest, ManifestKind, SetIdentity, read_manifest
from storage.store import Store

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Input:
    """Something a job reads: a committed set, or a model from outside the store."""

    path: str
    """Directory of the set, directory of the model, or Hub id."""
    key: str | None = None
    """Key of the set; None for a model from outside the store."""
    revision: str = "main"
    """Hub revision of a model from outside the store."""
    dtype: str = "float32"
    """Numeric type a model is loaded in."""
    store: Store | None = field(default=None, compare=False, repr=False)
    """Where a set made by the plan is; it may have read the manifest."""

    @property
    def called(self) -> str:
        """What sets that descend from it call it: the same wherever the store is."""
        return self.path if self.key is None else self.directory.name

    @property
    def directory(self) -> Place:
        """Where a set or a model outside the Hub is."""
        return place(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        """Of a set; read once, since sets never change."""
        directory = self.directory
        return self.store.read(directory) if self.store else read_manifest(directory)


@dataclass(frozen=True)
class Job(Generic[ConfigT]):
    """What to make (`key`, `config`), from what (`inputs`), and where (`directory`)."""

    stage: str
    name: str
    """`stage` or `stage.variant`, as shown by `status`."""
    key: str
    """64 hexadecimal digits over everything in `payload`."""
    payload: Mapping[str, object]
    """The identity that was hashed; stored in the manifest."""
    config: ConfigT
    seed: int
    inputs: Mapping[str, Input]
    """By role: `teacher`, `model`, `base`, `sequences`, `records`, `corpus`, ..."""
    store: Store

    @property
    def directory(self) -> Place:
        """Where the set goes; it exists as a set only once its manifest does."""
        return self.store.path(self.stage, self.key)

    @property
    def site(self) -> Path:
        """Where on this machine the set is worked on: `directory`, unless that is elsewhere."""
        return self.store.site(self.stage, self.key)

    def identity(
        self,
        kind: ManifestKind,
        *,
        teacher: Json | None = None,
        tokenizer: Json | None = None,
        meta: Json | None = None,
    ) -> SetIdentity:
        """Which set the job makes, as `build_manifest` and `commit_parts` take it."""
        version = int(str(self.payload["version"]))
        return SetIdentity(
            self.stage,
            version,
            self.key,
            self.name,
            kind,
            self.payload,
            teacher,
            tokenizer,
            meta or {},
        )


@dataclass(frozen=True)
class ShardSpec:
    """One part of a sharded stage."""

    index: int
    first: int
    """Index of its first sequence in the set."""
    count: int
    """Number of sequences."""
    split: str = "train"
    """`train` or `holdout`."""
