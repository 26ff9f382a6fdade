"""One pass of a model over held-out text: its loss, its calibration, and how close to the teacher.

The text is the held-out split of a set of sequences. The teacher is run beside the model and its
whole distribution is read, so every figure is exact on this text.

Shape letters: T positions, C positions of a chunk, V real ids of the teacher, W rows of the head.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages import progress
from stages.evaluation.averages import CalibrationBins, ClusterMean
from stages.evaluation.positions import Seen
from stages.losses.full_teacher import FullTeacher
from stages.models.model import exact_hidden
from storage.batch import Batch
from storage.errors import DataError
from storage.files.place import Place
from storage.stream import read_split

ROWS_PER_CHUNK = 512
"""Positions whose logits, of model and teacher, exist at the same time."""


@torch.inference_mode()
def score_text(
    model: PreTrainedModel,
    directory: Place,
    teacher: FullTeacher | None,
    *,
    sequences: int | None,
    tokens_per_batch: int,
    seen: Seen | None = None,
) -> dict[str, object]:
    """What the model makes of the `holdout` split of a set of sequences.

    Args:
        model: In evaluation mode, on its device, in the type it is evaluated in.
        directory: A committed set of sequences or records; only its tokens are read.
        teacher: On the same device; None leaves out the comparison.
        sequences: Read at most this many, in order; None reads all.
        tokens_per_batch: Tokens in one forward pass, padding included.
        seen: Collects the bins of the calibration.

    Returns:
        `text_loss` (-log q of the token, in nats), `text_ece` (confidence against hits, a share of
        1; Guo et al. 2017, arXiv 1706.04599), and with a teacher `acceptance` (1 - TVD: the chance
        that a token the model proposes passes speculative sampling, arXiv 2211.17192) and
        `text_kl` (KL(p || q), nats); means over tokens, each with `..._se` over sequences, and
        `text_tokens`.

    Raises:
        DataError: the set holds nothing out.
    """
    sums: dict[str, ClusterMean] = {}
    calibration = CalibrationBins()
    tokens = 0
    for batch in _batches(directory, sequences, tokens_per_batch):
        found = _figures(model, batch, teacher)
        calibration.add(found.pop("confidence"), found.pop("hit"))
        sequence_T = np.repeat(batch.seq_id, np.diff(batch.tok_off))
        for name, values_T in found.items():
            sums.setdefault(name, ClusterMean()).add(values_T, sequence_T)
        tokens += batch.tokens
        progress.advance(batch.tokens)
    if not tokens:
        raise DataError(
            f"{directory}: no held-out sequences to evaluate models on. Set `holdout` of the stage "
            "that makes it, or remove [evaluate.text]."
        )
    out: dict[str, object] = {"text_tokens": tokens, "text_ece": calibration.error()}
    if seen is not None:
        seen.calibration["held-out text"] = calibration.diagram()
    for name, mean in sums.items():
        estimate = mean.estimate()
        assert estimate is not None, "there were tokens"
        out |= {name: estimate.mean, f"{name}_se": estimate.error}
    return out


def _batches(directory: Place, sequences: int | None, budget: int) -> Iterator[Batch]:
    left = sequences
    for group in read_split(directory, "holdout"):
        batch = group if left is None else group.select(range(min(left, len(group))))
        yield from batch.microbatches(budget)
        if left is not None:
            left -= len(batch)
            if not left:
                return


def _figures(
    model: PreTrainedModel, batch: Batch, teacher: FullTeacher | None
) -> dict[str, np.ndarray]:
    """[T] values of every figure."""
    hidden_TD, head = exact_hidden(model, batch)
    tok_T = torch.from_numpy(batch.tok).to(model.device)
    teacher_TD = None if teacher is None else teacher.hidden(batch)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(tok_T), ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        tok_C = tok_T[chunk]
        logq_CW = head.logits(hidden_TD[chunk]).log_softmax(dim=-1)
        best_C, top_C = logq_CW.max(dim=-1)
        values = {
            "text_loss": -logq_CW.gather(1, tok_C[:, None]).squeeze(1),
            "confidence": best_C.exp(),
            "hit": (top_C == tok_C).float(),
        }
        if teacher is not None and teacher_TD is not None:
            # The teacher has no mass on the model's padding rows.
            logp_CV = teacher.logp(teacher_TD[chunk])
            p_CV, logq_CV = logp_CV.exp(), logq_CW[:, : logp_CV.shape[1]]
            values["acceptance"] = torch.minimum(p_CV, logq_CV.exp()).sum(dim=-1)
            values["text_kl"] = (p_CV * (logp_CV - logq_CV)).sum(dim=-1)
        for name, value_C in values.items():
            found.setdefault(name, []).append(value_C)
    return {name: torch.cat(chunks).double().cpu().numpy() for name, chunks in found.items()}
