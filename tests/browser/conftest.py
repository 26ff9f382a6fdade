"""A real Chromium. Tests are skipped, with what to do, where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import MISSING, executable


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="`make test-browser` installs playwright"
    )
    program = executable()
    if program is None:
        pytest.skip(MISSING)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def show(chromium: Any) -> Iterator[Open]:
    """Opens a file in a page of its own. Errors in its scripts and any request fail the test."""
    problems: list[str] = []
    contexts: list[Any] = []

    def opened(file: Path, scheme: str = "light", width: int = 1280) -> Any:
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type != "error" or problems.append(line.text))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("file:", "blob:")) or problems.append(asked.url),
        )
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
