"""Rough sizes of sets that do not exist yet, for `plan`: an upper bound on tokens, bytes about.

Bytes per position were measured on the demo's own sets (`make status`) and, for large vocabularies,
follow the entropy of ids: two bytes an id.
"""

from dataclasses import dataclass

from pipeline.planning.nodes import Node
from stages.config import Expected, PromptSource, Record
from stages.data.prompts import count_prompts

_ID = 2.0
_LOGP32 = 2.6
_LOGP16 = 1.9
_REST = 2.1
_TAU, _DRAWS = 0.023, 50
"""What `Expected.entries` refers to."""


@dataclass(frozen=True)
class Size:
    """Expected size of a set."""

    tokens: int
    bytes: int


def estimate(node: Node) -> Size | None:
    """Expected size of what `node` writes; None where it is not a set of sequences or unknown."""
    expected = _expected(node)
    if expected is None:
        return None
    if isinstance(expected.record, Record):
        each = bytes_per_position(expected.record, expected.entries)
    else:
        each = _ID * (1 + expected.candidates) + _LOGP32 * expected.logp
    return Size(expected.tokens, round(expected.tokens * each))


def _expected(node: Node) -> Expected | None:
    read = _expected(node.data) if isinstance(node.data, Node) else None
    return node.config.expected(_count, read)


def _count(source: PromptSource) -> int | None:
    return source.limit if source.limit is not None else count_prompts(source)


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
