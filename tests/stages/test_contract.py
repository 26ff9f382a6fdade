"""The legality contract: its table, its rules, its refusals, and that it costs no torch."""

import subprocess
import sys

import pytest

from stages.config import Objective, Record, Sampling
from stages.objectives.contract import NO_TEACHER, TABLE, guarantee
from storage.errors import ConfigError


def wanted(**fields: object) -> Objective:
    return Objective.model_validate(fields)


def meta(kind: str | None = "head_tail", recorded_at: float = 1.0, **sampling: float) -> dict:
    """Manifest meta of a set of rollouts, scored unless `kind` is None."""
    drawn = Sampling.model_validate(sampling)
    out: dict[str, object] = {"sampling": drawn.model_dump(), "full_support": drawn.full_support}
    if kind is not None:
        out["record"] = Record.model_validate(
            {"kind": kind, "temperature": recorded_at}
        ).model_dump()
    return out


def corpus(kind: str) -> dict:
    """Manifest meta of a scored text corpus: nobody drew its tokens."""
    return {"record": Record.model_validate({"kind": kind}).model_dump()}


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
    ],
)
def test_level(objective: dict, kind: str | None, level: str) -> None:
    found = guarantee(wanted(**objective), meta(kind))
    assert found.level == level
    assert found.to_json() == {"level": level, "reason": found.reason}


@pytest.mark.parametrize(
    ("objective", "kind", "remedy"),
    [
        ({"name": "forward_kl"}, "sampled", "counts or head_tail"),
        ({"name": "forward_kl"}, None, "counts or head_tail"),
        ({"name": "lightning"}, None, "sampled or counts or head_tail"),
        ({"name": "reverse_kl"}, None, "sampled or counts or head_tail"),
        ({"name": "reverse_kl", "form": "bucketed"}, "counts", "use records of kind head_tail"),
        ({"name": "reverse_kl", "form": "bucketed"}, "sampled", "use records of kind head_tail"),
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


def test_a_corpus_has_no_behaviour_to_correct_by() -> None:
    with pytest.raises(ConfigError, match=r'not drawn by a model.*form = "bucketed"'):
        guarantee(wanted(), corpus("head_tail"))
    assert guarantee(wanted(form="bucketed"), corpus("head_tail")).level == "lower_bound"
    assert guarantee(wanted(name="forward_kl"), corpus("counts")).level == "unbiased"


def test_refusal_names_only_objectives_that_would_be_accepted() -> None:
    with pytest.raises(ConfigError, match=r"objective on these \(cross_entropy, lightning\)"):
        guarantee(wanted(name="forward_kl"), corpus("sampled"))
    with pytest.raises(ConfigError, match=r"lightning, reverse_kl/corrected, reverse_kl/resid"):
        guarantee(wanted(name="forward_kl"), meta("sampled"))


def test_unknown_support_counts_as_truncated() -> None:
    unknown = meta()
    del unknown["full_support"]
    assert guarantee(wanted(), unknown).level == "biased"


def test_table_knows_every_record_kind_and_every_objective() -> None:
    kinds = {NO_TEACHER, "sampled", "counts", "head_tail"}
    assert all(set(row) == kinds for row in TABLE.values())
    for name in ("cross_entropy", "forward_kl", "lightning", "reverse_kl"):
        for form in ("corrected", "bucketed", "residual_only"):
            row = f"reverse_kl/{form}" if name == "reverse_kl" else name
            assert row in TABLE


def test_contract_imports_no_torch() -> None:
    code = "import sys, stages.objectives.contract; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
