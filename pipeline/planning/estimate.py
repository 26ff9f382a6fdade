"""Rough sizes of sets that do not exist yet, for `plan`: an upper bound on tokens, bytes about.

Bytes per position were measured on the demo's own sets (`make status`) and, for large vocabularies,
follow the entropy of ids: two bytes an id.
"""

from dataclasses import dataclass

from pipeline.planning.nodes import Node
from stages.config.data import PromptSource
from stages.config.record_kinds import Drawn, Record
from stages.config.stage import Expected
from stages.data.prompts import count_prompts

_ID = 2.0
_LOGP32 = 2.6
_LOGP16 = 1.9
_REST = 2.1
_COUNT = 0.2
_LENGTH = 0.6  # `nu` or `nh`, where positions differ in it


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
    kind, (head, drawn) = record.stores, record.ids_per_position(entries)
    size = base + _REST * kind.head + head * (_ID + _LOGP16)
    if isinstance(record, Drawn):
        each = _ID + _COUNT * kind.counts + _LOGP16 * record.logp
        size += _LENGTH * (record.copies + kind.head) + record.copies * drawn * each
    return size
