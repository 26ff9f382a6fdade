"""The generated part of a page, and nothing else, is replaced."""

from pathlib import Path

import pytest

from pipeline.planning.document import BEGIN, END, block_for, replace_block
from storage.errors import DataError


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nOur own words.\n")
    for text in ("| a |", "| b |\n| c |"):
        replace_block(page, text)
        assert page.read_text() == f"# Title\n\n{BEGIN}\n{text}\n{END}\n\nOur own words.\n"


def test_a_block_with_a_name_is_that_of_one_recipe(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    own = "<!-- generated: small -->"
    page.write_text(f"{BEGIN}\n{END}\nwords\n{own}\n{END}\n")
    replace_block(page, "of small", block_for(page, "small"))
    replace_block(page, "of all", block_for(page, "other"))
    assert page.read_text() == f"{BEGIN}\nof all\n{END}\nwords\n{own}\nof small\n{END}\n"


def test_a_block_that_is_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nours\n{END}\n")
    with pytest.raises(DataError, match="<!-- generated: small -->"):
        replace_block(page, "text", "small")
    assert page.read_text() == f"{BEGIN}\nours\n{END}\n"


@pytest.mark.parametrize("content", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_the_markers_stays_as_it_is(tmp_path: Path, content: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(content)
    with pytest.raises(DataError, match=r"page\.md: has no block to replace"):
        replace_block(page, "text")
    assert page.read_text() == content


def test_a_page_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.md: cannot be read"):
        replace_block(tmp_path / "nowhere.md", "text")
