"""From a recipe to nodes: one per record set, per student, per model to evaluate.

`build` walks the stages of `pipeline.graph` in order. For every table that the recipe has of a
stage it adds a node, and connects it with what the table names or, by default, the graph. For each
further round of a student it makes everything between the policy and that student again. Keys are
the business of `pipeline.planning.plan`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pipeline.graph import BY_NAME, MODELS, STAGES, Stage, downstream
from pipeline.planning.config import Recipe
from pipeline.planning.node import External, Node, Ref, data_among, node_name
from stages.config.data import ModelRef
from stages.config.evaluation import Evaluate, Report
from stages.config.stage import StageTable
from stages.config.training import Student
from stages.reporting.table import STARTS
from storage.errors import ConfigError

_ROUND_SEEDS = 1_000_000
"""Between the seeds of two rounds, so that the rounds of neighbouring seeds share none."""

_MAIN = "[train]"
"""Heading of the table whose student the others are compared with."""


def build(recipe: Recipe) -> list[Node]:
    """All nodes of `recipe`, each after those it reads.

    Raises:
        ConfigError: a reference names nothing, or two tables ask for a set or row of one name.
    """
    return _Builder(recipe).nodes()


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        model = recipe.student or recipe.teacher
        self.student_dtype: Literal["float32", "bfloat16"] = model.dtype if model else "bfloat16"
        self.asked = [(stage, *one) for stage in STAGES for one in recipe.tables(stage)]
        self.made: dict[str, Node] = {}
        self.tables: dict[str, StageTable] = {}
        """The table of each node as the recipe has it; `Node.config` is the completed one."""
        self.started: dict[str, str] = {}
        """By student, the row of the model it started from."""

    def nodes(self) -> list[Node]:
        for stage, variant, heading, table in self.asked:
            if isinstance(table, Evaluate):
                self._evaluate(stage, heading, table)
            elif isinstance(table, Report):
                self._report(stage, heading, table)
            elif stage.refines:
                for node in self._all(stage.refines):
                    inputs = self._inputs(stage, heading, table, node.variant)
                    self._add(stage, node.variant, heading, table, inputs)
            elif not self._has_nothing_to_read(stage, table):
                inputs = self._inputs(stage, heading, table)
                node = self._add(stage, variant, heading, table, inputs)
                if isinstance(table, Student) and table.rounds > 1:
                    self._further_rounds(node, table.rounds)
        return list(self.made.values())

    def _add(
        self,
        stage: Stage,
        variant: str,
        heading: str,
        table: StageTable,
        inputs: Mapping[str, Ref],
        number: int = 1,
    ) -> Node:
        name = node_name(stage.name, variant)
        taken = self.made[name].heading if name in self.made else None
        if stage.name == "train" and (row := self._starting_points().get(variant)):
            taken = row[0]
        if taken:
            raise ConfigError(f"{heading} and {taken} are both called `{variant}`: rename a table")
        for *_, reader in self.asked:
            table = reader.adapted(name.replace(".", ":"), table)
        self.tables[name] = table
        own_seed = getattr(table, "seed", None)
        seed = self.recipe.seed + _ROUND_SEEDS * (number - 1) if own_seed is None else own_seed
        try:
            table = table.completed(_origin(inputs))
        except ValueError as error:
            raise ConfigError(f"{heading}: {error}") from error
        self.made[name] = Node(stage, variant, heading, table, seed, inputs, number)
        return self.made[name]

    def _all(self, stage: str) -> list[Node]:
        return [node for node in self.made.values() if node.stage.name == stage]

    def _latest(self, stage: str, variant: str = "") -> Node | None:
        """A set of a stage or, of the stages that refine it, what the last so far made of it."""
        names = {stage}
        found = self.made.get(node_name(stage, variant))
        for later in STAGES:
            if later.refines in names:
                names.add(later.name)
                found = self.made.get(node_name(later.name, variant), found)
        return found

    # What a node reads.

    def _inputs(
        self, stage: Stage, heading: str, table: StageTable, variant: str = ""
    ) -> dict[str, Ref]:
        """Inputs by role: what the table names or, by default, the graph.

        Args:
            stage: Stage of the node.
            heading: Of its table, for messages.
            table: Its table.
            variant: Which set of the stage that `stage` refines.
        """
        chosen = table.sources()
        inputs: dict[str, Ref] = {}
        for role, (default, *_) in stage.reads.items():
            name = chosen.get(role, default)
            if name is None:
                continue
            if default in MODELS:
                inputs[role] = self._model(name, heading)
            elif role in chosen:
                inputs[role] = Ref(self._set(name, stage, role, heading))
            elif node := self._latest(default, variant if default == stage.refines else ""):
                inputs[role] = Ref(node)
            else:
                raise ConfigError(
                    f"{heading} reads {default}, but the recipe has no [{default}] table"
                )
        return inputs

    def _has_nothing_to_read(self, stage: Stage, table: StageTable) -> bool:
        """Whether a stage that needs no table lacks what the graph makes it read."""
        chosen = table.sources()
        defaults = [sources[0] for role, sources in stage.reads.items() if role not in chosen]
        return table.presence == "implied" and any(
            name not in MODELS and self._latest(name) is None for name in defaults
        )

    def _model(self, name: str, heading: str) -> Ref:
        """One of the models of the graph, or one that a table names."""
        if name == "policy" and (tuned := self._latest("sft")):
            return Ref(tuned, self.student_dtype)
        if name == "teacher":
            model = self.recipe.teacher
        elif name not in MODELS:
            model = ModelRef(path=name, dtype=self.student_dtype)
        else:
            model = self.recipe.student
        if model is None:
            missing, why = (
                ("[teacher]", "would read it")
                if name == "teacher"
                else ("[student]", "would start from it")
            )
            raise ConfigError(f"{missing} is missing: {heading} {why}")
        if model.made_here is None:
            return Ref(External("model", model.path, model.revision), model.dtype)
        if node := self.made.get(node_name(*model.made_here)):
            return Ref(node, model.dtype)
        table = ".".join(model.made_here)
        above = " above it" if heading.startswith("[derive") else ""
        raise ConfigError(
            f"{heading} reads `{model.path}`, but the recipe has no [{table}] table{above}"
        )

    def _set(self, name: str, stage: Stage, role: str, heading: str) -> Node | External:
        """A set that a table names: `stage`, `stage:name` or a directory."""
        maker, _, variant = name.partition(":")
        if node := self.made.get(node_name(maker, variant)):
            if maker in stage.sources(role):
                return node
            known = ", ".join(source for source in BY_NAME if source in stage.sources(role))
            raise ConfigError(f'{heading}: its {role} cannot be "{name}"; give a set of {known}')
        if maker in BY_NAME:
            table = f"{maker}.compare.{variant}" if variant else maker
            raise ConfigError(f'{heading} reads "{name}", but the recipe has no [{table}] table')
        if not (Path(name) / "manifest.json").exists():
            raise ConfigError(
                f'{heading} reads "{name}": neither a stage nor the directory of a committed set '
                "(no manifest.json there)"
            )
        return External("set", name)

    # Rounds.

    def _further_rounds(self, student: Node, rounds: int) -> None:
        """Make again, for each round, all that depends on the policy and that the student reads.

        In a later round, the policy is the student as the round before has left it. All else is
        read as in the first.
        """
        data = student.data
        if not isinstance(data, Node) or not data.depends_on_policy:
            reader, read = (data, data.data) if isinstance(data, Node) else (student, data)
            name = read.name if isinstance(read, Node) else read.path if read else "no sequences"
            raise ConfigError(
                f"{student.heading}: `rounds = {rounds}` needs records of rollouts, but "
                f'{reader.name} reads "{name}"'
            )
        policy = student
        for number in range(2, rounds + 1):
            policy = self._round(student, number, Ref(policy, self.student_dtype))

    def _round(self, student: Node, number: int, policy: Ref) -> Node:
        variant = f"{student.variant}-{number}"
        heading = f"round {number} of {student.heading}"
        again: dict[str, Node] = {}

        def read(role: str, reader: Node) -> Ref:
            ref = reader.inputs[role]
            if reader.reads_policy(role):
                return policy
            if isinstance(ref.source, Node) and ref.source.depends_on_policy:
                return Ref(make(ref.source), ref.dtype)
            return ref

        def make(node: Node) -> Node:
            if node.name not in again:
                inputs = {role: read(role, node) for role in node.inputs}
                if node is student:
                    inputs["init"] = policy
                table = self.tables[node.name].of_round(number)
                again[node.name] = self._add(node.stage, variant, heading, table, inputs, number)
            return again[node.name]

        return make(student)

    # The report and its rows.

    def _starting_points(self) -> dict[str, tuple[str, Ref]]:
        """Models in the report that are no students: heading of the table, and the model."""
        rows: dict[str, tuple[str, Ref]] = {}
        if self.recipe.teacher:
            rows["teacher"] = "[teacher]", self._model("teacher", "[teacher]")
        if self.recipe.student:
            row = "sft" if self._latest("sft") else "reference"
            rows[row] = (f"[{row}]" if row == "sft" else "[student]", self._model("policy", ""))
        return rows

    def _evaluate(self, stage: Stage, heading: str, table: Evaluate) -> None:
        """One evaluation for each model."""
        rows = {name: ref for name, (_, ref) in self._starting_points().items()}
        if not table.teacher:
            rows.pop("teacher", None)
        self._add_starts(rows)
        for node in self._all("train"):
            rows[node.variant] = Ref(
                self._latest("train", node.variant) or node, self.student_dtype
            )
        shared: dict[str, Ref] = {}
        if table.records and (records := self.made.get("teacher-logits")):
            shared["records"] = Ref(records)
        if table.text:
            shared["text"] = Ref(self._set(table.text.data, stage, "text", heading))
        if table.text or table.gradient:
            shared["teacher"] = self._model("teacher", heading)
        if table.gradient and (at := table.gradient.at):
            students = [node.variant for node in self._all("train")]
            if at not in students:
                raise ConfigError(
                    f"evaluate.gradient.at is `{at}`, which is no student; there are "
                    f"{', '.join(students)}"
                )
            shared["at"] = rows[at]
        for name, model in rows.items():
            inputs = {"model": model, **shared}
            if (table.gradient or table.record_bytes) and (data := _records_of(model, stage)):
                inputs["data"] = data
            self._add(stage, name, heading, table, inputs)

    def _add_starts(self, rows: dict[str, Ref]) -> None:
        """Find the row each student started from; a model that has none yet gets one.

        `start` is where the student of `[train]` started; where others started on their own, it is
        `start-` and the name of the first of them.
        """
        students = self._all("train")
        names = {student.variant for student in students}
        for student in sorted(students, key=lambda student: student.heading != _MAIN):
            if (start := student.start) is None:
                continue
            row = next((name for name, ref in rows.items() if ref.source == start.source), None)
            if row is None:
                row = "start" if student.heading == _MAIN else f"start-{student.variant}"
                if row in names:
                    raise ConfigError(
                        f"[train.compare.{row}] has the name of a row of the report, the model "
                        f"that {student.name} starts from: rename the table"
                    )
                rows[row] = start
            self.started[student.variant] = row

    def _report(self, stage: Stage, heading: str, table: Report) -> None:
        """One table over all evaluations; there is none without."""
        names = [node.variant for node in self._all("evaluate")]
        rows = {name: Ref(node) for name in names if (node := self._latest("evaluate", name))}
        if not rows:
            return
        main = next(node.variant for node in self._all("train") if node.heading == _MAIN)
        policy = next((name for name in STARTS if name in names), None)
        shared = self.started.get(main, policy)
        own = {name: row for name, row in self.started.items() if row != shared}
        self._add(
            stage,
            "",
            heading,
            # The policy is the default, which keys from before do not name.
            table.measured_from(None if shared == policy else shared, own),
            rows,
        )


def _origin(inputs: Mapping[str, Ref]) -> StageTable | None:
    """Table of the stage that generated the sequences among `inputs`; None for other sets."""
    source = data_among(inputs)
    while isinstance(source, Node) and (before := source.data):
        source = before
    return source.config if isinstance(source, Node) else None


def _records_of(model: Ref, evaluate: Stage) -> Ref | None:
    """The records a student learnt from; None where it read none, or they were live."""
    data = model.source.inputs.get("data") if isinstance(model.source, Node) else None
    if data and isinstance(data.source, Node):
        return data if data.source.stage.name in evaluate.sources("data") else None
    return data


def readers(nodes: list[Node], read: Iterable[Node]) -> list[str]:
    """Names of the nodes that read those in `read`, directly or through others, in order."""
    found = {node.name for node in read}
    names: list[str] = []
    for node in nodes:  # each comes after those it reads
        if node.name not in found and any(source.name in found for source in node.upstream()):
            found.add(node.name)
            names.append(node.name)
    return names


def select(nodes: list[Node], targets: list[str]) -> list[Node]:
    """The nodes of the target stages (or single nodes by name) and all they need, in order.

    Raises:
        ConfigError: a target is neither a stage nor a node of this recipe.
    """
    wanted: set[str] = set()
    for target in targets:
        stack = [node for node in nodes if target in (node.name, node.stage.name)]
        if not stack:
            known = ", ".join(dict.fromkeys(node.stage.name for node in nodes))
            raise ConfigError(f"`{target}`: this recipe has no such stage; it has {known}")
        while stack:
            node = stack.pop()
            if node.name not in wanted:
                wanted.add(node.name)
                stack += list(node.upstream())
    order = {stage.name: index for index, stage in enumerate(STAGES)}
    last = downstream("train")  # these wait for all rounds

    def turn(node: Node) -> tuple[float, int]:
        return math.inf if node.stage.name in last else node.round, order[node.stage.name]

    return sorted((node for node in nodes if node.name in wanted), key=turn)
