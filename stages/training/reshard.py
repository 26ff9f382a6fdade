"""The state of a training run, cut over any number of processes and put together for any other.

Every tensor that is cut is cut along its first dimension, evenly but for the last processes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from stages.training.checkpoint import State
from stages.training.group import Group
from stages.training.sums import add_named

CUT = "cut"
"""Entry of a saved state: the places of the tensors of which it holds some rows only."""

Place = tuple[str | int, ...]
"""Keys that lead to a tensor in a state."""


@dataclass(frozen=True)
class Left:
    """A checkpoint as its processes left it; tensors are read when they are looked at."""

    step: int
    states: list[State]
    """In the order of the processes; one, without cut tensors, if it was a single one."""

    def joined(self) -> State:
        """The state of a single process: every tensor whole."""
        return self._rebuilt(rank=0, size=1, wrap=lambda place, rows: rows.whole())

    def taken(self, group: Group, shards: "Mapping[Place, Any]") -> State:
        """The state of one process of `group`.

        Args:
            group: The processes that go on.
            shards: By place, the DTensor that shows how the tensor there is cut now.
        """

        def wrap(place: Place, rows: "Rows") -> Tensor:
            like = shards.get(place)
            return rows.whole() if like is None else rows.as_shard(like, group)

        return self._rebuilt(group.rank, group.size, wrap)

    def _rebuilt(self, rank: int, size: int, wrap: "Callable[[Place, Rows], Tensor]") -> State:
        first = self.states[0]
        own = self.states[rank % len(self.states)]
        out: State = {name: first[name] for name in ("step", "source")}
        out["random"] = own["random"]
        for name in ("model", "optimiser"):
            out[name] = _mapped(
                first[name],
                (name,),
                lambda place, _: wrap(place, self._rows(place)),
            )
        if size == len(self.states):
            return out | {name: own[name] for name in ("window", "guard")}
        return out | _summed(self.states if rank == 0 else [], self.states[0])

    def _rows(self, place: Place) -> "Rows":
        pieces = [_at(state, place) for state in self.states]
        return Rows(pieces, place in self.states[0].get(CUT, []))


@dataclass(frozen=True)
class Rows:
    """A tensor of which several files hold some rows each, or all of them the same."""

    pieces: list[Tensor]
    cut: bool

    def whole(self) -> Tensor:
        """All rows."""
        return torch.cat(self.pieces) if self.cut and len(self.pieces) > 1 else self.pieces[0]

    def as_shard(self, like: Any, group: Group) -> Any:
        """The rows of this process, cut as the DTensor `like` is: evenly but for the last ones."""
        from torch.distributed.tensor import DTensor

        start = group.rank * -(-like.shape[0] // group.size)
        return DTensor.from_local(
            self.between(start, start + len(like.to_local())).to(like.device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def between(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, from the pieces that have some of them."""
        found: list[Tensor] = []
        first = 0
        for piece in self.pieces if self.cut else self.pieces[:1]:
            a, b = max(start - first, 0), min(stop - first, len(piece))
            if a < b:
                found.append(piece[a:b])
            first += len(piece)
        return torch.cat(found) if found else self.pieces[0][:0]


def local(state: State) -> State:
    """What of `state` lies in this process, and under `CUT` the places of what is cut."""
    cut: list[Place] = []

    def own(place: Place, value: Tensor) -> Tensor:
        if not hasattr(value, "to_local"):
            return value
        cut.append(place)
        return cast(Any, value).to_local()

    return {name: _mapped(value, (name,), own) for name, value in state.items()} | {CUT: cut}


def _mapped(tree: Any, place: Place, change: Callable[[Place, Tensor], Any]) -> Any:
    """A copy of nested dictionaries and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(place, tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, (*place, key), change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, (*place, i), change) for i, value in enumerate(tree)]
    return tree


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _summed(states: list[State], any_state: State) -> State:
    """Sums since the last log line and the last verdict on drift, over the given processes."""
    windows = [state["window"] for state in states]
    drift = [state["guard"]["sums"] for state in states if state["guard"]["sums"] is not None]
    return {
        "window": {
            "sums": add_named([window["sums"] for window in windows]),
            "positions": sum(window["positions"] for window in windows),
        },
        "guard": {
            "sums": torch.stack(drift).sum(dim=0) if drift else None,
            "state": any_state["guard"]["state"],
        },
    }


def places(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[Place, Any]:
    """The places in a state of everything that is cut, with the DTensor that shows how."""
    out: dict[Place, Any] = {
        ("model", name): value
        for name, value in model.state_dict().items()
        if hasattr(value, "to_local")
    }
    weights: Iterator[Any] = (w for part in optimiser.param_groups for w in part["params"])
    for index, weight in enumerate(weights):
        if hasattr(weight, "to_local"):
            for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                out["optimiser", "state", index, moment] = weight
    return out
