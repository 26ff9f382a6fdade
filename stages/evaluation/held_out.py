"""One pass of a model over held-out rollouts: its distance from the teacher, and its calibration.

The contexts are those pi_ref visited, on prompts no student trained on; the teacher is read from
its records, not run. Each figure is what the contract of `stages.objectives` says it is, and the
level goes into the metrics with it.

Shape letters: T positions, E entries, D hidden size.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.evaluation.acceptance import acceptance_estimator
from stages.evaluation.averages import CalibrationBins, ClusterMean
from stages.evaluation.positions import LIKELIEST, Seen
from stages.evaluation.scoring import PositionScorer
from stages.losses.head_loss import head_statistics
from stages.models.model import exact_hidden
from stages.objectives.contract import guarantee
from stages.objectives.likelihood import ForwardKL
from stages.objectives.objective import WEAKEST_LAST, Guarantee, Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from stages.progress import advance
from storage.errors import ConfigError
from storage.files.place import Place
from storage.manifest import read_manifest
from storage.stream import read_split

log = logging.getLogger(__name__)

ROWS_PER_CHUNK = 1024
"""Positions whose logits exist at the same time."""


@dataclass(frozen=True)
class Reported:
    """An objective whose value is reported, and what the value is."""

    objective: Objective
    level: Guarantee


def measurable(meta: Mapping[str, object]) -> dict[str, Reported]:
    """The divergences that records of this `meta` can give, each in its best form."""
    record = meta.get("record")
    if not isinstance(record, Mapping):
        return {}
    temperature = float(record.get("temperature", 1.0))
    found: dict[str, Reported] = {}
    for objective in (
        ReverseKL(temperature=temperature),
        ReverseKL(temperature=temperature, form="bucketed"),
        ForwardKL(temperature=temperature),
    ):
        try:
            level = guarantee(objective, meta)
        except ConfigError as refusal:
            log.debug("not reported: %s", refusal)
            continue
        best = found.get(objective.name)
        if best is None or WEAKEST_LAST.index(level.level) < WEAKEST_LAST.index(best.level.level):
            found[objective.name] = Reported(objective, level)
    return found


@torch.inference_mode()
def score_held_out(
    model: PreTrainedModel, directory: Place, *, tokens_per_batch: int, seen: Seen | None = None
) -> dict[str, object]:
    """Divergence from the teacher and calibration over the `holdout` split of a record set.

    Args:
        model: Student, on its device, in the type it is evaluated in.
        directory: A committed set of kind `records`.
        tokens_per_batch: Tokens in one forward pass, padding included.
        seen: Collects the bins of the calibration, and values of the model position by position.

    Returns:
        `reverse_kl`, `forward_kl` (nats per token, at the record's temperature) and
        `record_acceptance` (share of 1; see `stages.evaluation.acceptance`) with `..._se` and
        `..._level`, `ece` (share of 1), `entropy` (nats) and `held_out_tokens`; what the records
        cannot give is absent, and without a held-out split so is everything.
    """
    meta = read_manifest(directory).meta
    reported = measurable(meta)
    temperature = next((one.objective.temperature for one in reported.values()), 1.0)
    acceptance = acceptance_estimator(meta, temperature) if reported else None
    levels: dict[str, str] = {name: one.level.level for name, one in reported.items()}
    if acceptance is not None:
        levels["record_acceptance"] = acceptance.level
    means = {name: ClusterMean() for name in (*levels, "entropy")}
    calibration = CalibrationBins()
    scorer = PositionScorer(meta)
    tokens = 0
    for group in read_split(directory, "holdout"):
        for batch in group.microbatches(tokens_per_batch):
            records = TorchRecords.from_batch(batch, model.device)
            found = head_statistics(
                *exact_hidden(model, batch),
                records,
                rows_per_chunk=ROWS_PER_CHUNK,
                temperature=temperature,
                likeliest=1 if seen is None else LIKELIEST,
            )
            if seen is not None and not seen.positions.full:
                seen.positions.add(batch.seq_id, batch.tok_off, scorer.values(found, records))
            prompt_T = np.repeat(batch.prompt_id, np.diff(batch.tok_off))
            for name, one in reported.items():
                loss_T = one.objective(found.logq_E, found.logq_T, records).loss_T
                means[name].add(_numpy(loss_T), prompt_T)
            if acceptance is not None:
                accepted_T = acceptance(found.logq_E, found.logq_T, records)
                means["record_acceptance"].add(_numpy(accepted_T), prompt_T)
            means["entropy"].add(_numpy(found.entropy_T), prompt_T)
            if "forward_kl" in reported:
                teacher_T = records.weight_of(found.top_T)
                calibration.add(_numpy(found.confidence_T), _numpy(teacher_T))
            tokens += batch.tokens
            advance(batch.tokens)
    if not tokens:
        log.info("%s: no held-out sequences; divergence and calibration are left out", directory)
        return {}
    out: dict[str, object] = {"held_out_tokens": tokens}
    for name, mean in means.items():
        estimate = mean.estimate()
        assert estimate is not None, "there were positions"
        out[name] = estimate.mean
        if name in levels:
            out |= {f"{name}_se": estimate.error, f"{name}_level": levels[name]}
    if "forward_kl" in reported:
        out["ece"] = calibration.error()
        if seen is not None:
            seen.calibration["held-out rollouts"] = calibration.diagram()
    return out


def _numpy(values_T: Tensor) -> np.ndarray:
    return values_T.double().cpu().numpy()
