"""What the checks look at: the nodes that are still to be made, and what they will read."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from pipeline.planning.node import External, Node
from pipeline.planning.plan import Planned
from pipeline.preflight.known import KnownModel, Models
from stages.config.corpus import Corpus
from stages.config.data import PromptSource
from stages.config.generation import Generate
from stages.data.hub import hub_dataset
from stages.data.longest import longest_prompt
from storage.errors import AfterglowError
from storage.store import Store


class Scope:
    """Nodes to be checked.

    Args:
        planned: Nodes; those that are committed are left out.
        store: Where their sets are.
        beside: Nodes that are not to be checked, but that they may read.
        later: The nodes follow what is about to run.
        elsewhere: Other machines may make them.
        ready: Data sets of the Hub may be downloaded.
    """

    def __init__(
        self,
        planned: Iterable[Planned],
        store: Store,
        beside: Iterable[Planned] = (),
        *,
        later: bool = False,
        elsewhere: bool = False,
        ready: bool = False,
    ) -> None:
        self.store = store
        self._ready = ready
        self._longest: dict[tuple[str, Path], int | None] = {}
        self.later = later
        self.elsewhere = elsewhere or later
        self.planned = list(planned)
        self.known = {one.node.name: one for one in [*beside, *self.planned]}
        """By name: what is checked, and what that reads."""
        self.models = Models(self.known, store)

    @cached_property
    def todo(self) -> list[Planned]:
        """Nodes without a committed set, in order."""
        return [one for one in self.planned if not one.is_made(self.store)]

    def nodes(self, *stages: str) -> Iterator[Node]:
        """The nodes of some stages that are to be made."""
        return (one.node for one in self.todo if one.node.stage.name in stages)

    def origin(self, node: Node) -> Node | None:
        """The generating node behind the sequences or records that `node` reads."""
        source = _source(node)
        while isinstance(source, Node) and not isinstance(source.config, Generate):
            source = _source(source)
        return source if isinstance(source, Node) else None

    def corpus(self, node: Node) -> Corpus | None:
        """The table of the corpus behind the sequences or records that `node` reads."""
        source = _source(node)
        while isinstance(source, Node):
            if isinstance(source.config, Corpus):
                return source.config
            source = _source(source)
        return None

    def model(self, node: Node, role: str) -> KnownModel | None:
        """The model that a node reads as `role`; None if it reads none."""
        return self.models.find(node.inputs[role]) if role in node.inputs else None

    def readable(self, source: PromptSource) -> bool:
        """Whether the rows of a source may be read, which downloads those of the Hub."""
        return self._ready or hub_dataset(source.path) is None

    def longest_prompt(self, source: PromptSource, model: KnownModel) -> int | None:
        """Tokens of the longest prompt, as far as a quick look tells; None: not known yet.

        None, too, where the prompts cannot be used, which another check refuses.
        """
        if model.words is None or not self.readable(source):
            return None
        key = source.model_dump_json(), model.words
        if key not in self._longest:
            try:
                self._longest[key] = longest_prompt(source, model.tokenizer)
            except AfterglowError:
                self._longest[key] = None
        return self._longest[key]


def _source(node: Node) -> Node | External | None:
    corpus = node.inputs.get("corpus")
    return corpus.source if corpus else node.data
