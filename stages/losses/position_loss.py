"""What training minimises at the positions of a micro-batch.

The loop knows nothing else of a loss. `head_loss.RecordLoss` reads stored records by an objective;
`full_teacher.FullTeacherLoss` reads the whole distribution of a live teacher.
"""

from typing import Protocol

from torch import Tensor

from stages.models.model import Head
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch


class PositionLoss(Protocol):
    """A loss per position, weighted and summed without a [T, V] tensor of logits."""

    @property
    def temperature(self) -> float:
        """What the student's logits are divided by before the log-softmax."""
        ...

    def at(self, progress: float) -> "PositionLoss":
        """The loss at a share of training between 0 (first step) and 1 (last step)."""
        ...

    def __call__(
        self,
        hidden_TD: Tensor,
        head: Head,
        part: Batch,
        records: TorchRecords,
        weight_T: Tensor | None,
        normaliser: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the loss over T positions, divided by `normaliser`, and statistics.

        Args:
            hidden_TD: The student's final hidden states, one step before each realised token.
            head: The student's head; gradients reach it.
            part: The sequences of these positions.
            records: The same positions on the device.
            weight_T: Factor on the loss of each position, held constant; None weighs all 1. At
                positions of weight zero no logits may be computed.
            normaliser: Positions of the whole optimiser step, over micro-batches and ranks.

        Returns:
            The loss, with its gradient, and detached statistics of the K positions whose weight is
            not zero, [K] each and in order: at least `loss`, before the weight, and `logq`, the
            student's log-probability of the realised token.
        """
        ...
