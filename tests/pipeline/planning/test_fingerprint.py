"""Every config field is in exactly one column: by value, by content, or execution."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from pipeline.planning.fingerprint import canonical, difference, digest, identity
from stages.config.corpus import Corpus
from stages.config.data import PromptSource
from stages.config.evaluation import Evaluate, Report
from stages.config.generation import Rollouts, SftData
from stages.config.record_kinds import Counts, Sampled
from stages.config.records import Residualize, TeacherLogits
from stages.config.training import Pretrain, Sft, Student
from stages.table import ByContent, Choice, NotInKey, Table

STAGE_TABLES: list[Table] = [
    Corpus(task="addition"),
    Pretrain(steps=3),
    SftData(prompts=PromptSource(task="addition", limit=3)),
    Sft(steps=3),
    Rollouts(prompts=PromptSource(task="addition", limit=3)),
    TeacherLogits(),
    Residualize(),
    Student(steps=3),
    Evaluate(prompts=PromptSource(task="addition", limit=3)),
    Report(),
]


def leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Table, str, bool, bool]]:
    """Every leaf field as (path, owning table, field name, is execution, stays out by its mark)."""
    for name, field in type(table).model_fields.items():
        path = f"{prefix}{name}"
        value = getattr(table, name)
        marked = any(isinstance(mark, ByContent | NotInKey) for mark in field.metadata)
        execution = "run" in path.split(".")
        if isinstance(value, Table):
            yield from leaves(value, f"{path}.")
        else:
            yield path, table, name, execution, marked


def another(annotation: Any, value: object) -> object:
    """A value of the same type, different from `value`."""
    if get_origin(annotation) is Annotated:
        return another(get_args(annotation)[0], value)
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if choice != value), "another")
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [choice for choice in get_args(annotation) if choice is not type(None)]
        return another(inner[0], value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and value is not None:
        return value * 2 + 1
    if isinstance(value, tuple):
        return (
            (*value, "x") if not value or isinstance(value[0], str) else tuple(2 * x for x in value)
        )
    if isinstance(value, dict):
        return {"other": {"steps": 9}}
    if isinstance(value, str):
        return value + "x"
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation()
    return {int: 7, float: 7.0, str: "x"}[annotation]


def replaced(table: Table, path: str, value: object) -> Table:
    head, _, rest = path.partition(".")
    inner = replaced(getattr(table, head), rest, value) if rest else value
    return table.model_copy(update={head: inner})


@pytest.mark.parametrize("table", STAGE_TABLES, ids=lambda table: type(table).__name__)
def test_each_field_is_in_exactly_one_column(table: Table) -> None:
    before = digest(identity(table))
    seen = 0
    for path, owner, name, execution, marked in leaves(table):
        if isinstance(owner, Choice) and name == owner.chosen_by:
            continue  # another value is another table: tests/stages/config/test_records.py
        field = type(owner).model_fields[name]
        value = another(field.annotation, getattr(owner, name))
        changed = digest(identity(replaced(table, path, value))) != before
        unused = name in owner.unused() & owner.model_copy(update={name: value}).unused()
        assert changed == (not execution and not marked and not unused), path
        seen += 1
    assert seen >= 1


def test_fields_without_effect_leave_the_key_alone() -> None:
    sampled = TeacherLogits(record=Sampled())
    assert identity(sampled) == identity(sampled.model_copy(update={"layout": "packed"}))
    counts = Counts()
    assert identity(counts) != identity(counts.model_copy(update={"draws": 9}))


def test_a_renamed_field_keeps_its_place_in_the_key_and_its_old_spelling() -> None:
    renamed = Evaluate.model_validate({"record_bytes": True})
    assert Evaluate.model_validate({"weight": True}) == renamed
    assert identity(renamed)["weight"] is True
    assert "record_bytes" not in identity(renamed)


def test_key_does_not_depend_on_the_order_of_fields() -> None:
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})


def test_key_is_pinned() -> None:
    """A change of this digest silently orphans every set ever made: bump versions instead."""
    assert digest({"stage": "x", "config": {"lr": 1e-05, "n": 3}, "seed": 0}) == (
        "1472156e936a8cf0720efe354c5c9551a786dcc00fda3b0e600c2352708948d5"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x"])
def test_values_without_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"field.inner.*canonical"):
        canonical({"inner": value}, "field")


def test_difference_names_the_leaf() -> None:
    old = {"config": {"record": {"tau": 0.023, "kind": "head_tail"}}, "seed": 0}
    new = {"config": {"record": {"tau": 0.01, "kind": "head_tail"}}, "seed": 0}
    assert difference(old, new) == ["config.record.tau: 0.023 -> 0.01"]
