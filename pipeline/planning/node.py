"""A node: one set to be made, and what it reads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.graph import Stage
from stages.config.stage import StageTable


@dataclass(frozen=True)
class External:
    """Something a node reads that no stage of this plan makes."""

    kind: str
    """`model` or `set`."""
    path: str
    """A directory or, of a model, a Hub id."""
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
    """Which set of the stage; the main one is called ""."""
    heading: str
    """What asks for it: a table of the recipe, as in TOML, or a round of a student."""
    config: StageTable
    seed: int
    inputs: Mapping[str, Ref] = field(default_factory=dict[str, Ref])
    round: int = 1
    """The stages up to `train` come around once more in every round; the rest follows the last."""

    @property
    def name(self) -> str:
        """`stage` or `stage.variant`."""
        return node_name(self.stage.name, self.variant)

    def upstream(self) -> Iterator["Node"]:
        """The nodes this one reads."""
        for ref in self.inputs.values():
            if isinstance(ref.source, Node):
                yield ref.source

    @property
    def data(self) -> "Node | External | None":
        """The set of sequences or records that this node reads, if it reads one."""
        return data_among(self.inputs)

    @property
    def start(self) -> Ref | None:
        """Of a student, the model it started its first round from; None for one from scratch."""
        start = self.inputs.get("init")
        while start and isinstance(start.source, Node) and start.source.stage is self.stage:
            start = start.source.inputs.get("init")
        return start

    def reads_policy(self, role: str) -> bool:
        """Whether the graph has the policy in this role."""
        return self.stage.reads[role][0] == "policy"

    @property
    def depends_on_policy(self) -> bool:
        """Whether it reads the policy, directly or through others."""
        return any(self.reads_policy(role) for role in self.inputs) or any(
            source.depends_on_policy for source in self.upstream()
        )


def node_name(stage: str, variant: str) -> str:
    """`stage` or `stage.variant`."""
    return f"{stage}.{variant}" if variant else stage


def data_among(inputs: Mapping[str, Ref]) -> Node | External | None:
    """The set of sequences or records among inputs by role, if there is one."""
    roles = ("sequences", "records", "data")
    return next((inputs[role].source for role in roles if role in inputs), None)
