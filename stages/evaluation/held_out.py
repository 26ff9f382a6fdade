"""One pass of a model over held-out rollouts: how far from the teacher it is, and how calibrated.

The contexts are those pi_ref visited, on prompts no student trained on; the teacher is read from
its records, not run. Each figure is what the contract of `stages.objectives` says it is, and the
level goes into the metrics with it.

Shape letters: T positions, E entries, D hidden size.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.evaluation.averages import CalibrationBins, ClusterMean
from stages.losses.head_loss import head_statistics
from stages.models.model import lm_head, response_hidden
from stages.objectives.contract import guarantee
from stages.objectives.likelihood import ForwardKL
from stages.objectives.objective import WEAKEST_LAST, Guarantee, Objective, ObjectiveFunction
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch
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


@dataclass
class _Sums:
    means: dict[str, ClusterMean] = field(default_factory=dict[str, ClusterMean])
    calibration: CalibrationBins | None = None
    positions: int = 0


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
    model: PreTrainedModel, directory: Place, *, tokens_per_batch: int
) -> dict[str, object]:
    """Divergence from the teacher and calibration over the `holdout` split of a record set.

    Args:
        model: Student, on its device, in the type it is evaluated in.
        directory: A committed set of kind `records`.
        tokens_per_batch: Tokens in one forward pass, padding included.

    Returns:
        `reverse_kl`, `forward_kl` (nats per token, at the record's temperature) with `..._se` and
        `..._level`, `ece` (share of 1), `entropy` (nats) and `held_out_tokens`; what the records
        cannot give is absent, and without a held-out split so is everything.
    """
    meta = read_manifest(directory).meta
    reported = measurable(meta)
    functions = {name: j.objective for name, j in reported.items()}
    temperature = next((f.temperature for f in functions.values()), 1.0)
    sums = _Sums(calibration=CalibrationBins() if "forward_kl" in reported else None)
    for group in read_split(directory, "holdout"):
        for batch in group.microbatches(tokens_per_batch):
            _add(sums, model, batch, functions, temperature)
    if not sums.positions:
        log.info("%s: no held-out sequences; divergence and calibration are left out", directory)
        return {}
    return _summary(sums, reported)


def _add(
    sums: _Sums,
    model: PreTrainedModel,
    batch: Batch,
    functions: Mapping[str, ObjectiveFunction],
    temperature: float,
) -> None:
    """Run the model over one micro-batch and add its figures."""
    records = TorchRecords.from_batch(batch, model.device)
    hidden_TD, head = response_hidden(model, batch), lm_head(model)
    if hidden_TD.device.type == "cpu":
        # A CPU would round the logits of a 16-bit model; a GPU keeps them in float32.
        hidden_TD, head = hidden_TD.float(), head.in_float32()
    found = head_statistics(
        hidden_TD,
        head,
        records,
        rows_per_chunk=ROWS_PER_CHUNK,
        temperature=temperature,
    )
    values = {name: f(found.logq_E, found.logq_T, records).loss_T for name, f in functions.items()}
    prompt_T = np.repeat(batch.prompt_id, np.diff(batch.tok_off))
    for name, values_T in {**values, "entropy": found.entropy_T}.items():
        sums.means.setdefault(name, ClusterMean()).add(_numpy(values_T), prompt_T)
    if sums.calibration is not None:
        teacher_T = records.weight_of(found.top_T)
        sums.calibration.add(_numpy(found.confidence_T), _numpy(teacher_T))
    sums.positions += batch.tokens


def _numpy(values_T: Tensor) -> np.ndarray:
    return values_T.double().cpu().numpy()


def _summary(sums: _Sums, reported: Mapping[str, Reported]) -> dict[str, object]:
    out: dict[str, object] = {"held_out_tokens": sums.positions}
    for name, mean in sums.means.items():
        estimate = mean.estimate()
        assert estimate is not None, "there were positions"
        out[name] = estimate.mean
        if name in reported:
            out |= {f"{name}_se": estimate.error, f"{name}_level": reported[name].level.level}
    if sums.calibration is not None:
        out["ece"] = sums.calibration.error()
    return out
