"""From a recipe to jobs: the nodes of the plan, what each reads, and the key that follows.

`build` expands the stages of `pipeline.graph` into nodes (one per record set, per student, per
model to evaluate), `resolve` gives every node its key. Both are cheap and import neither torch nor
an engine. A key is None while it depends on a Hub model whose commit is not known on this machine
yet.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import fingerprint
from pipeline.config import Recipe
from pipeline.graph import BY_NAME, STAGES, Stage
from stages.config import Corpus, Evaluate, ModelRef, PromptSource, Student, Table, TeacherLogits
from stages.identity import DigestCache, model_identity
from stages.job import Input, Job
from stages.sources import corpus_identity, prompts_identity
from storage.errors import ConfigError, DataError
from storage.manifest import Manifest, read_manifest
from storage.schema import FORMAT_VERSION
from storage.store import Store

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class External:
    """Something a node reads that no stage of this plan makes."""

    kind: str
    """`model` or `set`."""
    path: str
    revision: str = "main"


@dataclass(frozen=True)
class Ref:
    """One input of a node."""

    source: "Node | External"
    dtype: str = "float32"
    """Numeric type a model is loaded in."""


@dataclass(frozen=True)
class Node:
    """One set to be made."""

    stage: Stage
    variant: str
    config: Table
    seed: int
    inputs: Mapping[str, Ref] = field(default_factory=dict[str, Ref])

    @property
    def name(self) -> str:
        """`stage` or `stage.variant`."""
        return f"{self.stage.name}.{self.variant}" if self.variant else self.stage.name

    def upstream(self) -> Iterator["Node"]:
        """The nodes this one reads."""
        for ref in self.inputs.values():
            if isinstance(ref.source, Node):
                yield ref.source


@dataclass(frozen=True)
class Planned:
    """A node with its identity."""

    node: Node
    key: str | None
    """None while a Hub commit is unknown."""
    payload: Mapping[str, object]
    inputs: Mapping[str, Input]

    def directory(self, store: Store) -> Path:
        """Where the set is, or will be."""
        return self.job(store).directory

    def manifest(self, store: Store) -> Manifest | None:
        """The manifest of the committed set, or None."""
        return store.manifest(self.node.stage.name, self.key) if self.key else None

    def job(self, store: Store) -> Job[Any]:
        """What the stage module gets.

        Raises:
            ConfigError: the key is unknown because a Hub model is not on this machine.
        """
        if self.key is None:
            raise ConfigError(
                f"{self.node.name}: its key is unknown until what it reads is on this machine; "
                "`afterglow run` fetches models from the Hub where that can be reached"
            )
        return Job(
            stage=self.node.stage.name,
            name=self.node.name,
            key=self.key,
            payload=self.payload,
            config=self.node.config,
            seed=self.node.seed,
            inputs=self.inputs,
            store=store,
        )


# ---------------------------------------------------------------------------------------------
# Nodes


def build(recipe: Recipe) -> list[Node]:
    """All nodes of `recipe`, each after those it reads.

    Raises:
        ConfigError: a table is missing, or a reference names nothing.
    """
    return _Builder(recipe).nodes()


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.made: dict[str, Node] = {}

    def nodes(self) -> list[Node]:
        recipe = self.recipe
        if recipe.corpus is not None:
            self._add("corpus", "", recipe.corpus)
        for name, table in recipe.pretrain.items():
            self._add("pretrain", name, table, corpus=Ref(self.made["corpus"]))
        teacher = self._model(recipe.teacher)
        reference = self._model(recipe.student) if recipe.student else None
        if recipe.sft_data is not None:
            self._add("sft-data", "", recipe.sft_data, teacher=teacher)
        if recipe.sft is not None and reference is not None:
            data = Ref(self.made["sft-data"])
            self._add("sft", "", recipe.sft, base=reference, sequences=data)
            reference = Ref(self.made["sft"], self._dtype)
        if recipe.rollouts is not None and reference is not None:
            self._add("rollouts", "", recipe.rollouts, model=reference)
        self._teacher_logits(teacher)
        if recipe.residualize is not None:
            records = self._set(recipe.residualize.source, "residualize.source")
            self._add("residualize", "", recipe.residualize, records=records)
        rows = self._students(teacher, reference)
        self._evaluations(teacher, rows)
        return list(self.made.values())

    @property
    def _dtype(self) -> Literal["float32", "bfloat16"]:
        """Numeric type students are loaded in."""
        return (self.recipe.student or self.recipe.teacher).dtype

    def _add(self, stage: str, variant: str, config: Table, **inputs: Ref) -> Node:
        own_seed = getattr(config, "seed", None)
        seed = self.recipe.seed if own_seed is None else own_seed
        node = Node(BY_NAME[stage], variant, config, seed, inputs)
        self.made[node.name] = node
        return node

    def _model(self, ref: ModelRef) -> Ref:
        if ref.pretrained_here is not None:
            return Ref(self.made[f"pretrain.{ref.pretrained_here}"], ref.dtype)
        return Ref(External("model", ref.path, ref.revision), ref.dtype)

    def _set(self, name: str, field_name: str) -> Ref:
        stage, colon, variant = name.partition(":")
        node = f"{stage}.{variant}" if colon else stage
        if node in self.made:
            return Ref(self.made[node])
        if colon and stage in BY_NAME:
            raise ConfigError(
                f'{field_name} = "{name}", but the recipe has no [{stage}.compare.{variant}] table'
            )
        if name in BY_NAME:
            raise ConfigError(f'{field_name} = "{name}", but the recipe has no [{name}] table')
        if not (Path(name) / "manifest.json").exists():
            raise ConfigError(
                f'{field_name} = "{name}": neither a stage nor the directory of a committed set '
                "(no manifest.json there)"
            )
        return Ref(External("set", name))

    def _teacher_logits(self, teacher: Ref) -> None:
        for variant, table in self.recipe.teacher_logits.sets().items():
            if table.source == "rollouts" and self.recipe.rollouts is None:
                continue  # the students train on a set given by its directory
            sequences = self._set(table.source, "teacher-logits.source")
            table = self._with_prompts(table)
            if self.recipe.residualize and self.recipe.residualize.source == _set_name(variant):
                table = table.model_copy(update={"consistency": "warn"})
            self._add("teacher-logits", variant, table, teacher=teacher, sequences=sequences)

    def _with_prompts(self, table: TeacherLogits) -> TeacherLogits:
        """The table with the prompts that the teacher's are made from filled in."""
        asked = table.teacher_prompt
        if asked is None or asked.prompts is not None:
            return table
        made_by = {"rollouts": self.recipe.rollouts, "sft-data": self.recipe.sft_data}
        source = made_by.get(table.source)
        if source is None:
            raise ConfigError(
                f'teacher-logits.source = "{table.source}" does not say where its prompts came '
                "from: set teacher-logits.teacher_prompt.prompts"
            )
        filled = asked.model_copy(update={"prompts": source.prompts})
        return table.model_copy(update={"teacher_prompt": filled})

    def _students(self, teacher: Ref, reference: Ref | None) -> dict[str, Ref]:
        name = "sft" if self.recipe.sft else "reference"
        rows = {name: reference} if reference else {}
        for name, table in self.recipe.train.students().items():
            init = self._init(table, reference)
            inputs = {"init": init} if init else {}
            if table.data == "live":
                records = self._set("teacher-logits", "train.data")
                inputs |= {"records": records, "teacher": teacher}
            else:
                inputs["data"] = self._set(table.data, "train.data")
            node = self._add("train", name, table, **inputs)
            rows[name] = Ref(node, self._dtype)
        return rows

    def _init(self, table: Student, reference: Ref | None) -> Ref | None:
        if table.init == "sft":
            return reference
        if table.init == "scratch":
            if table.architecture is None:
                raise ConfigError('train.init = "scratch" needs [train.architecture]')
            return None
        return self._model(ModelRef(path=table.init, dtype=self._dtype))

    def _evaluations(self, teacher: Ref, rows: dict[str, Ref]) -> None:
        table = self.recipe.evaluate
        if table is None:
            return
        shown = {"teacher": teacher, **rows} if table.teacher else rows
        shared = self._compared_with(table, teacher, rows)
        evaluated: dict[str, Ref] = {}
        for name, model in shown.items():
            inputs = {"model": model, **shared}
            if (table.gradient or table.weight) and (data := _records_of(model)):
                inputs["data"] = data
            evaluated[name] = Ref(self._add("evaluate", name, table, **inputs))
        self._add("report", "", self.recipe.report, **evaluated)

    def _compared_with(self, table: Evaluate, teacher: Ref, rows: dict[str, Ref]) -> dict[str, Ref]:
        """What every evaluation reads beside its model."""
        out: dict[str, Ref] = {}
        records = self.made.get("teacher-logits")
        if table.records and records:
            out["records"] = Ref(records)
        if table.text:
            out["text"] = self._set(table.text.data, "evaluate.text.data")
        if table.text or table.gradient:
            out["teacher"] = teacher
        if table.gradient and table.gradient.at:
            out["at"] = rows[table.gradient.at]
        return out


