"""What the correction takes out and what it leaves, on scores with a planted habit."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from stages.attribution.cross_teacher import Correction, Estimator, _folds
from stages.config.records import Residualize
from storage.errors import DataError
from storage.rows import Rows, offsets_of

V = 40
SEED = 3


def responses(
    count: int, seed: int = 0, samples: int = 1, vocab: int = V, longest: int = 24
) -> dict[str, Any]:
    """Prompts, tokens and surprisals of `count` responses of uneven length."""
    rng = np.random.default_rng(seed)
    length_N = rng.integers(1, longest + 1, count)
    total = int(length_N.sum())
    return {
        "prompt_id": np.arange(count) // samples,
        "position": offsets_of(length_N),
        "index": np.arange(total) - np.repeat(np.cumsum(length_N) - length_N, length_N),
        "tok": np.minimum(rng.zipf(1.5, total), vocab) - 1,
        "ref_lp": -rng.exponential(1.0, total),
    }


def scored(made: dict[str, Any], d_T: np.ndarray) -> Rows:
    """The responses with a teacher that differs from pi_ref by d."""
    count = len(made["prompt_id"])
    columns = {
        "seq_id": np.arange(count),
        "prompt_id": made["prompt_id"],
        "sample": np.zeros(count, int),
        "finish": np.zeros(count, int),
        "outcome": np.zeros(count, int),
        "prompt": np.ones(count, int),
        "tok": made["tok"],
        "ref_lp": made["ref_lp"].astype(np.float32),
        "lp": (made["ref_lp"].astype(np.float32) + d_T).astype(np.float32),
        "ent": np.ones(len(d_T)),
    }
    offsets = {"prompt": np.arange(count + 1), "position": made["position"]}
    return Rows.from_columns(columns, offsets)


def estimated(rows: Rows, *, block: int = 10**9, vocab: int = V, **fields: Any) -> Correction:
    config = Residualize.model_validate(fields)
    estimator = Estimator(config, SEED, vocab, rows.tokens / len(rows))
    for start in range(0, len(rows), block):
        estimator.add(rows.slice(start, min(start + block, len(rows))))
    return estimator.correction()


def by_cell(values_T: np.ndarray, cell_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and count per cell."""
    count = np.bincount(cell_T)
    return np.bincount(cell_T, values_T) / np.maximum(count, 1), count


def token_habit(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.8, V)


def noise(count: int, sigma: float = 0.6, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sigma, count)


# ---------------------------------------------------------------------------------------------
# What it takes out


def test_a_habit_of_tokens_goes_within_the_error_of_a_mean() -> None:
    """b is the habit up to five standard errors of the mean of the other folds, plus smoothing."""
    made, sigma, pseudo = responses(6000), 0.6, 20.0
    rows = scored(made, token_habit()[made["tok"]] + noise(len(made["tok"]), sigma))
    b_T = estimated(rows, token_share=1.0, pseudo_count=pseudo).recurring(rows)
    count_V = np.bincount(made["tok"], minlength=V)
    overall = token_habit()[made["tok"]].mean()
    # Weights vary with the length of a response, so a mean is worth fewer tokens than it has.
    weight_T = 1 / np.repeat(np.diff(made["position"]), np.diff(made["position"]))
    worth_V = np.bincount(made["tok"], weight_T, V) ** 2 / np.bincount(made["tok"], weight_T**2, V)
    bound_V = 5 * sigma / np.sqrt(0.8 * worth_V) + np.abs(token_habit() - overall) * pseudo / (
        0.5 * count_V
    )
    assert (np.abs(b_T - token_habit()[made["tok"]]) < bound_V[made["tok"]]).all()
    before, _ = by_cell(rows["lp"] - made["ref_lp"], made["tok"])
    after, _ = by_cell(rows["lp"] - made["ref_lp"] - b_T, made["tok"])
    assert np.abs(after).max() < 0.25 * np.abs(before).max()


