"""What can be said of a model before it is loaded, or even made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.planning.node import External, Node, Ref
from pipeline.planning.plan import Planned
from stages.config.training import Architecture
from stages.models.descent import TOKENIZER
from stages.models.facts import model_outline
from stages.models.hub import cached_directory
from stages.models.tokenizer import FILES, read_tokenizer
from storage.errors import DataError
from storage.store import Store

_STARTS = ("base", "init", "model")
"""Roles of the model that a stage makes another of."""


@dataclass(frozen=True)
class KnownModel:
    """A model as it will be when a stage reads it."""

    called: str
    """A path, a Hub id, or the node that makes it."""
    context: int | None = None
    """Longest sequence; None where there is no limit, or it is not known."""
    rows: int | None = None
    """Number of logits; None where not known."""
    ends: frozenset[int] = frozenset()
    """Ids that end its responses, beside the end token of its tokenizer."""
    words: Path | None = None
    """Directory of its tokenizer; None where that is not on this machine yet."""
    tuned: bool = False
    """Whether a stage of the recipe trains it on what the teacher wrote or scored."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; `words` must be known.

        Raises:
            DataError: it cannot be read.
        """
        assert self.words is not None
        return read_tokenizer(self.words)

    @property
    def stops(self) -> frozenset[int]:
        """All ids that end its responses; `words` must be known."""
        return self.ends if self.end is None else self.ends | {self.end}

    @property
    def end(self) -> int | None:
        """The end token of its tokenizer; `words` must be known."""
        own = self.tokenizer.eos_token_id
        return own if isinstance(own, int) else None


class Models:
    """The models that a plan reads.

    Args:
        planned: All of its nodes, by name.
        store: Where their sets are.
    """

    def __init__(self, planned: Mapping[str, Planned], store: Store) -> None:
        self._planned = planned
        self._store = store

    def find(self, ref: Ref) -> KnownModel:
        """The model behind an input of a node."""
        source = ref.source
        if isinstance(source, External):
            directory: Path | None = Path(source.path)
            if not directory.is_dir():
                directory = cached_directory(source.path, source.revision)
            return _in_directory(source.path, directory)
        tuned = source.stage.name in ("sft", "train")
        if made := self._made(source):
            return replace(_in_directory(source.name, made), tuned=tuned)
        start = next((source.inputs[role] for role in _STARTS if role in source.inputs), None)
        if start is None:  # from scratch, or from a file
            shape = getattr(source.config, "architecture", None)
            context = shape.max_positions if isinstance(shape, Architecture) else None
            return KnownModel(source.name, context, words=self._words(source))
        found = self.find(start)
        # What learns from the teacher's answers takes over its tokenizer, all else keeps its own.
        words = self._words(source) if source.stage.name == "sft" else found.words
        return replace(found, called=source.name, words=words, tuned=found.tuned or tuned)

    def writer(self, node: Node) -> KnownModel:
        """The model for which a node renders prompts."""
        return self.find(node.inputs.get("model") or node.inputs["teacher"])

    def _made(self, node: Node) -> Path | None:
        """Directory of the committed set of a node, if it is on this machine."""
        planned = self._planned.get(node.name)
        if planned is None or not planned.is_made(self._store):
            return None
        directory = planned.directory(self._store)
        return directory if isinstance(directory, Path) else None

    def _words(self, node: Node) -> Path | None:
        """Directory of the tokenizer that goes with the sequences or the text a node reads."""
        source = node.data or (node.inputs["corpus"].source if "corpus" in node.inputs else None)
        if isinstance(source, Node):
            made = self._made(source)
            if made is None:
                if "teacher" in source.inputs or "model" in source.inputs:
                    return self.writer(source).words
                return self._words(source)
            place = made / TOKENIZER
        elif source is None:
            return None
        else:
            place = Path(source.path) / TOKENIZER
        return place if place.is_dir() else None


def _in_directory(called: str, directory: Path | None) -> KnownModel:
    """The model whose files are in `directory`; unknown where there are none."""
    if directory is None:
        return KnownModel(called)
    words = directory if any((directory / name).exists() for name in FILES) else None
    try:
        outline = model_outline(directory)
    except DataError:
        return KnownModel(called, words=words)
    ends = frozenset(outline.ends)
    return KnownModel(called, outline.context, outline.rows, ends, words)