def _records_of(model: Ref) -> Ref | None:
    """The records a student learnt from; None where it read none, or they were live."""
    if not isinstance(model.source, Node):
        return None
    data = model.source.inputs.get("data")
    if data is None or isinstance(data.source, External):
        return data
    return data if data.source.stage.name == "teacher-logits" else None


def _set_name(variant: str) -> str:
    """How a table names a record set of the recipe."""
    return f"teacher-logits:{variant}" if variant else "teacher-logits"


def select(nodes: list[Node], targets: list[str]) -> list[Node]:
    """The nodes of the target stages (or single nodes by name) and all they need, in order.

    Raises:
        ConfigError: a target is neither a stage nor a node of this recipe.
    """
    wanted: set[str] = set()
    for target in targets:
        found = [node for node in nodes if target in (node.name, node.stage.name)]
        if not found:
            known = ", ".join(dict.fromkeys(node.stage.name for node in nodes))
            raise ConfigError(f"`{target}`: this recipe has no such stage; it has {known}")
        stack = found
        while stack:
            node = stack.pop()
            if node.name not in wanted:
                wanted.add(node.name)
                stack += list(node.upstream())
    order = {stage.name: index for index, stage in enumerate(STAGES)}
    chosen = [node for node in nodes if node.name in wanted]
    return sorted(chosen, key=lambda node: order[node.stage.name])


