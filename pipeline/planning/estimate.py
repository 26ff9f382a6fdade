"""Rough sizes of sets that do not exist yet, for `plan`: an upper bound on tokens, bytes about.

Tokens assume every response runs to `max_tokens`. Bytes per position were measured on the demo's
own sets (`make status`) and, for large vocabularies, follow the entropy of ids: two bytes an id.
"""

from dataclasses import dataclass

from pipeline.planning.config import Recipe
from pipeline.planning.nodes import Node
from stages.config import Corpus, Generate, PromptSource, Record, Residualize, TeacherLogits
from stages.data.prompts import count_prompts

_ID = 2.0
_LOGP32 = 2.6
_LOGP16 = 1.9
_REST = 2.1
# Entries of a record grow with the entropy of the teacher: on web text tau = 0.023 (or 50 draws)
# keeps about 12 ids (published curve of arXiv 2503.16870); on the rollouts of a fine-tuned model,
# where most positions are nearly certain, about 3.
_ENTRIES = {"corpus": 12.0, "sft-data": 3.0, "rollouts": 3.0}
_TAU, _DRAWS = 0.023, 50


@dataclass(frozen=True)
class Size:
    """Expected size of a set."""

    tokens: int
    bytes: int


def estimate(recipe: Recipe, node: Node) -> Size | None:
    """Expected size of what `node` writes; None where it is not a set of sequences or unknown."""
    tokens = _tokens(recipe, node)
    if tokens is None:
        return None
    if isinstance(node.config, TeacherLogits):
        entries = _ENTRIES.get(node.config.source, _ENTRIES["rollouts"])
        return Size(tokens, round(tokens * bytes_per_position(node.config.record, entries)))
    if isinstance(node.config, Residualize):
        return Size(tokens, round(tokens * bytes_per_position(Record(kind="sampled"), 0.0)))
    candidates = int(getattr(node.config, "candidates", 0))
    logp = 0.0 if isinstance(node.config, Corpus) else _LOGP32
    return Size(tokens, round(tokens * (_ID * (1 + candidates) + logp)))


def bytes_per_position(record: Record, entries: float) -> float:
    """Compressed bytes of one position of a record set.

    Args:
        record: What is kept.
        entries: Ids kept at tau = 0.023 without candidates, or in 50 draws.
    """
    base = _ID + 2 * _LOGP32 + _LOGP16 + (_LOGP32 if record.loss_temperature else 0.0)
    drawn = _ID + (_LOGP16 if record.logp else 0.0)
    if record.kind == "sampled":
        return base
    if record.kind == "counts":
        own = entries * (record.draws / _DRAWS) ** 0.63
        return base + record.copies * (0.6 + own * (drawn + 0.2))
    if record.kind == "top_k":
        return base + 0.1 + _REST + record.k * (_ID + _LOGP16)
    # Half of the candidates are in the head anyway.
    forced = 0.5 * record.candidates
    own = entries * _TAU / record.tau if record.tau else max(1.0, (record.entries or 0.0) - forced)
    head, tail = 0.4 * own + forced, 0.6 * own
    return base + 1.2 + _REST + head * (_ID + _LOGP16) + record.copies * tail * drawn


def _tokens(recipe: Recipe, node: Node) -> int | None:
    config = node.config
    if isinstance(config, Generate):
        prompts = _prompts(config.prompts)
        return None if prompts is None else prompts * config.n * config.sampling.max_tokens
    if isinstance(config, TeacherLogits):
        sources = [source for source in node.upstream() if source.stage.name == config.source]
        return _tokens(recipe, sources[0]) if sources else None
    if isinstance(config, Residualize):
        return next((_tokens(recipe, source) for source in node.upstream()), None)
    if isinstance(config, Corpus) and config.task:
        return config.count * config.sequence_length
    return None


def _prompts(source: PromptSource) -> int | None:
    """Number of prompts: the limit where one is set, else what the file holds, if it is here."""
    return source.limit if source.limit is not None else count_prompts(source)
