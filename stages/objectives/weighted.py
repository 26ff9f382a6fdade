"""What weights need of the data, and what they make of the loss that they multiply.

A weight may look at the student, at what the record holds without chance and at the place; then an
unbiased gradient stays one, for the weighted loss. One that looks at what was realised makes
another objective of it, and `contract` lowers losses that correct by the realised token. What is
refused here would be neither.
"""

from collections.abc import Mapping
from typing import cast

from stages.weights.base import Weight
from storage.errors import ConfigError
from storage.kinds import KINDS


def weighted(weights: tuple[Weight, ...], *, by_token: bool) -> str:
    """What weights and routing make of the loss that a reason speaks of; empty without them."""
    counted = f"; weighted by {', and by '.join(one.reason for one in weights)}" if weights else ""
    if by_token:
        counted += ". This is another objective: what was realised decides which contexts count"
    return counted


def check_weights(
    weights: tuple[Weight, ...],
    readers: list[str],
    temperature: float,
    meta: Mapping[str, object],
) -> None:
    """Check that a set has what the weights read, and that they may multiply the loss.

    Args:
        weights: The `[[train.weights]]` tables.
        readers: The terms of the loss that read the ids drawn for the record, by their labels.
        temperature: Of the objective.
        meta: Of the set's manifest: `record` and `sampling`.

    Raises:
        ConfigError: a weight and a term read the same draw; nobody drew the tokens, of which a
            weight reads the probability, or at another temperature than that of the student it is
            compared with; the records do not have what a weight reads.
    """
    record = cast("Mapping[str, object] | None", meta.get("record"))
    sampling = cast("Mapping[str, object]", meta.get("sampling") or {})
    for weight in weights:
        if weight.reads == "draw" and readers:
            raise ConfigError(
                f"train.weights: `{weight.name}` is estimated from the drawn ids that "
                f"{readers[0]} reads too, so that their product is biased. Use a weight "
                "of what the record holds exactly, or an objective that reads no drawn ids."
            )
        _check_policy(weight, temperature, sampling)
        _check_record(weight, temperature, record)


def check_weights_without_record(weights: tuple[Weight, ...]) -> None:
    """Check weights where the teacher is run and nothing of it is recorded.

    Raises:
        ConfigError: a weight reads the record.
    """
    for weight in weights:
        if weight.reads_record != "nothing":
            raise ConfigError(
                f"train.weights: `{weight.name}` reads the teacher's record, and live = "
                '"full" makes none. Set live = "record", or remove the weight.'
            )


def _check_policy(weight: Weight, temperature: float, sampling: Mapping[str, object]) -> None:
    """The student and the policy that drew the tokens are compared at one temperature."""
    if weight.reads_groups and not sampling:
        raise ConfigError(
            f"train.weights: `{weight.name}` compares responses by the probability with which they "
            "were drawn, and the tokens were not drawn by a model. Train on records of rollouts, "
            "or remove the weight."
        )
    drawn_at = sampling.get("temperature", 1.0) if sampling else None
    if weight.reads_policy and drawn_at != temperature:
        found = (
            "the tokens were not drawn by a model"
            if drawn_at is None
            else f"the tokens were drawn at temperature {drawn_at}, and the objective has the "
            f"student at {temperature}"
        )
        raise ConfigError(
            f"train.weights: `{weight.name}` compares the student with the policy that drew "
            f"the tokens, but {found}. Train on records of rollouts that were sampled at "
            "`objective.temperature`, or remove the weight."
        )


def _check_record(weight: Weight, temperature: float, record: Mapping[str, object] | None) -> None:
    """A weight reads the record as it was made, and the student at the objective's temperature."""
    wanted = weight.reads_record
    if wanted == "nothing":
        return
    if record is None:
        raise ConfigError(
            f"train.weights: `{weight.name}` reads the teacher's record, and the set holds tokens "
            'only. Train on records (data = "teacher-logits"), or remove the weight.'
        )
    kind = str(record["kind"])
    if wanted == "head" and not KINDS[kind].head:
        kinds = " or ".join(name for name, one in KINDS.items() if one.head)
        raise ConfigError(
            f"train.weights: `{weight.name}` compares student and teacher at the ids that a record "
            f"holds exactly, and `{kind}` records hold none. Use records of kind {kinds}, or "
            "remove the weight."
        )
    recorded = record.get("temperature", 1.0)
    if recorded != temperature:
        raise ConfigError(
            f"train.weights: `{weight.name}` reads the teacher as it was recorded, at temperature "
            f"{recorded}, and the objective has the student at {temperature}. Set "
            "`objective.temperature` to the record's, or remove the weight."
        )
