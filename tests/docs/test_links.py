"""Pages point at what exists: every relative link, and every file that is named by its path."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "storage" / "FORMAT.md"])
LINK = re.compile(r"\]\(([^)#\s]+)")
FILE = re.compile(
    r"`((?:benchmarks|dags|docs|pipeline|stages|storage|tests|tools)/[\w/.-]+?/?)(?::[\w.]+)?`"
)
MODULE = re.compile(r"`((?:pipeline|stages|storage)(?:\.[a-z_]+)+)(?:\.[A-Z]\w*)?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text()) if "://" not in t]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_by_their_path_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # speaks of the past
        return
    assert not [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_named_by_their_dotted_path_exist(page: Path) -> None:
    for name in MODULE.findall(page.read_text()):
        path = ROOT / name.replace(".", "/")
        parent = path.parent.with_suffix(".py")  # a function or constant of a module
        assert path.is_dir() or path.with_suffix(".py").exists() or parent.exists(), name


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
