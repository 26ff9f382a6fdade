"""How far the gradient from records is from the gradient of the teacher's whole distribution.

Both are taken at the same weights on the same batch of held-out sequences: one of the student's
objective on its stored records, one of KL(p || q) with the teacher run beside it. All parameters
count, as one vector. Unbiased records differ from the whole by noise that shrinks with the batch;
what a biased record is off by stays.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from stages.models.model import lm_head, response_hidden
from stages.objectives.full_teacher import FullTeacher, full_forward_kl
from stages.objectives.head_loss import head_loss
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.tensors import TorchRecords
from stages.training.microbatches import microbatches
from storage.batch import Batch
from storage.files.place import Place
from storage.stream import Stream

ROWS_PER_CHUNK = 512
"""Positions whose logits exist at the same time."""

Loss = Callable[[Tensor, Batch, TorchRecords, int], Tensor]
"""Hidden states, sequences, records and positions of the step -> share of the mean loss."""


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
        `gradient_angle` in degrees and `gradient_norm`, the norm over that of the whole gradient,
        means over the batches; `gradient_positions` in one batch, on average.

    Raises:
        DataError: the set holds nothing out.
    """
    angles: list[float] = []
    ratios: list[float] = []
    positions = 0
    losses = _on_records(setting.model, objective), _on_all(setting, objective.temperature)
    with closing(
        Stream(directory, seed=seed, batch_size=setting.batch_size, split="holdout")
    ) as batches:
        for _ in range(setting.batches):
            batch = next(batches)
            ours, whole = (_gradient(setting, batch, loss) for loss in losses)
            sizes = math.sqrt(_dot(ours, ours)), math.sqrt(_dot(whole, whole))
            cosine = _dot(ours, whole) / (sizes[0] * sizes[1])
            angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
            ratios.append(sizes[0] / sizes[1])
            positions += batch.tokens
    return {
        "gradient_angle": sum(angles) / len(angles),
        "gradient_norm": sum(ratios) / len(ratios),
        "gradient_positions": positions / len(angles),
    }


def _on_records(model: PreTrainedModel, objective: ObjectiveFunction) -> Loss:
    def loss(hidden_TD: Tensor, _: Batch, records: TorchRecords, positions: int) -> Tensor:
        return head_loss(
            hidden_TD,
            lm_head(model),
            records,
            objective,
            rows_per_chunk=ROWS_PER_CHUNK,
            normaliser=positions,
        )[0]

    return loss


def _on_all(setting: Measured, temperature: float) -> Loss:
    def loss(hidden_TD: Tensor, part: Batch, _: TorchRecords, positions: int) -> Tensor:
        return full_forward_kl(
            hidden_TD,
            lm_head(setting.model),
            part,
            setting.teacher,
            temperature=temperature,
            rows_per_chunk=ROWS_PER_CHUNK,
            normaliser=positions,
        )[0]

    return loss


def _gradient(setting: Measured, batch: Batch, loss: Loss) -> list[Tensor]:
    """Gradient of the mean loss over `batch`, parameter by parameter."""
    model = setting.model
    for part, records in microbatches(batch, setting.tokens_per_batch, model.device):
        loss(response_hidden(model, part), part, records, batch.tokens).backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
