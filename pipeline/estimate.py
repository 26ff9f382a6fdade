"""Rough sizes of sets that do not exist yet, for `plan`: an upper bound on tokens, bytes about.

Tokens assume every response runs to `max_tokens`. Bytes per position were measured on the demo's
own sets (`make status`) and, for large vocabularies, follow the entropy of ids: two bytes an id.
"""

from dataclasses import dataclass

from stages.prompts import count_prompts

from pipeline.config import Recipe
from pipeline.plan import Node
from stages.config import Corpus, Generate, PromptSource, Record, TeacherLogits

_ID = 2.0
_LOGP32 = 2.6
_LOGP16 = 1.9
# Entries of a head_tail record grow as tau shrinks; at tau = 0.023 text has about 4.5 in the head
# and 7.6 in the tail (published curve of distinct ids, arXiv 2503.16870).
_ENTRIES = 0.276


@dataclass(frozen=True)
class Size:
    """Expected size of a set."""

    tokens: float
    bytes: float


def estimate(recipe: Recipe, node: Node) -> Size | None:
    """Expected size of what `node` writes; None where it is not a set of sequences or unknown."""
    tokens = _tokens(recipe, node)
    if tokens is None:
        return None
    if isinstance(node.config, TeacherLogits):
        return Size(tokens, tokens * bytes_per_position(node.config.record))
    candidates = int(getattr(node.config, "candidates", 0))
    logp = 0.0 if isinstance(node.config, Corpus) else _LOGP32
    return Size(tokens, tokens * (_ID * (1 + candidates) + logp))


def bytes_per_position(record: Record) -> float:
    """Compressed bytes of one position of a record set."""
    base = _ID + 2 * _LOGP32 + _LOGP16
    if record.kind == "sampled":
        return base
    if record.kind == "counts":
        distinct = record.draws**0.63
        return base + 0.6 + distinct * (_ID + 0.2)
    entries = _ENTRIES / record.tau + 0.5 * record.candidates
    head = 0.37 * entries + 0.5 * record.candidates
    return base + 1.2 + _LOGP32 + entries * _ID + head * _LOGP16


def _tokens(recipe: Recipe, node: Node) -> float | None:
    config = node.config
    if isinstance(config, Generate):
        prompts = _prompts(config.prompts)
        return None if prompts is None else prompts * config.n * config.sampling.max_tokens
    if isinstance(config, TeacherLogits):
        sources = [source for source in node.upstream() if source.stage.name == config.source]
        return _tokens(recipe, sources[0]) if sources else None
    if isinstance(config, Corpus) and config.task:
        return float(config.count * config.sequence_length)
    return None


def _prompts(source: PromptSource) -> int | None:
    """Number of prompts: the limit where one is set, else what the file holds, if it is here."""
    return source.limit if source.limit is not None else count_prompts(source)
