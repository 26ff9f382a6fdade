"""Kinds of records agree with the columns and the parameters that `FORMAT.md` lists."""

import re
from pathlib import Path

import pytest

from storage.kinds import KINDS, Kind
from storage.schema import COLUMNS, column_names

FORMAT = (Path(__file__).resolve().parents[2] / "storage" / "FORMAT.md").read_text()


def stated(name: str) -> str:
    """What the tables say of a column or a parameter."""
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", FORMAT, re.MULTILINE)
    return row


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_columns_are_those_of_the_specification(kind: Kind) -> None:
    for name in column_names("records", {"kind": kind.name, "logp": True}, 0, reference=True):
        if COLUMNS[name].level in ("draw", "entry", "head", "tail") or name in ("nh", "rest"):
            assert kind.name in stated(name)
    assert set(kind.columns) <= set(COLUMNS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_limits_are_those_of_the_specification(kind: Kind) -> None:
    for name, (least, most) in kind.limits.items():
        assert kind.name in stated(name)
        assert f"{least} to {most}" in stated(name)
    assert kind.limits.keys() <= kind.parameters


def test_only_drawn_kinds_have_draws_and_tails() -> None:
    assert [kind.name for kind in KINDS.values() if kind.drawn] == ["counts", "head_tail"]
    assert [kind.name for kind in KINDS.values() if kind.tail] == ["head_tail"]
    assert all(("copies" in kind.limits) == kind.drawn for kind in KINDS.values())
