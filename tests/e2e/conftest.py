"""One run of the whole chain, shared by the tests that look at its results."""

from pathlib import Path

import pytest

from tests.command import TINY, Outcome, afterglow


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store for the shared chain."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def chain(store: Path) -> Outcome:
    """The chain, run to the end on the tiny recipe: real models, real vLLM, real shards."""
    done = afterglow("run", "report", *TINY, store=store)
    assert done.code == 0, done.err
    return done