def test_a_habit_of_places_goes_too() -> None:
    made = responses(6000)
    place_T = np.minimum(np.log2(made["index"] + 1).astype(int), 15)
    surprised_T = made["ref_lp"] < -0.7
    habit_T = np.array([0.9, -0.6, 0.3, -0.2, 0.5])[place_T] + 0.8 * surprised_T
    rows = scored(made, habit_T + noise(len(habit_T)))
    b_T = estimated(rows, token_share=0.0).recurring(rows)
    cell_T = 2 * place_T + surprised_T
    after, count = by_cell(rows["lp"] - made["ref_lp"] - b_T, cell_T)
    assert np.abs(after[count > 100]).max() < 0.12
    # A quantile's edge falls inside one bin, which the correction cannot see.
    assert np.sqrt(np.mean((b_T - habit_T) ** 2)) < 0.2 * habit_T.std()


def test_the_published_half_and_half_takes_the_mean_and_half_of_each_habit() -> None:
    made = responses(6000)
    rows = scored(made, token_habit()[made["tok"]] + noise(len(made["tok"])))
    d_T = rows["lp"] - made["ref_lp"]
    after_T = d_T - estimated(rows).recurring(rows)
    assert abs(after_T.mean()) < 0.03
    before, count = by_cell(d_T - d_T.mean(), made["tok"])
    after, _ = by_cell(after_T, made["tok"])
    often = count > 300
    assert np.polyfit(before[often], after[often], 1)[0] == pytest.approx(0.5, abs=0.06)


# ---------------------------------------------------------------------------------------------
# What it leaves


