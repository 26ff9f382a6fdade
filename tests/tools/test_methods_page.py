"""docs/methods.md is what the overlays say."""

from pathlib import Path

import pytest

from tools import methods_page


def test_the_page_is_up_to_date() -> None:
    assert methods_page.main(["--check"]) == 0, "run `python tools/methods_page.py`"


def test_check_notices_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_page, "PAGE", tmp_path / "methods.md")
    assert methods_page.main(["--check"]) == 1
    assert methods_page.main([]) == 0
    assert methods_page.main(["--check"]) == 0
