"""Sums that several processes hold parts of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Gather = Callable[[Any], list[Any]]
"""Takes the value of this process, gives those of all in their order: `Group.gather`."""


def alone(value: T) -> list[T]:
    """What a process without others gathers."""
    return [value]


def add_named(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums by name, numbers, tensors or lists of numbers; a process may lack a name."""
    out: dict[str, Any] = {}
    for one in found:
        for name, value in one.items():
            if name not in out:
                out[name] = value
            elif isinstance(value, list):
                out[name] = [a + b for a, b in zip(out[name], value, strict=True)]
            else:
                out[name] = out[name] + value
    return out
