"""Hidden states -> head in chunks -> records of whole sequences.

The teacher's body runs once over each sequence; the head is applied to `rows_per_chunk` response
positions at a time and a chunk of logits becomes records before the next one is made. A
[tokens, vocabulary] matrix never exists. Logits on a CPU go through the numba kernels, logits on a
GPU through torch; only records leave the device.

Shape letters: N sequences, T positions, R rows of a chunk, D hidden size, V vocabulary, W rows of
the head (V plus padding), C candidates, U uniforms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.record_kinds import Record
from stages.models.model import Head, check_head, context_length, lm_head, response_hidden
from stages.scoring import sampler
from stages.scoring.drawn import Array, BadRow, Records, concat
from stages.scoring.philox import uniforms
from storage.errors import SequenceError
from storage.rows import Rows, gather, offsets_of, values_per_position

_PER_THREAD = 1 << 18
"""Logits that take a thread longer than it takes to start."""

_CARRIED = ("seq_id", "prompt_id", "sample", "finish", "outcome", "prompt", "tok", "ref_lp")


def scoring_head(model: PreTrainedModel) -> Head:
    """The head of `model` for `score_rows`: verified, and in float32 on a CPU.

    Raises:
        EngineError: logits are not what `stages.models.model.lm_head` takes them for.
    """
    head = lm_head(model)
    head = head.in_float32() if head.weight.device.type == "cpu" else head
    check_head(model, head)
    return head


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    head: Head,
    rows: Rows,
    record: Record,
    seed: int,
    *,
    vocab_size: int,
    tokens_per_batch: int = 8192,
    rows_per_chunk: int = 256,
    advance: Callable[[int], None] | None = None,
) -> Rows:
    """The sequences of `rows` with the model's record at every response position.

    Uniforms depend on `seed`, `seq_id` and the index of the response token alone, so neither the
    order of `rows` nor the two sizes below change what is drawn.

    Args:
        model: The teacher, in evaluation mode.
        head: As `scoring_head(model)` gives it.
        rows: Plain sequences; `cand` where the record wants candidates.
        record: What to keep. Of more candidates than it asks for, the first are taken.
        seed: Of the draws.
        vocab_size: Number of real ids; logits of ids above are left out of the softmax.
        tokens_per_batch: Tokens in one forward pass, padding included.
        rows_per_chunk: Positions whose logits exist at the same time.
        advance: Called with the number of positions done after each forward pass.

    Returns:
        The same sequences in the same order: row, prompt and position columns of `rows` without
        `cand`, plus the columns of the record.

    Raises:
        ConfigError: the record wants more candidates than the rows have.
        SequenceError: an id outside the vocabulary, a sequence longer than the model's context, or
            logits that are NaN or +inf or give a realised token probability zero; sequence and
            position are named.
    """
    cand_TC = check_sequences(rows, record, vocab_size, context_length(model))
    scored: list[Rows] = []
    order: list[int] = []
    for indices in batches(rows.lengths("prompt") + rows.lengths("position"), tokens_per_batch):
        part = _ForwardBatch.of(rows, indices, cand_TC)
        hidden_TD = response_hidden(model, part)
        made = make_records(
            lambda chunk, hidden_TD=hidden_TD: head.logits(hidden_TD[chunk]),
            part.positions,
            record,
            seed,
            vocab_size=vocab_size,
            rows_per_chunk=rows_per_chunk,
        )
        scored.append(joined(part.rows, made.columns()))
        order.extend(indices)
        if advance is not None:
            advance(len(part.tok))
    return Rows.concat(scored).take(np.argsort(order))


def batches(length_N: Array, budget: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length whose padded size stays within a token budget.

    A sequence longer than the budget gets a batch of its own; an empty table gives one empty batch.
    """
    order = np.argsort(-length_N, kind="stable").tolist()
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, int(length_N[order[start]])))
        yield order[start : start + count]
        start += count
    if not order:
        yield []


# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredPositions:
    """Response positions, flat: what their records are made for and drawn by."""

    tok_T: Array
    """Realised ids."""
    cand_TC: Array
    """Ids forced into the head."""
    seq_T: Array
    """Sequence of each position."""
    index_T: Array
    """Index of each position in its sequence."""

    @classmethod
    def of(cls, rows: Rows, cand_TC: Array) -> "ScoredPositions":
        """All positions of `rows`."""
        off = rows.offsets["position"]
        row_T = np.repeat(np.arange(len(rows)), np.diff(off))
        index_T = np.arange(len(row_T)) - off[row_T]
        return cls(rows["tok"].astype(np.int64), cand_TC, rows["seq_id"][row_T], index_T)

    @classmethod
    def concat(cls, parts: Sequence["ScoredPositions"]) -> "ScoredPositions":
        """The positions of all parts, one part after the other."""
        return cls(
            *(
                np.concatenate(column)
                for column in zip(*(vars(part).values() for part in parts), strict=True)
            )
        )

    def __len__(self) -> int:
        return len(self.tok_T)

    def __getitem__(self, chunk: slice) -> "ScoredPositions":
        return ScoredPositions(
            self.tok_T[chunk], self.cand_TC[chunk], self.seq_T[chunk], self.index_T[chunk]
        )


def make_records(
    logits: Callable[[slice], torch.Tensor],
    positions: ScoredPositions,
    record: Record,
    seed: int,
    *,
    vocab_size: int,
    rows_per_chunk: int,
) -> Records:
    """Records of all positions, made where the logits are, a chunk of logits at a time.

    Args:
        logits: Gives [R, W] float32 logits of the R positions of a slice, on any device.
        positions: What to make records for.
        record, seed, vocab_size, rows_per_chunk: As for `score_rows`.

    Raises:
        SequenceError: as `score_rows`.
    """
    blocks: list[Records] = []
    for start in range(0, max(1, len(positions)), rows_per_chunk):
        chunk = slice(start, min(start + rows_per_chunk, len(positions)))
        blocks.append(_records(logits(chunk), positions[chunk], record, seed, vocab_size))
    return concat(blocks)


