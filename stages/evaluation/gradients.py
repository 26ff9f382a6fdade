"""How far the gradient from records is from the gradient of the teacher's whole distribution.

Both are taken at the same weights on the same batch of held-out sequences: one of the student's
objective on its stored records, one of KL(p || q) with the teacher run beside it. All parameters
count, as one vector. Unbiased records differ from it by noise that shrinks with the batch;
what a biased record is off by stays.
"""

import math
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from stages import progress
from stages.losses.full_teacher import FullTeacher, FullTeacherLoss
from stages.losses.head_loss import RecordLoss
from stages.losses.position_loss import PositionLoss
from stages.models.model import lm_head, response_hidden
from stages.objectives.objective import ObjectiveFunction
from stages.training.microbatches import microbatches
from storage.batch import Batch
from storage.files.place import Place
from storage.stream import Stream

ROWS_PER_CHUNK = 512
"""Positions whose logits exist at the same time."""


@dataclass(frozen=True)
class Measured:
    """Where and on how much the two gradients are taken."""

    model: PreTrainedModel
    """Float32 weights; left as they are, without gradients."""
    teacher: FullTeacher
    batch_size: int
    """Sequences per gradient."""
    batches: int
    """Gradients the figures are means over."""
    tokens_per_batch: int
    """Tokens in one forward pass, padding included."""


def compare_gradients(
    setting: Measured, directory: Place, objective: ObjectiveFunction, seed: int
) -> dict[str, object]:
    """Angle and ratio of norms between the two gradients.

    Args:
        setting: Weights, teacher and sizes.
        directory: A committed record set with a `holdout` split.
        objective: What the student minimises on these records; it aims at KL(p || q).
        seed: Of the order of the sequences.

    Returns:
        `gradient_angle` in degrees and `gradient_norm`, the norm over that of the full gradient,
        means over the batches; `gradient_positions` in one batch, on average.

    Raises:
        DataError: the set holds nothing out.
    """
    angles: list[float] = []
    ratios: list[float] = []
    positions = 0
    losses = (
        RecordLoss(objective, ROWS_PER_CHUNK),
        FullTeacherLoss(setting.teacher, objective.temperature, ROWS_PER_CHUNK),
    )
    with closing(
        Stream(directory, seed=seed, batch_size=setting.batch_size, split="holdout")
    ) as batches:
        for _ in range(setting.batches):
            batch = next(batches)
            ours, full = (_gradient(setting, batch, loss) for loss in losses)
            sizes = math.sqrt(_dot(ours, ours)), math.sqrt(_dot(full, full))
            cosine = _dot(ours, full) / (sizes[0] * sizes[1])
            angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
            ratios.append(sizes[0] / sizes[1])
            positions += batch.tokens
            progress.advance()
    return {
        "gradient_angle": sum(angles) / len(angles),
        "gradient_norm": sum(ratios) / len(ratios),
        "gradient_positions": positions / len(angles),
    }


def _gradient(setting: Measured, batch: Batch, loss: PositionLoss) -> list[Tensor]:
    """Gradient of the mean loss over `batch`, parameter by parameter."""
    model = setting.model
    for part, records in microbatches(batch, setting.tokens_per_batch, model.device):
        hidden_TD = response_hidden(model, part)
        loss(hidden_TD, lm_head(model), part, records, None, batch.tokens)[0].backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
