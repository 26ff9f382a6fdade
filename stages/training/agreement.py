"""Trainer against engine, before the first step.

The rollouts carry the log-probability the engine gave each token. The same model in the trainer
must give the same, or every importance weight and every drift figure is wrong from the start. The
check is cheap and catches what no loss curve shows: positions off by one, another chat template,
another precision, a sampling temperature that was not recorded. The tail of the differences is
looked at as well as their mean, in which one token far off (a special token fed otherwise, a stale
cache) vanishes among thousands.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.data import Sampling
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
_QUANTILE = 0.999


class Agreement(NamedTuple):
    """Absolute differences of log-probabilities over all tokens compared, in nats."""

    mean: float
    quantile: float
    """That 99.9 % of the tokens stay below."""
    largest: float


TOLERANCE = {
    torch.float32: Agreement(1e-2, 5e-2, 0.5),
    torch.bfloat16: Agreement(0.1, 1.0, 5.0),
}
"""Largest differences accepted; kernels of one model differ far less than mistakes. In bfloat16 an
unlikely token may be off by a few tenths, and a router that tips over by more."""


class Compared(NamedTuple):
    """T realised tokens: where they are, and what trainer and engine say of them; on the CPU."""

    seq_id_T: torch.Tensor
    position_T: torch.Tensor
    own_T: torch.Tensor
    stored_T: torch.Tensor


def log_probs(
    model: PreTrainedModel,
    batch: Batch,
    *,
    vocab_size: int,
    temperature: float,
    dtype: torch.dtype,
    rows_per_chunk: int,
    group: Group = ALONE,
) -> Compared:
    """The model's log-probabilities of the realised tokens beside `ref_lp`.

    Sequences are spread over the processes of `group` and regrouped into micro-batches; every
    process gets all of them.
    """
    nothing = torch.zeros(0, dtype=torch.long)
    compared = [Compared(nothing, nothing, torch.zeros(0), torch.zeros(0))]
    device = model.device

    def forward(part: Batch, records: TorchRecords) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, dtype == torch.bfloat16):
            hidden_TD = response_hidden(model, part)
            return head_statistics(
                hidden_TD,
                lm_head(model).without_padding(vocab_size),
                records,
                rows_per_chunk=rows_per_chunk,
                temperature=temperature,
            ).logq_T

    with torch.no_grad():
        share = batch.select(range(group.rank, len(batch), group.size))
        parts = [part for part, _ in cut(share, _BUDGET)]
        for part in parts:
            records = TorchRecords.from_batch(part, device)
            stored_T = records.ref_lp_T
            assert stored_T is not None, "the caller looks first"
            # Realised tokens alone are compared; the teacher may know ids that this model lacks.
            records = replace(records, ids_E=records.ids_E.clamp(max=vocab_size - 1))
            logq_T = group.unsharded(model, partial(forward, part, records))
            length_N = np.diff(part.tok_off)
            position_T = np.arange(part.tokens) - np.repeat(part.tok_off[:-1], length_N)
            compared.append(
                Compared(
                    torch.from_numpy(np.repeat(part.seq_id, length_N).astype(np.int64)),
                    torch.from_numpy(position_T.astype(np.int64)),
                    logq_T.float().cpu(),
                    stored_T.float().cpu(),
                )
            )
        for _ in range(max(group.all_gather(len(parts))) - len(parts)):
            group.zero_loss(model)
    shares = group.all_gather(compared)
    return Compared(*map(torch.cat, zip(*(one for share in shares for one in share), strict=True)))


def check_agreement(
    model: PreTrainedModel,
    directory: Place,
    meta: Mapping[str, object],
    *,
    vocab_size: int,
    dtype: torch.dtype,
    rows_per_chunk: int,
    group: Group = ALONE,
) -> Agreement | None:
    """Compare the model with the `ref_lp` it left in the set it has written.

    Args:
        model: The policy that wrote the set, as the trainer runs it.
        directory: The set.
        meta: Its manifest's `meta`: `sampling` and `full_support`.
        vocab_size: Number of the model's ids that mean something, as the engine takes it.
        dtype: bfloat16 runs under autocast and is allowed a wider tolerance.
        rows_per_chunk: Positions whose logits exist at the same time.
        group: The processes that hold the model; they share the sequences.

    Returns:
        The differences over the first sequences; None where `ref_lp` is absent or belongs to
        another distribution than the model's own (truncated, or under penalties).

    Raises:
        EngineError: one of them is above `TOLERANCE`; the token that is furthest off is named.
    """
    batch = next(read_split(directory, "train"), None)
    sampling = meta.get("sampling")
    if batch is None or batch.ref_lp is None or not isinstance(sampling, Mapping):
        return None
    if not meta.get("full_support"):
        log.info("%s: sampled without full support; trainer and engine not compared", directory)
        return None
    if Sampling.model_construct(**sampling).penalised:
        log.info("%s: sampled with penalties; trainer and engine not compared", directory)
        return None
    compared = log_probs(
        model,
        batch.select(range(min(_SEQUENCES, len(batch)))),
        vocab_size=vocab_size,
        temperature=float(sampling["temperature"]),
        dtype=dtype,
        rows_per_chunk=rows_per_chunk,
        group=group,
    )
    if not len(compared.own_T):
        return None
    off_T = (compared.own_T - compared.stored_T).abs().double().nan_to_num(nan=torch.inf)
    rank = math.ceil(_QUANTILE * len(off_T))
    found = Agreement(float(off_T.mean()), float(off_T.kthvalue(rank).values), float(off_T.max()))
    tolerance = TOLERANCE[dtype]
    if any(one > most for one, most in zip(found, tolerance, strict=True)):
        worst = int(off_T.argmax())
        raise EngineError(
            f"{directory}: the model that wrote these sequences gives log-probabilities that are "
            f"off by {found.mean:.3g} nats on average here (tolerance {tolerance.mean:g}), by "
            f"{found.quantile:.3g} at the 99.9 % quantile (tolerance {tolerance.quantile:g}) and "
            f"by {found.largest:.3g} at most (tolerance {tolerance.largest:g}). Furthest off is "
            f"sequence {int(compared.seq_id_T[worst])}, position "
            f"{int(compared.position_T[worst])}: {float(compared.own_T[worst]):.3g} here, "
            f"{float(compared.stored_T[worst]):.3g} stored. {_suspects(found, tolerance)}"
        )
    log.info(
        "%s: trainer and engine agree to %.2g nats per token, %.2g at most",
        directory,
        found.mean,
        found.largest,
    )
    return found


def _suspects(found: Agreement, tolerance: Agreement) -> str:
    """What to look for: a mean that is off has other causes than a few tokens that are."""
    if found.mean <= tolerance.mean:
        return (
            "The mean is within its tolerance, so look at that token: a special or padding token "
            "that is fed otherwise, a cache that gave another prefix, or a kernel that differs at "
            "that length."
        )
    return (
        "Look for: positions off by one, another chat template or special tokens around the "
        "prompt, another dtype than the engine's, a sampling temperature the engine did not "
        "apply, or an engine that runs this architecture differently."
    )
