"""`afterglow methods`, in this process."""

import json

import pytest

from pipeline.cli import main
from pipeline.planning.methods import method_names, read_method


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *method_names()]
    (tip,) = [line for line in lines if line.startswith("tip ")]
    assert "position weight" in tip
    assert "2604.14084" in tip
    assert [one["name"] for one in json.loads(last)["methods"]] == method_names()


def test_one_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "redi", "tip"]) == 0
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for name in ("redi", "tip"):
        assert all(value in text for value in read_method(name).summary.values())
    assert max(map(len, out.splitlines()[:-1])) <= 120


def test_an_unknown_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "tpi"]) == 78
    assert "did you mean `tip`" in capsys.readouterr().err
