"""The `[teacher-logits.record]` table: which fields count, which exclude each other."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.ledger import to_toml
from pipeline.planning.config import load_recipe
from pipeline.planning.fingerprint import identity
from stages.config.record_kinds import Counts, HeadTail, Record, TopK, stored_record
from storage.errors import ConfigError

CHANGES: dict[str, Any] = {
    "temperature": 2.0,
    "tau": 0.5,
    "candidates": 9,
    "draws": 9,
    "sampler": "multinomial",
    "k": 9,
    "copies": 9,
    "logp": True,
    "loss_temperature": 2.0,
}
EVERYWHERE = {"temperature", "loss_temperature"}
OWN = {
    "sampled": set[str](),
    "counts": {"draws", "sampler", "copies", "logp"},
    "head_tail": {"tau", "candidates", "copies", "logp"},
    "top_k": {"k"},
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("name", CHANGES)
def test_options_enter_the_key_of_their_own_kinds_and_are_errors_elsewhere(
    kind: str, name: str
) -> None:
    table = {"kind": kind, name: CHANGES[name]}
    if name in OWN[kind] | EVERYWHERE:
        assert identity(Record.model_validate({"kind": kind})) != identity(
            Record.model_validate(table)
        )
    else:
        with pytest.raises(ValidationError, match=f'`{name}` is not an option of kind = "{kind}"'):
            Record.model_validate(table)


@pytest.mark.parametrize("kind", OWN)
def test_sets_that_list_the_options_of_all_kinds_are_read(kind: str) -> None:
    plain = Record.model_validate({"kind": kind})
    assert stored_record(CHANGES | {"entries": None} | plain.model_dump()) == plain
    assert identity(plain).keys() == {"kind"} | EVERYWHERE | OWN[kind] | (
        {"entries"} if kind == "head_tail" else set()
    )


def test_entries_replace_tau_and_enter_the_key() -> None:
    record = HeadTail(entries=12.0)
    assert (record.tau, record.entries) == (None, 12.0)
    assert identity(record) != identity(HeadTail(entries=13.0)) != identity(HeadTail())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tau": 0.1, "entries": 12.0}, "`tau` and `entries` exclude each other"),
        ({"tau": None}, "needs `tau`, or `entries`"),
        ({"entries": 0.5}, "greater than or equal to 1"),
        ({"tau": 1 / 129}, "greater than or equal to 0.0078125"),
        ({"candidates": 65}, "less than or equal to 64"),
        ({"kind": "top_k", "k": 201}, "less than or equal to 200"),
        ({"kind": "counts", "draws": 256}, "less than or equal to 255"),
        (
            {"kind": "bottom_k"},
            "record.kind is `bottom_k`; it must be one of counts, head_tail, sampled, top_k",
        ),
        ({"copies": 17}, "less than or equal to 16"),
        ({"copies": 0}, "greater than or equal to 1"),
        ({"loss_temperature": 0.0}, "greater than 0"),
    ],
)
def test_impossible_values_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Record.model_validate(table)


@pytest.mark.parametrize("record", [HeadTail(), HeadTail(entries=12.0), Counts(draws=3)])
def test_a_record_reads_back_from_its_own_dump(record: Record) -> None:
    assert Record.model_validate(record.model_dump()) == record
    assert stored_record(record.model_dump()) == record


def test_a_calibrated_record_is_stored_with_both_and_read_as_its_tau() -> None:
    stored = HeadTail(entries=12.0, copies=3).calibrated(0.03125).model_dump()
    assert (stored["tau"], stored["entries"]) == (0.03125, 12.0)
    assert stored_record(stored) == HeadTail(tau=0.03125, copies=3)


def test_a_set_from_before_a_field_existed_has_its_default() -> None:
    old = {"kind": "counts", "temperature": 1.0, "tau": 0.023, "candidates": 4, "draws": 7}
    assert stored_record(old) == Counts(draws=7)


def test_an_override_takes_the_other_knob_back(tmp_path: Any) -> None:
    recipe = load_recipe("demo", overrides=["teacher-logits.record.tau=0.1"])
    assert recipe.teacher_logits.record == HeadTail(tau=0.1)
    again = load_recipe(
        "demo",
        overrides=["teacher-logits.record.tau=0.1", "teacher-logits.record.entries=12.0"],
    )
    assert again.teacher_logits.record == HeadTail(entries=12.0)
    (tmp_path / "resolved.toml").write_text(to_toml(again))
    assert load_recipe(None, [tmp_path / "resolved.toml"]) == again


def test_a_comparison_of_another_kind_keeps_what_it_knows_of_the_main_record() -> None:
    recipe = load_recipe(
        "demo",
        overrides=[
            "teacher-logits.record.tau=0.1",
            "teacher-logits.record.copies=3",
            "teacher-logits.record.temperature=2.0",
            'teacher-logits.compare.rs.record={kind="counts", draws=7}',
            'teacher-logits.compare.top.record={kind="top_k"}',
        ],
    )
    sets = recipe.teacher_logits.variants()
    assert sets["rs"].record == Counts(draws=7, copies=3, temperature=2.0)
    assert sets["top"].record == TopK(temperature=2.0)
    wrong = 'teacher-logits.compare.rs.record={kind="counts", tau=0.2}'
    with pytest.raises(ConfigError, match='`tau` is not an option of kind = "counts"'):
        load_recipe("demo", overrides=[wrong])