def test_an_unbiased_residual_is_left_as_it_is() -> None:
    """No habit but noise: corrected scores follow it one to one, and b is next to nothing."""
    made = responses(6000)
    residual_T = noise(len(made["tok"]))
    rows = scored(made, residual_T)
    b_T = estimated(rows).recurring(rows)
    assert np.abs(b_T.mean()) < 0.02
    assert b_T.std() < 0.1 * residual_T.std()
    assert np.polyfit(residual_T, residual_T - b_T, 1)[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("pseudo", [0.0, 1.0])
def test_no_response_is_corrected_by_its_own_scores(pseudo: float) -> None:
    """Ids that no other response has: a mean over all folds would be half of their own noise."""
    made = responses(400, longest=3)
    made["tok"] = np.arange(len(made["tok"]))
    residual_T = noise(len(made["tok"]))
    rows = scored(made, residual_T)
    b_T = estimated(rows, vocab=len(residual_T), token_share=1.0, pseudo_count=pseudo).recurring(
        rows
    )
    assert np.abs(np.corrcoef(residual_T, b_T)[0, 1]) < 0.2
    assert np.abs(b_T).max() < 0.1


def test_scores_of_a_fold_do_not_move_its_own_correction() -> None:
    made = responses(300, samples=3)
    rows = scored(made, noise(len(made["tok"])))
    fold_N = _folds(made["prompt_id"], 5, SEED)
    assert all(len(set(fold_N[i : i + 3])) == 1 for i in range(0, 300, 3))
    mine_T = np.repeat(fold_N == 2, np.diff(made["position"]))
    moved = Rows(rows.columns | {"lp": rows["lp"] - 3 * mine_T.astype(np.float32)}, rows.offsets)
    before_T, after_T = (estimated(one).recurring(one) for one in (rows, moved))
    assert np.array_equal(before_T[mine_T], after_T[mine_T])
    assert (np.abs(before_T - after_T)[~mine_T] > 0.1).all()


def test_the_same_teacher_is_left_to_the_last_bit() -> None:
    made = responses(200)
    rows = scored(made, np.zeros(len(made["tok"])))
    assert not estimated(rows).recurring(rows).any()


# ---------------------------------------------------------------------------------------------
# How it is worked out


def test_means_are_those_of_the_definition() -> None:
    """Every number by the formula, one position at a time."""
    made = responses(60, samples=2)
    rows = scored(made, noise(len(made["tok"])) + token_habit()[made["tok"]])
    config = Residualize(pseudo_count=3.0, surprisal_bins=1, position_bins=3, folds=4)
    found_T = estimated(rows, **config.model_dump()).recurring(rows)
    length_N = np.diff(made["position"])
    row_T = np.repeat(np.arange(60), length_N)
    fold_T = _folds(made["prompt_id"], 4, SEED)[row_T]
    weight_T = length_N.mean() / length_N[row_T]
    d_T = rows["lp"].astype(float) - rows["ref_lp"]
    place_T = np.minimum(np.log2(made["index"] + 1).astype(int), 2)
    for t in range(0, len(d_T), 7):
        other = fold_T != fold_T[t]
        g = np.average(d_T[other], weights=weight_T[other])

        def mean(same: np.ndarray, g: float = g, other: np.ndarray = other) -> float:
            w = weight_T * (same & other)
            return float((np.sum(w * d_T) + 3.0 * g) / (w.sum() + 3.0))

        wanted = 0.5 * mean(made["tok"] == made["tok"][t]) + 0.5 * mean(place_T == place_T[t])
        assert found_T[t] == pytest.approx(wanted, abs=1e-9)


def test_every_response_weighs_the_same() -> None:
    """A few long responses with a habit of +1 among many short ones with -1."""
    length_N = np.array([400] * 10 + [4] * 90)
    total = int(length_N.sum())
    made: dict[str, Any] = {
        "prompt_id": np.arange(100),
        "position": offsets_of(length_N),
        "tok": np.zeros(total, int),
        "ref_lp": np.full(total, -1.0),
    }
    d_T = np.repeat(np.where(length_N == 400, 1.0, -1.0), length_N)
    correction = estimated(scored(made, d_T), pseudo_count=0.0, folds=2)
    assert np.mean(correction.overall_K) == pytest.approx(-0.8, abs=0.1)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_how_the_set_is_read_does_not_matter(block: int) -> None:
    made = responses(120)
    rows = scored(made, noise(len(made["tok"])))
    whole, pieces = estimated(rows), estimated(rows, block=block)
    assert np.allclose(whole.recurring(rows), pieces.recurring(rows), atol=1e-12)


def test_memory_does_not_grow_with_the_set() -> None:
    made = responses(120)
    rows = scored(made, noise(len(made["tok"])))

    def peak(blocks: int) -> int:
        tracemalloc.start()
        estimator = Estimator(Residualize(), SEED, V, rows.tokens / len(rows))
        for _ in range(blocks):
            estimator.add(rows)
        estimator.correction()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # what is allocated once is allocated now
    assert peak(50) < 1.05 * peak(5)


def test_surprisal_bins_hold_about_equally_many() -> None:
    made = responses(3000)
    rows = scored(made, noise(len(made["tok"])))
    config = Residualize(surprisal_bins=8)
    estimator = Estimator(config, SEED, V, rows.tokens / len(rows))
    estimator.add(rows)
    weight_F = estimator.contexts.weight_KC.reshape(-1, len(estimator._coarse())).sum(0)
    share = np.bincount(estimator._coarse(), weight_F, 8) / weight_F.sum()
    assert share.min() > 0.08
    assert share.max() < 0.18


def test_one_fold_is_not_enough() -> None:
    made = responses(8, samples=8)
    with pytest.raises(DataError, match=r"fall into 1 of 5 folds.*too small"):
        estimated(scored(made, noise(len(made["tok"]))))


def test_a_corpus_has_nobody_to_compare_with() -> None:
    made = responses(8)
    rows = scored(made, noise(len(made["tok"])))
    plain = {name: values for name, values in rows.columns.items() if name != "ref_lp"}
    with pytest.raises(DataError, match="keep no log-probability of the policy"):
        estimated(Rows(plain, rows.offsets))