def named(planned: list[Planned], targets: list[str], *, alone: bool) -> list[Planned]:
    """Those of `planned` that `targets` stand for: a stage means all of its nodes.

    Args:
        planned: What `targets` selected.
        targets: Names of stages and nodes.
        alone: A name that is both (`teacher-logits`: the stage and its main set) means the node.
    """
    both = {p.node.stage.name for p in planned if not p.node.variant} if alone else set[str]()
    stages = set(targets) - both
    return [p for p in planned if p.node.name in targets or p.node.stage.name in stages]


# ---------------------------------------------------------------------------------------------
# Keys


def resolve(nodes: list[Node], store: Store, *, ready: bool = False) -> list[Planned]:
    """Key, payload and input paths of every node; `nodes` must come in order.

    Args:
        nodes: As `build` or `select` give them.
        store: Where sets live and digests of model files are remembered.
        ready: The nodes are about to run: what they read must be there, and the Hub may be asked
            for the commit behind a revision. Otherwise what is not there leaves keys unknown.

    Raises:
        DataError: `ready`, and a file or a model is missing.
    """
    cache = DigestCache(store.root / ".digests.json")
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
    known = True
    for role, ref in node.inputs.items():
        if isinstance(ref.source, Node):
            key = done[ref.source.name].key
            path = str(store.path(ref.source.stage.name, key)) if key else ""
            identities[role] = {"key": key, "dtype": ref.dtype}
            inputs[role] = Input(path, key, dtype=ref.dtype)
        else:
            identities[role], inputs[role] = _external(ref.source, ref.dtype, cache, ready)
        known = known and None not in identities[role].values()
    payload["inputs"] = identities
    content = payload["content"] = _content(node.config, cache)
    if None in content.values():
        if ready:
            raise DataError(f"{node.name}: {_named(node.config)}: no such file or directory")
        known = False
    return Planned(node, fingerprint.digest(payload) if known else None, payload, inputs)


def _external(
    source: External, dtype: str, cache: DigestCache, ready: bool
) -> tuple[dict[str, object], Input]:
    if source.kind == "set":
        manifest = read_manifest(Path(source.path))
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
    """Commit a Hub revision stands for: pinned, remembered by the local cache, or asked for."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source.path):
        raise ConfigError(
            f"{source.path}: no such directory, and not the form of a Hub id (owner/name)"
        )
    if _COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=source.path, repo_type="model")
    remembered = Path(constants.HF_HUB_CACHE) / folder / "refs" / source.revision
    if not ready or constants.HF_HUB_OFFLINE:
        return remembered.read_text().strip() if remembered.exists() else None
    from huggingface_hub import HfApi

    return HfApi().model_info(source.path, revision=source.revision).sha


def _content(table: Table, cache: DigestCache) -> dict[str, object]:
    """Digests of the files a table names; None for a file that is not there."""
    if isinstance(table, Corpus):
        return corpus_identity(table, cache)
    prompts = _prompts(table)
    return prompts_identity(prompts, cache) if prompts else {}


def _named(table: Table) -> str:
    """The files a table names, for a message."""
    if isinstance(table, Corpus):
        return ", ".join(table.text)
    prompts = _prompts(table)
    return str(prompts.path) if prompts else ""


def _prompts(table: Table) -> PromptSource | None:
    """The prompts a table names, if it does."""
    if isinstance(table, TeacherLogits):
        return table.teacher_prompt.prompts if table.teacher_prompt else None
    found = getattr(table, "prompts", None)
    return found if isinstance(found, PromptSource) else None
