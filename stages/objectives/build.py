"""From the `[train.objective]` table to a function."""

from collections.abc import Mapping
from typing import cast

from stages.config import Loss, Objective
from stages.objectives.f_divergence import JSD, TVD, GhostKL, SkewForwardKL, SkewReverseKL
from stages.objectives.lightning import Lightning
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.mixture import Mixture, Part
from stages.objectives.policy_gradient import PolicyGradient
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.taid import TAID
from stages.objectives.temper import Tempered
from stages.objectives.tensors import ObjectiveFunction


def build_objective(
    config: Objective, record: Mapping[str, object] | None = None
) -> ObjectiveFunction:
    """The function that `config` names; `contract.guarantee` says what it is on which records.

    Args:
        config: The table.
        record: `record` object of the data's manifest: at which temperatures it can be read. None
            where there is no teacher to read.
    """
    function = _mixture(config) if config.name == "mixture" else _single(config, config.temperature)
    recorded = float(cast(float, (record or {}).get("temperature", config.temperature)))
    if recorded == config.temperature:
        return function
    kept = (record or {}).get("loss_temperature")
    return Tempered(function, recorded, normalised=kept == config.temperature)


def _mixture(config: Objective) -> Mixture:
    names = [term.name for term in config.terms]
    parts = [
        Part(
            f"{name}_{index + 1}" if names.count(name) > 1 else name,
            _single(term, config.temperature),
            term.weight,
        )
        for index, (name, term) in enumerate(zip(names, config.terms, strict=True))
    ]
    return Mixture(config.temperature, tuple(parts))


def _single(config: Loss, temperature: float) -> ObjectiveFunction:
    match config.name:
        case "cross_entropy":
            return CrossEntropy(temperature)
        case "forward_kl":
            return ForwardKL(temperature)
        case "ghost_kl":
            return GhostKL(temperature)
        case "jsd":
            return JSD(temperature, config.beta)
        case "skew_forward_kl":
            return SkewForwardKL(temperature, config.alpha)
        case "skew_reverse_kl":
            return SkewReverseKL(temperature, config.alpha)
        case "tvd":
            return TVD(temperature)
        case "taid":
            return TAID(temperature, config.start)
        case "lightning":
            return Lightning(temperature, config.clip)
        case "policy_gradient":
            return PolicyGradient(temperature, config.truncation)
        case "reverse_kl":
            return ReverseKL(temperature, config.form, config.max_weight)
        case "mixture":
            raise ValueError("a mixture is built from its terms")
