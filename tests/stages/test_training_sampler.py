"""The plain sampler against the model's own forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stages.models import load_model
from stages.training.sampler import Samples, sample
from storage.schema import FINISH
from tests.stages.training_cases import END, MAX_TOKENS, VOCABULARY, write_model

PROMPTS = [np.array([2, 3, 4, 5]), np.array([6]), np.array([7, 8]), np.array([2, 2, 2])] * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_model(write_model(folder, 1), "float32", "cpu")


def draw(model: PreTrainedModel, rows: list[int], temperature: float = 1.0) -> Samples:
    """Responses to `PROMPTS[row]`; the sequence is named by its row."""
    return sample(
        model,
        [PROMPTS[row] for row in rows],
        seq_id=np.array(rows),
        seed=5,
        temperature=temperature,
        max_tokens=MAX_TOKENS,
        vocab_size=VOCABULARY,
        stop_ids=(END,),
        candidates=3,
    )


def responses(made: Samples) -> list[list[int]]:
    return [made.tok_T[a:b].tolist() for a, b in zip(made.off_N[:-1], made.off_N[1:], strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_and_candidates_are_those_of_a_full_forward_pass(
    model: PreTrainedModel, temperature: float
) -> None:
    """Left padding and the key-value cache must not show."""
    rows = list(range(len(PROMPTS)))
    made = draw(model, rows, temperature)
    at = 0
    for row, tok in zip(rows, responses(made), strict=True):
        ids = torch.tensor([[*PROMPTS[row], *tok]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(PROMPTS[row]) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)
        found = made.ref_lp_T[at : at + len(tok)]
        np.testing.assert_allclose(found, logp[range(len(tok)), tok], atol=1e-5)
        np.testing.assert_array_equal(made.cand_TK[at : at + len(tok)], logp.topk(3).indices)
        at += len(tok)
    assert at == len(made.tok_T)


def test_a_sequence_does_not_depend_on_its_company(model: PreTrainedModel) -> None:
    together = responses(draw(model, list(range(12))))
    assert responses(draw(model, [7, 3])) == [together[7], together[3]]


def test_responses_end_with_the_end_token_or_at_the_limit(model: PreTrainedModel) -> None:
    made = draw(model, list(range(12)))
    for tok, finish in zip(responses(made), made.finish_N, strict=True):
        assert 1 <= len(tok) <= MAX_TOKENS
        assert END not in tok[:-1]
        assert (tok[-1] == END) == (finish == FINISH["stop"])
    assert set(made.finish_N) == set(FINISH.values())


def test_padding_rows_of_the_head_are_never_drawn(model: PreTrainedModel) -> None:
    made = sample(
        model,
        [PROMPTS[0]] * 64,
        seq_id=np.arange(64),
        seed=0,
        temperature=1.0,
        max_tokens=2,
        vocab_size=5,
        stop_ids=(),
        candidates=0,
    )
    assert int(made.tok_T.max()) < 5
    assert made.cand_TK.shape == (128, 0)


def test_first_tokens_follow_the_models_distribution(model: PreTrainedModel) -> None:
    """Pearson's statistic over 4000 draws, against its 1e-6 quantile at 11 degrees of freedom."""
    draws = 4000
    made = sample(
        model,
        [PROMPTS[0]] * draws,
        seq_id=np.arange(draws),
        seed=1,
        temperature=1.0,
        max_tokens=1,
        vocab_size=VOCABULARY,
        stop_ids=(),
        candidates=0,
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(PROMPTS[0])[None]).logits[0, -1]
    expected = draws * logits.double().softmax(-1).numpy()
    counted = np.bincount(made.tok_T, minlength=VOCABULARY)
    assert ((counted - expected) ** 2 / expected).sum() < 48.7
