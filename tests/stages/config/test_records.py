"""The `[teacher-logits.record]` table: which fields count, which exclude each other."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.ledger import to_toml
from pipeline.planning.config import load_recipe
from pipeline.planning.fingerprint import identity
from stages.config import Record

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
def test_fields_enter_the_key_of_their_own_kinds_only(kind: str, name: str) -> None:
    plain = Record.model_validate({"kind": kind})
    changed = Record.model_validate({"kind": kind, name: CHANGES[name]})
    assert (identity(plain) != identity(changed)) == (name in OWN[kind] | EVERYWHERE)


def test_entries_replace_tau_and_enter_the_key_of_head_tail_only() -> None:
    record = Record(entries=12.0)
    assert (record.tau, record.entries) == (None, 12.0)
    assert identity(record) != identity(Record(entries=13.0)) != identity(Record())
    assert identity(Record(kind="top_k", entries=12.0)) == identity(Record(kind="top_k"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tau": 0.1, "entries": 12.0}, "`tau` and `entries` exclude each other"),
        ({"tau": None}, "needs `tau`, or `entries`"),
        ({"entries": 0.5}, "greater than or equal to 1"),
        ({"tau": 1 / 129}, "greater than or equal to 0.0078125"),
        ({"k": 201}, "less than or equal to 200"),
        ({"copies": 17}, "less than or equal to 16"),
        ({"copies": 0}, "greater than or equal to 1"),
        ({"loss_temperature": 0.0}, "greater than 0"),
    ],
)
def test_impossible_values_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Record.model_validate(table)


@pytest.mark.parametrize(
    "record", [Record(), Record(entries=12.0), Record(kind="counts", entries=3.0)]
)
def test_a_record_reads_back_from_its_own_dump(record: Record) -> None:
    assert Record.model_validate(record.model_dump()) == record
    assert Record.stored(record.model_dump()) == record


def test_a_calibrated_record_is_stored_with_both_and_read_as_its_tau() -> None:
    stored = Record(entries=12.0, copies=3).calibrated(0.03125).model_dump()
    assert (stored["tau"], stored["entries"]) == (0.03125, 12.0)
    assert Record.stored(stored) == Record(tau=0.03125, copies=3)


def test_a_set_from_before_a_field_existed_has_its_default() -> None:
    old = {"kind": "counts", "temperature": 1.0, "tau": 0.023, "candidates": 4, "draws": 7}
    assert Record.stored(old) == Record(kind="counts", draws=7)


def test_an_override_takes_the_other_knob_back(tmp_path: Any) -> None:
    recipe = load_recipe("demo", overrides=["teacher-logits.record.tau=0.1"])
    assert recipe.teacher_logits.record.tau == 0.1
    again = load_recipe(
        "demo",
        overrides=["teacher-logits.record.tau=0.1", "teacher-logits.record.entries=12.0"],
    )
    assert (again.teacher_logits.record.tau, again.teacher_logits.record.entries) == (None, 12.0)
    (tmp_path / "resolved.toml").write_text(to_toml(again))
    assert load_recipe(None, [tmp_path / "resolved.toml"]) == again
