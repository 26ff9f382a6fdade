"""The legality contract: its table, its rules, its refusals, and that it costs no torch."""

import re
import subprocess
import sys

import pytest

from stages.config.data import Sampling
from stages.config.record_kinds import stored_record
from stages.objectives.contract import (
    COLUMNS,
    NO_TEACHER,
    RULES,
    Case,
    all_rows,
    guarantee,
    on_kind,
    promise,
)
from stages.objectives.objective import Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.weights.pass_rate import PassRate
from storage.errors import ConfigError


def wanted(**fields: object) -> Objective:
    return Objective.model_validate(fields)


def meta(kind: str | None = "head_tail", recorded_at: float = 1.0, **sampling: float) -> dict:
    """Manifest meta of a set of rollouts, scored unless `kind` is None."""
    drawn = Sampling.model_validate(sampling)
    out: dict[str, object] = {"sampling": drawn.model_dump(), "full_support": drawn.full_support}
    if kind is not None:
        out["record"] = record(kind, temperature=recorded_at)
    return out


def record(kind: str, **fields: object) -> dict:
    """The `record` object of a manifest; `kind+logp` keeps log p of drawn ids."""
    name, _, logp = kind.partition("+")
    return stored_record({"kind": name, "logp": bool(logp), **fields}).model_dump()


def corpus(kind: str) -> dict:
    """Manifest meta of a scored text corpus: nobody drew its tokens."""
    return {"record": record(kind)}


@pytest.mark.parametrize(
    ("objective", "kind", "level"),
    [
        ({"name": "cross_entropy"}, None, "exact"),
        ({"name": "cross_entropy"}, "counts", "exact"),
        ({"name": "forward_kl"}, "counts", "unbiased"),
        ({"name": "forward_kl"}, "head_tail", "unbiased"),
        ({"name": "lightning"}, "sampled", "exact"),
        ({"name": "lightning"}, "head_tail", "exact"),
        ({"name": "reverse_kl"}, "sampled", "unbiased"),
        ({"name": "reverse_kl"}, "counts", "unbiased"),
        ({"name": "reverse_kl"}, "head_tail", "unbiased"),
        ({"name": "reverse_kl", "form": "residual_only"}, "head_tail", "unbiased"),
        ({"name": "reverse_kl", "form": "bucketed"}, "head_tail", "lower_bound"),
        ({"name": "reverse_kl"}, "top_k", "unbiased"),
        ({"name": "forward_kl"}, "top_k", "biased"),
        ({"name": "ghost_kl"}, "top_k", "lower_bound"),
        ({"name": "jsd"}, "head_tail", "lower_bound"),
        ({"name": "tvd"}, "counts+logp", "unbiased"),
        ({"name": "skew_reverse_kl"}, "head_tail+logp", "unbiased"),
        ({"name": "taid"}, "head_tail+logp", "biased"),
        ({"name": "policy_gradient", "truncation": None}, "sampled", "unbiased"),
        ({"name": "policy_gradient"}, "sampled", "biased"),
    ],
)
def test_level(objective: dict, kind: str | None, level: str) -> None:
    found = guarantee(wanted(**objective), meta(kind))
    assert found.level == level
    assert found.to_json() == {"level": level, "reason": found.reason}


@pytest.mark.parametrize(
    ("objective", "kind", "remedy"),
    [
        ({"name": "forward_kl"}, "sampled", "counts or counts+logp or head_tail or head_tail+logp"),
        ({"name": "forward_kl"}, None, "counts or counts+logp or head_tail or head_tail+logp"),
        ({"name": "lightning"}, None, "sampled or counts or counts+logp or head_tail"),
        ({"name": "reverse_kl"}, None, "sampled or counts or counts+logp or head_tail"),
        ({"name": "reverse_kl", "form": "bucketed"}, "counts", "head_tail or head_tail+logp or to"),
        (
            {"name": "reverse_kl", "form": "bucketed"},
            "sampled",
            "head_tail or head_tail+logp or to",
        ),
        ({"name": "jsd"}, "counts", "use records of kind counts+logp or head_tail+logp;"),
        ({"name": "taid"}, "counts", "counts+logp or head_tail or head_tail+logp or top_k"),
    ],
)
def test_refusal_says_which_records_would_serve(
    objective: dict, kind: str | None, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        guarantee(wanted(**objective), meta(kind))
    assert remedy in str(caught.value)
    assert f"`{kind or NO_TEACHER}` records" in str(caught.value)


@pytest.mark.parametrize("name", ["forward_kl", "lightning", "reverse_kl"])
def test_temperatures_must_agree(name: str) -> None:
    cold = meta("head_tail", recorded_at=0.7)
    with pytest.raises(ConfigError, match=r"temperature 0\.7.*asks for 1\.0.*score again"):
        guarantee(wanted(name=name), cold)
    assert guarantee(wanted(name=name, temperature=0.7), cold).level in ("unbiased", "exact")


def test_cross_entropy_needs_no_matching_temperature() -> None:
    assert guarantee(wanted(name="cross_entropy"), meta(recorded_at=0.7)).level == "exact"


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 20}, {"temperature": 0.0}])
@pytest.mark.parametrize("form", ["corrected", "residual_only"])
def test_truncated_sampling_makes_the_correction_biased(form: str, sampling: dict) -> None:
    found = guarantee(wanted(form=form), meta(**sampling))
    assert found.level == "biased"
    assert "full support" in found.reason


