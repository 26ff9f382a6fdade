"""The processes that train one model together; most often it is one.

The loop asks a `Group` for everything in which several processes differ from one. `Group` itself is
the single process: nothing is exchanged, and no torch is imported.
`stages.training.distributed` has the other kind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

T = TypeVar("T")


class Group:
    """A process that trains alone."""

    rank = 0
    """Number of this process."""
    size = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this process writes metrics, model and manifest."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """The `value` of every process, in their order. Plain values; every process must call."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The `value` of the first process; every process must call."""
        return self.all_gather(value)[0]

    def build(
        self,
        make: Callable[[torch.device], PreTrainedModel],
        device: torch.device,
        dtype: torch.dtype,
    ) -> PreTrainedModel:
        """The model that `make` puts on a device, ready to be trained by the group.

        Args:
            make: Makes float32 weights; the same ones in every process.
            device: What each process trains on.
            dtype: bfloat16 where the passes run under autocast.
        """
        return make(device)

    def unsharded(self, model: PreTrainedModel, action: Callable[[], T]) -> T:
        """Run a forward pass in which every weight of `model` can be read, head included.

        Every process must call it equally often, and go backward through the result or not.
        """
        return action()

    def zero_loss(self, model: PreTrainedModel) -> Tensor:
        """A loss of zero whose gradient is zero, for a process that has no more sequences."""
        raise AssertionError("a process alone never waits for another")

    def full_model(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel | None:
        """The model with whole weights, of type `dtype` if they had to be copied for it.

        None but in the first process.
        """
        return model

    def fail_if_peer_lost(self) -> AbstractContextManager[None]:
        """A block that ends with a clear error should another process be gone.

        Raises:
            RetryError: it is.
        """
        return nullcontext()


ALONE = Group()
