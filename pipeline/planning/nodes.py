"""From a recipe to nodes: one per record set, per student, per model to evaluate.

`build` expands the stages of `pipeline.graph` as the recipe asks; what each node reads is another
node or something from outside. Keys are the business of `pipeline.planning.plan`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.graph import BY_NAME, STAGES, Stage
from pipeline.planning.config import Recipe
from stages.config import Evaluate, Generate, ModelRef, Rollouts, Student, Table, TeacherLogits
from storage.errors import ConfigError

_ROUND_SEEDS = 1_000_000
"""Between the seeds of two rounds, so that the rounds of neighbouring seeds share none."""
_AFTER_ROUNDS = {"evaluate", "report"}


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
    round: int = 1
    """The stages up to `train` come around once more in every round; the rest follows the last."""

    @property
    def name(self) -> str:
        """`stage` or `stage.variant`."""
        return f"{self.stage.name}.{self.variant}" if self.variant else self.stage.name

    def upstream(self) -> Iterator["Node"]:
        """The nodes this one reads."""
        for ref in self.inputs.values():
            if isinstance(ref.source, Node):
                yield ref.source


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

    def _add(
        self, stage: str, variant: str, config: Table, number: int = 1, /, **inputs: Ref
    ) -> Node:
        own_seed = getattr(config, "seed", None)
        seed = self.recipe.seed + _ROUND_SEEDS * (number - 1) if own_seed is None else own_seed
        node = Node(BY_NAME[stage], variant, config, seed, inputs, number)
        if node.name in self.made:
            raise ConfigError(
                f"{node.name}: round {number} of a student and another table have the same name; "
                "rename the table"
            )
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
            made_by = {"rollouts": self.recipe.rollouts, "sft-data": self.recipe.sft_data}
            table = _with_prompts(table, made_by.get(table.source))
            if self.recipe.residualize and self.recipe.residualize.source == _set_name(variant):
                table = table.model_copy(update={"consistency": "warn"})
            self._add("teacher-logits", variant, table, teacher=teacher, sequences=sequences)

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
            for number in range(2, table.rounds + 1):
                node = self._next_round(number, name, table, Ref(node, self._dtype), teacher)
                rows[node.variant] = Ref(node, self._dtype)
        return rows

    def _next_round(
        self, number: int, name: str, table: Student, student: Ref, teacher: Ref
    ) -> Node:
        """Rollouts of `student` as it is, their records, and the student after them."""
        scoring = self.recipe.teacher_logits.sets()[table.data.partition(":")[2]]
        if self.recipe.rollouts is None or scoring.source != "rollouts":
            raise ConfigError(
                f"train ({name}): `rounds = {table.rounds}` needs records of rollouts, but "
                f'{table.data} reads "{scoring.source}"'
            )
        variant = f"{name}-{number}"
        rollouts = _of_round(self.recipe.rollouts, number)
        written = self._add("rollouts", variant, rollouts, number, model=student)
        scored = self._add(
            "teacher-logits",
            variant,
            _with_prompts(scoring, rollouts),
            number,
            teacher=teacher,
            sequences=Ref(written),
        )
        return self._add("train", variant, table, number, init=student, data=Ref(scored))

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
            if (table.gradient or table.record_bytes) and (data := _records_of(model)):
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


def _of_round(first: Rollouts, number: int) -> Rollouts:
    """Rollouts of a later round: the prompts that follow; the first round has held out enough."""
    prompts = first.prompts
    if prompts.limit is not None:
        start = prompts.first + prompts.limit * (number - 1)
        prompts = prompts.model_copy(update={"first": start})
    return first.model_copy(update={"prompts": prompts, "holdout": 0.0})


def _with_prompts(table: TeacherLogits, source: Generate | None) -> TeacherLogits:
    """The table with the prompts that the teacher's are made from filled in."""
    asked = table.teacher_prompt
    if asked is None or asked.prompts is not None:
        return table
    if source is None:
        raise ConfigError(
            f'teacher-logits.source = "{table.source}" does not say where its prompts came '
            "from: set teacher-logits.teacher_prompt.prompts"
        )
    filled = asked.model_copy(update={"prompts": source.prompts})
    return table.model_copy(update={"teacher_prompt": filled})


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
    return sorted(chosen, key=lambda node: (_round(node), order[node.stage.name]))


def _round(node: Node) -> float:
    return math.inf if node.stage.name in _AFTER_ROUNDS else node.round