def test_truncated_sampling_does_not_touch_what_ignores_the_realised_token() -> None:
    truncated = meta(top_p=0.9)
    assert guarantee(wanted(form="bucketed"), truncated).level == "lower_bound"
    assert guarantee(wanted(name="forward_kl"), truncated).level == "unbiased"


def test_sampling_temperature_alone_keeps_it_unbiased() -> None:
    assert guarantee(wanted(), meta(temperature=1.3)).level == "unbiased"


def test_capped_weights_are_biased() -> None:
    found = guarantee(wanted(max_weight=2.0), meta())
    assert found.level == "biased"
    assert "2.0" in found.reason


def test_corrected_scores_serve_the_objective_they_were_made_for() -> None:
    corrected = meta("sampled")
    corrected["record"]["correction"] = {"folds": 5}
    assert guarantee(wanted(name="lightning"), corrected).level == "exact"
    for table in ({"name": "reverse_kl"}, {"name": "policy_gradient", "truncation": None}):
        found = guarantee(wanted(**table), corrected)
        assert found.level == "biased"
        assert "residualize" in found.reason


def test_a_corpus_has_no_behaviour_to_correct_by() -> None:
    with pytest.raises(ConfigError, match=r'not drawn by a model.*form = "bucketed"'):
        guarantee(wanted(), corpus("head_tail"))
    assert guarantee(wanted(form="bucketed"), corpus("head_tail")).level == "lower_bound"
    assert guarantee(wanted(name="forward_kl"), corpus("counts")).level == "unbiased"


def test_refusal_names_only_objectives_that_would_be_accepted() -> None:
    with pytest.raises(ConfigError, match=r"objective on these \(cross_entropy, lightning\)"):
        guarantee(wanted(name="forward_kl"), corpus("sampled"))
    with pytest.raises(ConfigError, match=r"policy_gradient, reverse_kl/corrected, reverse_kl/res"):
        guarantee(wanted(name="forward_kl"), meta("sampled"))


@pytest.mark.parametrize(
    ("rule", "objective", "changes"),
    [
        (0, {"name": "forward_kl", "temperature": 2.0}, {}),
        (1, {"name": "jsd", "temperature": 2.0}, {"record": record("head_tail+logp")}),
        (2, {"name": "reverse_kl"}, {"sampling": {}}),
        (3, {"name": "reverse_kl"}, {"full_support": False}),
        (4, {"name": "policy_gradient"}, {}),
        (5, {"name": "reverse_kl"}, {"record": record("sampled") | {"correction": {"folds": 5}}}),
        (6, {"name": "reverse_kl"}, {"weights": (PassRate(),)}),
    ],
)
def test_every_rule_decides_some_case(rule: int, objective: dict, changes: dict) -> None:
    weights = changes.pop("weights", ())
    temperature = objective.get("temperature", 1.0)
    case = Case(wanted(**objective), temperature, {**meta(), **changes}, weights)
    said = RULES[rule].lowers_to(case)
    assert said == promise(case) != on_kind(case.loss, case.kept)
    assert len(RULES) == 7, "a rule without a case here may be one that can never speak"


def test_penalties_and_stop_strings_leave_full_support_and_min_p_does_not() -> None:
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    drawn = Sampling.model_validate({**penalties, "stop": ["Q:"]})
    assert drawn.penalised
    for sampling, level in ((drawn, "unbiased"), (Sampling(min_p=0.1), "biased")):
        stated = {"sampling": sampling.model_dump(), "full_support": sampling.full_support}
        assert guarantee(wanted(), {**meta(), **stated}).level == level


def test_unknown_support_counts_as_truncated() -> None:
    unknown = meta()
    del unknown["full_support"]
    assert guarantee(wanted(), unknown).level == "biased"


def test_table_knows_every_record_kind_and_every_objective() -> None:
    assert all(list(row) == list(COLUMNS) for row in all_rows().values())
    forms = ReverseKL.model_fields["form"].annotation.__args__  # pyright: ignore
    plain = [name for name in Objective.known if name not in ("mixture", "nkd", "reverse_kl")]
    tables = [wanted(name=name) for name in plain] + [wanted(form=form) for form in forms]
    tables += [wanted(name="nkd", target=target) for target in ("teacher", "token")]
    assert {one.label for one in tables} == set(all_rows())