def _records(
    z_RW: torch.Tensor, positions: ScoredPositions, record: Record, seed: int, vocab_size: int
) -> Records:
    """Records of one chunk."""
    u_RU = uniforms(seed, positions.seq_T, positions.index_T, record.uniforms)
    given = (positions.tok_T, positions.cand_TC, u_RU)
    try:
        if z_RW.device.type == "cpu":
            threads = max(1, min(torch.get_num_threads(), z_RW.numel() // _PER_THREAD))
            return sampler.on_cpu(z_RW.numpy(), vocab_size, *given, record, threads)
        tok, cand, u = (torch.from_numpy(array).to(z_RW.device) for array in given)
        return sampler.on_gpu(z_RW, vocab_size, tok, cand, u, record)
    except BadRow as error:
        row = error.row
        raise SequenceError(
            [positions.seq_T[row]],
            f"sequence {positions.seq_T[row]}, position {positions.index_T[row]} "
            f"(token {positions.tok_T[row]}): {error.reason}. Check the model's weights and dtype; "
            "bfloat16 or float32 rules out overflow of float16.",
        ) from error


@dataclass(frozen=True)
class _ForwardBatch:
    """The sequences of one forward pass; a `stages.models.model.Tokens`."""

    rows: Rows
    seq_id: Array
    prompt: Array
    prompt_off: Array
    tok: Array
    tok_off: Array
    positions: ScoredPositions

    @classmethod
    def of(cls, rows: Rows, indices: list[int], cand_TC: Array) -> "_ForwardBatch":
        taken = rows.take(indices)
        flat_T, tok_off = gather(rows.offsets["position"], np.asarray(indices, np.int64))
        return cls(
            rows=taken,
            seq_id=taken["seq_id"],
            prompt=taken["prompt"].astype(np.int64),
            prompt_off=taken.offsets["prompt"],
            tok=taken["tok"].astype(np.int64),
            tok_off=tok_off,
            positions=ScoredPositions.of(taken, cand_TC[flat_T]),
        )


def joined(rows: Rows, columns: Mapping[str, Array]) -> Rows:
    """Sequences without their candidates, with the columns of their records."""
    carried = {name: rows[name] for name in _CARRIED if name in rows}
    offsets = {level: rows.offsets[level] for level in ("prompt", "position")}
    return Rows.from_columns(carried | dict(columns), offsets)


def check_sequences(rows: Rows, record: Record, vocab_size: int, context: int | None) -> Array:
    """Refuse what cannot be scored; returns the [T, C] ids to force into the heads.

    Args:
        rows, record, vocab_size: As for `score_rows`.
        context: Most tokens the model can be fed, or None.

    Raises:
        ConfigError, SequenceError: as `score_rows`.
    """
    cand_TC = forced_candidates(rows, record)
    for column, level in (("prompt", "prompt"), ("tok", "position"), ("cand", "candidate")):
        if column in rows:
            _check_ids(rows, column, level, vocab_size)
    _check_lengths(rows, context)
    return cand_TC


def within_vocabulary(rows: Rows, vocab_size: int) -> Rows:
    """The rows with candidates that the teacher knows, as many at each position.

    A student whose tokenizer has added tokens may keep their ids among its candidates. They give
    way to the lowest ids that are no candidates of their position. What replaces them depends on
    the candidates alone and not on the realised token, so records stay unbiased.
    """
    if "cand" not in rows or not rows.tokens:
        return rows
    cand, off = rows["cand"].copy(), _candidate_offsets(rows)
    beyond = np.searchsorted(off, np.flatnonzero(cand >= vocab_size), side="right") - 1
    for t in np.unique(beyond).tolist():
        own = cand[off[t] : off[t + 1]]
        kept = own[own < vocab_size]
        spare = np.setdiff1d(np.arange(min(vocab_size, 2 * len(own))), kept)
        own[:] = np.concatenate([kept, spare[: len(own) - len(kept)]])
    return Rows(rows.columns | {"cand": cand}, rows.offsets)


def forced_candidates(rows: Rows, record: Record) -> Array:
    """[T, C] ids to force into the head: the first that the sequences keep.

    A position that keeps fewer than C repeats its last one, which forces nothing more.

    Raises:
        ConfigError: as `score_rows`.
    """
    if not record.forced or not rows.tokens:
        return np.zeros((rows.tokens, record.forced), np.int64)
    if "nc" not in rows:
        kept = len(rows["cand"]) // rows.tokens if "cand" in rows else 0
        record.check_candidates(kept, "the sequences")
    off = _candidate_offsets(rows)
    place_TC = off[:-1, None] + np.arange(record.forced)
    return rows["cand"][np.minimum(place_TC, off[1:, None] - 1)].astype(np.int64)


def _candidate_offsets(rows: Rows) -> Array:
    """[T+1] candidates of position t are `off[t]:off[t+1]`."""
    return offsets_of(values_per_position("candidate", rows.columns, rows.tokens))


def _check_ids(rows: Rows, column: str, level: Any, limit: int) -> None:
    bad = np.flatnonzero(rows[column] >= limit)
    if len(bad):
        per_value = len(rows[column]) // max(1, int(rows.offsets[level][-1]))
        found = np.searchsorted(rows.offsets[level], bad // per_value, side="right") - 1
        raise SequenceError(
            rows["seq_id"][np.unique(found)],
            f"sequence {rows['seq_id'][found[0]]}: id {rows[column][bad[0]]} in column {column!r}, "
            f"but the teacher's vocabulary has {limit}. The sequences have another tokenizer, hold "
            "a token that the student's tokenizer has added, or were sampled from padding rows of "
            "the vocabulary.",
        )


def _check_lengths(rows: Rows, limit: int | None) -> None:
    fed_N = rows.lengths("prompt") + rows.lengths("position") - 1
    if limit is not None and len(rows) and int(fed_N.max()) > limit:
        row = int(fed_N.argmax())
        raise SequenceError(
            rows["seq_id"][fed_N > limit],
            f"sequence {rows['seq_id'][row]} has {fed_N[row] + 1} tokens, more than the teacher's "
            f"context of {limit}. Lower sampling.max_tokens of the rollouts, or use a teacher "
            "with a longer context.",
        )
