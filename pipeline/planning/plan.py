"""From nodes to jobs: what each reads, and the key that follows.

`resolve` gives every node its key. It is cheap and imports neither torch nor an engine. A key is
None while it depends on a Hub model whose commit is not known on this machine yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pipeline.planning import fingerprint
from pipeline.planning.node import External, Node
from stages.config.stage import StageTable
from stages.data.sources import content_identity, content_paths
from stages.job import Input, Job
from stages.models.hub import asking, is_commit, is_hub_id, known_commit
from stages.models.identity import DigestCache, model_identity
from storage.errors import AfterglowError, ConfigError, DataError, RetryError
from storage.files.place import Place, place
from storage.manifest import Manifest, read_manifest
from storage.schema import FORMAT_VERSION
from storage.store import Store

_SEEN = ". Relative paths start at "


@dataclass(frozen=True)
class Planned:
    """A node with its identity."""

    node: Node
    key: str | None
    """None while a Hub commit is unknown."""
    payload: Mapping[str, object]
    inputs: Mapping[str, Input]
    lacks: Mapping[str, AfterglowError] = field(default_factory=dict[str, AfterglowError])
    """What it reads from outside the plan and cannot use, by path: why not. The key is then None,
    and `pipeline.preflight` refuses to run the node."""

    def directory(self, store: Store) -> Place:
        """Where the set is, or will be."""
        return self.job(store).directory

    def manifest(self, store: Store) -> Manifest | None:
        """The manifest of the committed set, or None."""
        return store.manifest(self.node.stage.name, self.key) if self.key else None

    def is_made(self, store: Store) -> bool:
        """Whether the set is committed; its manifest is not read."""
        return self.key is not None and store.holds(self.node.stage.name, self.key)

    def waits_for(self, store: Store) -> list[str]:
        """Names of the nodes it reads that are not committed yet."""
        return [
            ref.source.name
            for role, ref in self.node.inputs.items()
            if isinstance(ref.source, Node)
            and not ((key := self.inputs[role].key) and store.manifest(ref.source.stage.name, key))
        ]

    def job(self, store: Store) -> Job[Any]:
        """What the stage module gets.

        Raises:
            AfterglowError: the first of `lacks`.
            ConfigError: the key is unknown because a Hub model is not on this machine.
        """
        for error in self.lacks.values():
            raise error
        if self.key is None:
            raise ConfigError(
                f"{self.node.name}: its key is unknown until its inputs are on this machine; "
                "`afterglow run` downloads models from the Hub"
            )
        return Job(
            stage=self.node.stage.name,
            name=self.node.name,
            key=self.key,
            payload=self.payload,
            config=self._pinned(),
            seed=self.node.seed,
            inputs=self.inputs,
            store=store,
        )

    def _pinned(self) -> StageTable:
        """The table of the node, its data set of the Hub at the commit that is in the key."""
        config = self.node.config
        content = cast("Mapping[str, object]", self.payload.get("content", {}))
        commit, prompts = content.get("commit"), config.prompt_source()
        if commit is None or prompts is None:
            return config
        return config.with_prompts(prompts.model_copy(update={"revision": commit}))


def select(planned: list[Planned], targets: list[str], *, exact: bool) -> list[Planned]:
    """The entries of `planned` that `targets` name; a stage names all of its nodes.

    Args:
        planned: What `targets` and all they need resolve to.
        targets: Names of stages and nodes.
        exact: A name that is both (`teacher-logits`: the stage and its main set) means the node.
    """
    both = {p.node.stage.name for p in planned if not p.node.variant} if exact else set[str]()
    stages = set(targets) - both
    return [p for p in planned if p.node.name in targets or p.node.stage.name in stages]


def resolve(nodes: list[Node], store: Store, *, ready: bool = False) -> list[Planned]:
    """Key, payload and input paths of every node; `nodes` must come in order.

    Args:
        nodes: As `build` or `select` give them.
        store: Where sets live and digests of model files are remembered.
        ready: The nodes are about to run: the Hub may be asked for the commit behind a revision.

    What is not there leaves keys unknown; `Planned.lacks` says why.
    """
    cache = DigestCache(store.digests)
    done: dict[str, Planned] = {}
    for node in nodes:
        done[node.name] = _resolve(node, done, store, cache, ready)
    return list(done.values())


def _resolve(
    node: Node, done: dict[str, Planned], store: Store, cache: DigestCache, ready: bool
) -> Planned:
    payload: fingerprint.Payload = {
        "stage": node.stage.name,
        "version": node.stage.version,
        "storage": FORMAT_VERSION,
        "config": fingerprint.identity(node.config),
        "seed": node.seed,
    }
    inputs: dict[str, Input] = {}
    identities: dict[str, dict[str, object]] = {}
    lacks: dict[str, AfterglowError] = {}
    known = True
    for role, ref in node.inputs.items():
        if isinstance(ref.source, Node):
            key = done[ref.source.name].key
            path = str(store.path(ref.source.stage.name, key)) if key else ""
            identities[role] = {"key": key, "dtype": ref.dtype}
            inputs[role] = Input(path, key, dtype=ref.dtype, store=store)
        else:
            try:
                identities[role], inputs[role] = _external(ref.source, ref.dtype, cache, ready)
            except AfterglowError as error:
                lacks[ref.source.path] = error
                identities[role] = {"path": None}
                inputs[role] = Input(ref.source.path, None, ref.source.revision, ref.dtype)
        known = known and None not in identities[role].values()
    payload["inputs"] = identities
    missing = content_paths(node.config)
    content: dict[str, object] = {}
    try:
        content = content_identity(node.config, cache, ask=ready)
    except (DataError, RetryError) as error:
        lacks[missing] = error
    payload["content"] = content
    known = known and None not in content.values() and not lacks
    if any(value is None for name, value in content.items() if name != "commit"):
        lacks[missing] = DataError(f"{missing}: no such file or directory{_SEEN}{Path.cwd()}")
    made = Planned(node, None, payload, inputs, lacks)
    return replace(made, key=fingerprint.digest(payload)) if known else made


def _external(
    source: External, dtype: str, cache: DigestCache, ready: bool
) -> tuple[dict[str, object], Input]:
    """Identity and input of something that no stage of the plan makes.

    Raises:
        AfterglowError: it is not there, or is not what it should be.
    """
    if source.kind == "set":
        manifest = read_manifest(place(source.path))
        return {"key": manifest.key}, Input(source.path, manifest.key)
    directory = Path(source.path)
    if directory.is_dir():
        found = model_identity(directory, dtype, cache)
        shown: dict[str, object] = {
            "weights": found.weights,
            "tokenizer": found.tokenizer,
            "chat_template": found.chat_template,
            "dtype": dtype,
        }
        return shown, Input(source.path, None, dtype=dtype)
    commit = _hub_commit(source, ready)
    shown = {"hub": source.path, "commit": commit, "dtype": dtype}
    return shown, Input(source.path, None, commit or source.revision, dtype)


def _hub_commit(source: External, ready: bool) -> str | None:
    """Commit a Hub revision stands for: pinned, remembered by the local cache, or asked for.

    Raises:
        ConfigError: there can be no such model on the Hub, or it has none.
        RetryError: the Hub cannot be reached.
    """
    name = source.path
    if not is_hub_id(name):
        raise ConfigError(
            f"{name}: no such directory, and not a Hub id (owner/name){_SEEN}{Path.cwd()}"
        )
    if is_commit(source.revision):
        return source.revision
    from huggingface_hub import constants

    remembered = known_commit(name, source.revision)
    if not ready:
        return remembered
    if constants.HF_HUB_OFFLINE:
        if remembered is None:
            raise ConfigError(
                f"{name}: no such directory, and not a Hub id known here (HF_HUB_OFFLINE is set: "
                f"the Hub is not asked){_SEEN}{Path.cwd()}"
            )
        return remembered
    from huggingface_hub import HfApi

    with asking(name, source.revision, "model", f"Relative paths start at {Path.cwd()}"):
        return HfApi().model_info(name, revision=source.revision).sha
