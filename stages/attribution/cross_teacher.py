"""The cross-teacher correction of Lightning OPD 2.0 (arXiv 2607.28449): what of a score recurs.

Let d_t = log p(a_t) - log pi_ref(a_t) at the tokens pi_ref drew. If p is not the teacher that
pi_ref learnt from, part of d is a habit of that teacher: it comes back for the same token, or at
the same place of a response, whatever is being said, and teaches nothing about the answer. The
estimate is

    b_t = s m_tok(a_t) + (1 - s) m_ctx(position bin, surprisal bin)        s = 1/2

with m a mean of d over the tokens that share the id, or the bins of position and of -log pi_ref(a).
Training then reads log p - b. Three precautions:

* **cross-fitting**: prompts are split into K folds, and the means used for a fold are those of the
  other folds, so that no response is corrected by its own d;
* **response balance**: a token in a response of n tokens has weight (mean length) / n, so that
  every response weighs the same and a weight is one token on average;
* **smoothing**: m = (sum w d + c g) / (sum w + c) with the mean g of the other folds and a
  pseudo-count c in tokens, so that an id that was hardly seen is corrected by the mean.

Bins and smoothing are ours. Positions are binned by powers of two; surprisals by quantiles (of
pi_ref alone, so no d leaks into them), read off a fine histogram. Sums are all that is kept: memory
is K (V + bins) numbers, whatever the size of the set.

Shape letters: N sequences, T positions, K folds, V vocabulary, P position bins, F fine and S final
surprisal bins.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.config.records import Residualize
from stages.counter import hash64
from storage.errors import DataError
from storage.rows import Rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FINE = 192
_LEAST, _MOST = 1e-5, 1e2  # nats; surprisals outside are counted in the outermost bins
COLUMNS = ("prompt_id", "tok", "ref_lp", "lp")
"""What the estimate reads of a record set."""


@dataclass(frozen=True)
class Places:
    """Where each position belongs in the tables."""

    fold_T: Ints
    tok_T: Ints
    position_T: Ints
    fine_T: Ints
    weight_T: Floats
    d_T: Floats

    @classmethod
    def of(cls, rows: Rows, config: Residualize, seed: int, mean_length: float) -> "Places":
        """Of all response tokens of `rows`.

        Raises:
            DataError: the rows have no `ref_lp`.
        """
        if "ref_lp" not in rows:
            raise DataError(
                "these records keep no log-probability of the policy that wrote the tokens "
                "(`ref_lp`), so there is nothing to compare the teacher with; score rollouts"
            )
        off, length_N = rows.offsets["position"], rows.lengths("position")
        row_T = np.repeat(np.arange(len(length_N)), length_N)
        index_T = np.arange(len(row_T)) - off[row_T]
        surprisal_T = np.clip(-rows["ref_lp"].astype(np.float64), _LEAST, _MOST)
        level_T = np.log(surprisal_T / _LEAST) / np.log(_MOST / _LEAST)
        return cls(
            fold_T=_folds(rows["prompt_id"], config.folds, seed)[row_T],
            tok_T=rows["tok"].astype(np.int64),
            position_T=np.minimum(np.log2(index_T + 1).astype(np.int64), config.position_bins - 1),
            fine_T=np.minimum((level_T * _FINE).astype(np.int64), _FINE - 1),
            weight_T=mean_length / length_N[row_T],
            d_T=rows["lp"].astype(np.float64) - rows["ref_lp"],
        )


@dataclass
class SumTable:
    """Weights and weighted sums of d by fold and cell."""

    weight_KC: Floats
    sum_KC: Floats

    @classmethod
    def empty(cls, folds: int, cells: int) -> "SumTable":
        """Nothing seen yet."""
        return cls(np.zeros((folds, cells)), np.zeros((folds, cells)))

    def add(self, fold_T: Ints, cell_T: Ints, places: Places) -> None:
        """Take in some positions."""
        flat_T = fold_T * self.weight_KC.shape[1] + cell_T
        np.add.at(self.weight_KC.reshape(-1), flat_T, places.weight_T)
        np.add.at(self.sum_KC.reshape(-1), flat_T, places.weight_T * places.d_T)

    def means(self, overall_K: Floats, pseudo_count: float) -> Floats:
        """[K, C] smoothed mean of every cell for each fold, from the other folds."""
        others_KK = 1.0 - np.eye(len(overall_K))  # not total less own: that leaves rounding errors
        weight_KC = others_KK @ self.weight_KC + pseudo_count
        sum_KC = others_KK @ self.sum_KC + pseudo_count * overall_K[:, None]
        overall_KC = np.broadcast_to(overall_K[:, None], sum_KC.shape).copy()
        return np.divide(sum_KC, weight_KC, out=overall_KC, where=weight_KC > 0)

    def merged(self, target_C: Ints, cells: int) -> "SumTable":
        """The same with cell c counted in cell `target_C[c]` of `cells`."""
        out = SumTable.empty(len(self.weight_KC), cells)
        for fold, (weight_C, sum_C) in enumerate(zip(self.weight_KC, self.sum_KC, strict=True)):
            out.weight_KC[fold] = np.bincount(target_C, weight_C, cells)
            out.sum_KC[fold] = np.bincount(target_C, sum_C, cells)
        return out


@dataclass
class Estimator:
    """The first pass over a set: sums by token id, and by position and fine surprisal bin."""

    config: Residualize
    seed: int
    vocab_size: int
    mean_length: float
    tokens: SumTable = field(init=False)
    contexts: SumTable = field(init=False)

    def __post_init__(self) -> None:
        folds = self.config.folds
        self.tokens = SumTable.empty(folds, self.vocab_size)
        self.contexts = SumTable.empty(folds, self.config.position_bins * _FINE)

    def add(self, rows: Rows) -> None:
        """Take in some sequences; `COLUMNS` are read."""
        places = Places.of(rows, self.config, self.seed, self.mean_length)
        self.tokens.add(places.fold_T, places.tok_T, places)
        cell_T = places.position_T * _FINE + places.fine_T
        self.contexts.add(places.fold_T, cell_T, places)

    def correction(self) -> "Correction":
        """What the second pass subtracts.

        Raises:
            DataError: all prompts fell into one fold, so nothing is left to estimate it from.
        """
        config = self.config
        weight_K = self.tokens.weight_KC.sum(1)
        if np.count_nonzero(weight_K) < 2:
            raise DataError(
                f"the prompts of split 'train' fall into {np.count_nonzero(weight_K)} of "
                f"{config.folds} folds, but cross-fitting needs two: the set is too small"
            )
        others_KK = 1.0 - np.eye(config.folds)
        overall_K = (others_KK @ self.tokens.sum_KC.sum(1)) / (others_KK @ weight_K)
        coarse_F = self._coarse()
        shape = (config.folds, config.position_bins, config.surprisal_bins)
        target_PF = np.arange(shape[1])[:, None] * shape[2] + coarse_F
        contexts = self.contexts.merged(target_PF.reshape(-1), shape[1] * shape[2])
        return Correction(
            config=config,
            seed=self.seed,
            overall_K=overall_K,
            token_KV=self.tokens.means(overall_K, config.pseudo_count),
            context_KPS=contexts.means(overall_K, config.pseudo_count).reshape(shape),
            coarse_F=coarse_F,
        )

    def _coarse(self) -> Ints:
        """[F] final bin of each fine one: about equal weight in each, as far as ties allow."""
        weight_F = self.contexts.weight_KC.reshape(-1, _FINE).sum(0)
        middle_F = (weight_F.cumsum() - weight_F / 2) / weight_F.sum()
        bins = self.config.surprisal_bins
        return np.minimum(middle_F * bins, bins - 1).astype(np.int64)


@dataclass(frozen=True)
class Correction:
    """The second pass."""

    config: Residualize
    seed: int
    overall_K: Floats
    """Mean of d over the other folds."""
    token_KV: Floats
    context_KPS: Floats
    coarse_F: Ints

    def recurring(self, rows: Rows) -> Floats:
        """[T] b of every response token: what to subtract from `lp`."""
        at = Places.of(rows, self.config, self.seed, mean_length=1.0)
        token_T = self.token_KV[at.fold_T, at.tok_T]
        context_T = self.context_KPS[at.fold_T, at.position_T, self.coarse_F[at.fine_T]]
        share = self.config.token_share
        return share * token_T + (1 - share) * context_T


def _folds(prompt_id_N: NDArray[np.int64], folds: int, seed: int) -> Ints:
    """Fold of each prompt: a hash, the same wherever and whenever the prompt is met."""
    return (hash64(seed, prompt_id_N) % np.uint64(folds)).astype(np.int64)
