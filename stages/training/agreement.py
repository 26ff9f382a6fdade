"""Trainer against engine, before the first step.

The rollouts carry the log-probability the engine gave each token. The same model in the trainer
must give the same, or every importance weight and every drift figure is wrong from the start. The
check is cheap and catches what no loss curve shows: positions off by one, another chat template,
another precision, a sampling temperature that was not recorded.
"""

import logging
from collections.abc import Mapping
from functools import partial

import torch
from transformers import PreTrainedModel

from stages.losses.head_loss import head_statistics
from stages.models.model import lm_head, response_hidden
from stages.objectives.tensors import TorchRecords
from stages.training.group import ALONE, Group
from stages.training.microbatches import cut
from storage.batch import Batch
from storage.errors import EngineError
from storage.files.place import Place
from storage.stream import read_split

log = logging.getLogger(__name__)

_SEQUENCES = 8
_BUDGET = 16384
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.1}
"""Largest mean absolute difference in nats; kernels of one model differ far less than mistakes."""


def log_probs(
    model: PreTrainedModel,
    batch: Batch,
    *,
    temperature: float,
    dtype: torch.dtype,
    rows_per_chunk: int,
    group: Group = ALONE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's log-probabilities of the realised tokens, and `ref_lp`, both [T] on the CPU.

    Sequences are spread over the processes of `group` and regrouped into micro-batches; the two
    tensors are in the same order, and hold all sequences in every process.
    """
    own, stored = [torch.zeros(0)], [torch.zeros(0)]
    device = model.device

    def forward(part: Batch, records: TorchRecords) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, dtype == torch.bfloat16):
            hidden_TD = response_hidden(model, part)
            return head_statistics(
                hidden_TD,
                lm_head(model),
                records,
                rows_per_chunk=rows_per_chunk,
                temperature=temperature,
            ).logq_T

    with torch.no_grad():
        share = batch.select(range(group.rank, len(batch), group.size))
        parts = [part for part, _ in cut(share, _BUDGET)]
        for part in parts:
            records = TorchRecords.from_batch(part, device)
            assert records.ref_lp_T is not None, "the caller looks first"
            logq_T = group.unsharded(model, partial(forward, part, records))
            own.append(logq_T.float().cpu())
            stored.append(records.ref_lp_T.float().cpu())
        for _ in range(max(group.all_gather(len(parts))) - len(parts)):
            group.zero_loss(model)
    shares = group.all_gather((torch.cat(own), torch.cat(stored)))
    return torch.cat([share[0] for share in shares]), torch.cat([share[1] for share in shares])


def check_agreement(
    model: PreTrainedModel,
    directory: Place,
    meta: Mapping[str, object],
    *,
    dtype: torch.dtype,
    rows_per_chunk: int,
    group: Group = ALONE,
) -> float | None:
    """Compare the model with the `ref_lp` it left in the set it has written.

    Args:
        model: The policy that wrote the set, as the trainer runs it.
        directory: The set.
        meta: Its manifest's `meta`: `sampling` and `full_support`.
        dtype: bfloat16 runs under autocast and is allowed a wider tolerance.
        rows_per_chunk: Positions whose logits exist at the same time.
        group: The processes that hold the model; they share the sequences.

    Returns:
        Mean absolute difference in nats over the first sequences; None where `ref_lp` is absent or
        belongs to a truncated distribution.

    Raises:
        EngineError: it is above `TOLERANCE`.
    """
    batch = next(read_split(directory, "train"), None)
    sampling = meta.get("sampling")
    if batch is None or batch.ref_lp is None or not isinstance(sampling, Mapping):
        return None
    if not meta.get("full_support"):
        log.info("%s: sampled without full support; trainer and engine not compared", directory)
        return None
    own_T, stored_T = log_probs(
        model,
        batch.select(range(min(_SEQUENCES, len(batch)))),
        temperature=float(sampling["temperature"]),
        dtype=dtype,
        rows_per_chunk=rows_per_chunk,
        group=group,
    )
    difference = float((own_T - stored_T).abs().mean())
    tolerance = TOLERANCE[dtype]
    if not difference <= tolerance:
        raise EngineError(
            f"{directory}: the model that wrote these sequences gives log-probabilities that are "
            f"off by {difference:.3g} nats on average here (tolerance {tolerance:g}; mean "
            f"{float(own_T.mean()):.3g} here, {float(stored_T.mean()):.3g} stored). Look for: "
            "positions off by one, another chat template or special tokens around the prompt, "
            "another dtype than the engine's, a sampling temperature the engine did not apply, or "
            "an engine that runs this architecture differently."
        )
    log.info("%s: trainer and engine agree to %.2g nats per token", directory, difference)
    return difference
