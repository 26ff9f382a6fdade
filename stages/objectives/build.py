"""From the `[train.objective]` table to a function."""

from stages.config import Objective
from stages.objectives.lightning import Lightning
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.records import ObjectiveFunction
from stages.objectives.reverse_kl import ReverseKL


def build_objective(config: Objective) -> ObjectiveFunction:
    """The function that `config` names; `contract.guarantee` says what it is on which records."""
    match config.name:
        case "cross_entropy":
            return CrossEntropy(config.temperature)
        case "forward_kl":
            return ForwardKL(config.temperature)
        case "lightning":
            return Lightning(config.temperature, config.clip)
        case "reverse_kl":
            return ReverseKL(config.temperature, config.form, config.max_weight)
