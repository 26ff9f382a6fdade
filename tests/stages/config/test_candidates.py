"""How many candidates are kept: a number, or a share of pi_ref's mass."""

import numpy as np
import pytest

from pipeline.planning.config import load_recipe
from pipeline.planning.fingerprint import identity
from stages.config.candidates import (
    Candidates,
    Coverage,
    candidates_meta,
    mean_candidates,
    most_candidates,
    stored_candidates,
)
from stages.config.generation import Rollouts
from stages.config.record_kinds import HeadTail, stored_record
from stages.engines.base import candidate_counts
from storage.errors import ConfigError

PROMPTS = {"prompts": {"task": "addition", "first": 0, "limit": 9}}


def test_a_number_has_the_key_it_always_had_and_a_mass_another() -> None:
    plain = Rollouts.model_validate({**PROMPTS, "candidates": 16})
    covering = [
        Rollouts.model_validate({**PROMPTS, "candidates": {"mass": mass, "at_most": most}})
        for mass, most in ((0.95, 64), (0.95, 16), (0.9, 64))
    ]
    assert identity(plain)["candidates"] == 16
    assert identity(covering[0])["candidates"] == {"mass": 0.95, "at_most": 64}
    assert len({str(identity(one)) for one in (plain, *covering)}) == 4


@pytest.mark.parametrize("kept", [0, 16, Coverage(mass=0.95), Coverage(mass=0.5, at_most=3)])
def test_what_a_manifest_says_reads_back(kept: Candidates) -> None:
    assert stored_candidates(candidates_meta(kept)) == kept
    record = HeadTail(candidates=kept)
    assert stored_record(record.described()) == record
    assert record.forced == most_candidates(kept)


def test_layers_replace_a_number_by_a_mass_and_back() -> None:
    table = "rollouts.candidates={mass=0.9, at_most=32}"
    kept = [
        load_recipe("demo", overrides=overrides).rollouts
        for overrides in (
            [table],
            [table, "rollouts.candidates.mass=0.8"],
            [table, "rollouts.candidates=7"],
        )
    ]
    found = [one.candidates for one in kept if one]
    assert found == [Coverage(mass=0.9, at_most=32), Coverage(mass=0.8, at_most=32), 7]


@pytest.mark.parametrize(
    ("wanted", "kept", "message"),
    [
        (Coverage(mass=0.9), 4, "mass is 0.9, but rollouts keep 4 per position: give rollouts.ca"),
        (Coverage(mass=0.9), Coverage(mass=0.8), "mass is 0.9, but rollouts keep what covers 0.8"),
        (
            Coverage(mass=0.9),
            Coverage(mass=0.9, at_most=8),
            "record.candidates.at_most is 64, but rollouts keep 8 per position: set it to 8, or "
            "raise rollouts.candidates.at_most to 64",
        ),
        (9, Coverage(mass=0.9, at_most=8), "record.candidates is 9, but rollouts keep 8"),
    ],
)
def test_a_record_that_wants_what_is_not_kept_is_refused(
    wanted: Candidates, kept: Candidates, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadTail(candidates=wanted).check_candidates(kept, "rollouts")
    HeadTail(candidates=8).check_candidates(Coverage(mass=0.9, at_most=8), "rollouts")


def test_the_fewest_likeliest_ids_that_reach_the_mass_are_counted() -> None:
    p_TK = np.array([[0.6, 0.2, 0.1, 0.05], [1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    with np.errstate(divide="ignore"):
        logp_TK = np.log(p_TK).astype(np.float32)
    found = {mass: candidate_counts(logp_TK, Coverage(mass=mass)).tolist() for mass in (0.5, 0.85)}
    assert found == {0.5: [1, 1, 4], 0.85: [3, 1, 4]}
    assert candidate_counts(logp_TK, 4).tolist() == [4, 4, 4]


def test_plans_expect_more_ids_for_more_mass() -> None:
    means = [mean_candidates(Coverage(mass=mass)) for mass in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)]
    assert means == sorted(means)
    assert means[-1] == 64
    assert mean_candidates(Coverage(mass=0.99, at_most=3)) <= 3
    assert mean_candidates(16) == 16