# ---------------------------------------------------------------------------------------------
# Another temperature than the record's


@pytest.mark.parametrize(
    ("name", "kind", "level"),
    [
        ("reverse_kl", "head_tail", "unbiased"),
        ("reverse_kl", "sampled", "unbiased"),
        ("lightning", "sampled", "exact"),
        ("ghost_kl", "head_tail", "lower_bound"),
        ("forward_kl", "counts+logp", "unbiased"),
        ("jsd", "head_tail+logp", "unbiased"),
        ("forward_kl", "top_k", "biased"),
    ],
)
def test_a_stored_normaliser_serves_a_second_temperature(name: str, kind: str, level: str) -> None:
    two = {**meta(), "record": record(kind, loss_temperature=2.0)}
    assert guarantee(wanted(name=name, temperature=2.0), two).level == level
    third = wanted(name=name, temperature=3.0)
    if "+logp" in kind:
        assert guarantee(third, two).level == "biased"
    else:
        with pytest.raises(ConfigError, match="keeps no normaliser"):
            guarantee(third, two)


@pytest.mark.parametrize("kind", ["counts", "head_tail"])
def test_weights_alone_cannot_be_re_tempered(kind: str) -> None:
    two = {**meta(), "record": record(kind, loss_temperature=2.0)}
    with pytest.raises(ConfigError, match=r"without their log p.*record\.logp = true"):
        guarantee(wanted(name="forward_kl", temperature=2.0), two)


# ---------------------------------------------------------------------------------------------
# Mixtures, and more than one pass


def mixture(*terms: dict, **fields: object) -> Objective:
    return wanted(name="mixture", terms=terms, **fields)


def test_a_mixture_is_as_good_as_its_weakest_term() -> None:
    both = mixture({"name": "forward_kl"}, {"name": "jsd", "weight": [[0, 1], [1, 0]]})
    found = guarantee(both, meta("head_tail"))
    assert found.level == "lower_bound"
    assert found.reason.startswith("weakest term, jsd: ")
    assert guarantee(both, meta("head_tail+logp")).level == "unbiased"
    with pytest.raises(ConfigError, match="jsd cannot be trained on `counts` records"):
        guarantee(both, meta("counts"))


def test_terms_share_the_temperature() -> None:
    both = mixture({"name": "forward_kl"}, {"name": "reverse_kl"}, temperature=0.5)
    with pytest.raises(ConfigError, match=r"asks for 0\.5"):
        guarantee(both, meta())
    assert guarantee(both, meta(recorded_at=0.5)).level == "unbiased"


@pytest.mark.parametrize(
    ("objective", "kind", "copies", "passes", "says"),
    [
        ({"name": "forward_kl"}, "head_tail", 1, 1.0, ""),
        ({"name": "forward_kl"}, "head_tail", 1, 3.0, "3 passes read the one draw"),
        ({"name": "forward_kl"}, "counts", 4, 4.0, ""),
        ({"name": "forward_kl"}, "counts", 2, 4.0, "the 2 independent draws.*from pass 3 on"),
        ({"name": "forward_kl"}, "top_k", 1, 3.0, ""),
        ({"name": "jsd"}, "head_tail", 1, 3.0, ""),
        ({"name": "jsd"}, "head_tail+logp", 1, 3.0, "the one draw"),
        ({"name": "reverse_kl"}, "head_tail", 4, 2.0, "same realised tokens"),
        ({"name": "cross_entropy"}, "counts", 1, 5.0, ""),
    ],
)
def test_what_further_passes_repeat(
    objective: dict, kind: str, copies: int, passes: float, says: str
) -> None:
    several = {**meta(), "record": record(kind, copies=copies)}
    found = guarantee(wanted(**objective), several, passes)
    assert re.search(says, found.note)
    assert bool(found.note) == bool(says)
    assert found.level == guarantee(wanted(**objective), several).level
    assert ("note" in found.to_json()) == bool(says)


@pytest.mark.parametrize(
    ("objective", "level"),
    [
        ({"name": "lightning"}, "exact"),
        ({"name": "cross_entropy"}, "exact"),
        ({"name": "reverse_kl"}, "biased"),
        ({"name": "policy_gradient"}, "biased"),
        ({"name": "mixture", "terms": [{"name": "lightning"}, {"name": "reverse_kl"}]}, "biased"),
    ],
)
def test_corrected_scores_are_no_teacher_of_a_divergence(objective: dict, level: str) -> None:
    corrected = {**meta(), "record": record("sampled") | {"correction": {"folds": 5}}}
    assert guarantee(wanted(**objective), corrected).level == level


def test_contract_imports_no_torch() -> None:
    code = "import sys, stages.objectives.contract; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
