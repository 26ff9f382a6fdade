"""A real Chromium for benchmarks and tests: where it is, and pages that are timed in it."""

import os
import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MISSING = (
    "no Chromium: `apt-get install chromium-headless-shell`, or name one in AFTERGLOW_CHROMIUM"
)


def executable() -> str | None:
    """The browser to use: $AFTERGLOW_CHROMIUM, or the first one on the path."""
    named = os.environ.get("AFTERGLOW_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Timed:
    """An open inspector page.

    Args:
        browser: Of Playwright.
        file: The page.
    """

    def __init__(self, browser: Any, file: Path) -> None:
        self._page = browser.new_page(viewport={"width": 1280, "height": 900})
        self._page.goto(file.resolve().as_uri())
        self._page.wait_for_selector("#inspector[data-ready]", timeout=120_000)
        self.ready = float(self._page.evaluate("performance.now()")) / 1000
        """Seconds from opening the file until the inspector can be used."""

    @property
    def first_paint(self) -> float:
        """Seconds from opening the file until something is seen."""
        return (
            float(
                self._page.evaluate(
                    "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"
                )
            )
            / 1000
        )

    @property
    def heap(self) -> float:
        """Bytes in use by its scripts."""
        return float(self._page.evaluate("performance.memory.usedJSHeapSize"))

    def choose(self, label: str, value: str) -> float:
        """Milliseconds from choosing an option until what it changes has been painted."""
        return self._until_painted(
            f"const box = document.querySelector('select[aria-label=\"{label}\"]');"
            f"box.value = '{value}'; box.dispatchEvent(new Event('change'));"
        )

    def scroll(self, share: float) -> float:
        """Milliseconds from scrolling the list to a share of its height until that is painted."""
        return self._until_painted(
            "const list = document.querySelector('.list');"
            f"list.scrollTop = {share} * list.scrollHeight;"
        )

    def press(self, key: str) -> float:
        """Milliseconds from a key in the list until what it changes has been painted."""
        return self._until_painted(
            "document.querySelector('.list').dispatchEvent("
            f"new KeyboardEvent('keydown', {{key: '{key}'}}));"
        )

    def close(self) -> None:
        """Close the page."""
        self._page.close()

    def _until_painted(self, action: str) -> float:
        return float(
            self._page.evaluate(
                "async () => { const began = performance.now();"
                + action
                + "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
                "return performance.now() - began; }"
            )
        )
