"""The losses of TRL's distillation trainers on the tensors of a training step.

The trainers themselves add generation, logging and the teacher's own forward pass; what is compared
is the part that takes the place of ours. TRL is no dependency of the project.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GKD = "TRL GKD, reverse KL"
DISTILLATION = "TRL distillation, reverse KL"


def installed() -> tuple[str, ...]:
    """Names of the losses; none without TRL."""
    return (GKD, DISTILLATION) if importlib.util.find_spec("trl") else ()


def load() -> None:
    """Import what there is, which takes a while: TRL imports vLLM."""
    if installed():
        gkd()
        distillation()


def gkd() -> Callable[[Tensor, Tensor], Tensor]:
    """Generalised JSD at beta = 1 over whole logits of student and teacher, [1, T, V] each."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer: Any = importlib.import_module("trl.experimental.gkd").GKDTrainer
    return lambda student_TV, teacher_TV: trainer.generalized_jsd_loss(
        student_TV[None], teacher_TV[None], labels=None, beta=1.0
    )


def distillation() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same divergence in chunks, from hidden states and heads of student and teacher.

    Arguments of the function: student [T, D] and [V, D], teacher [T, H] and [V, H].
    """
    module: Any = importlib.import_module("trl.trainer.distillation_trainer")

    def loss(hidden_TD: Tensor, head_VD: Tensor, teacher_TH: Tensor, teacher_VH: Tensor) -> Tensor:
        every = torch.ones(1, len(hidden_TD), dtype=torch.long)
        return module._chunked_divergence_loss(
            hidden_TD[None], teacher_TH[None], head_VD, teacher_VH, every, beta=1.0
        )[0]

    return loss
