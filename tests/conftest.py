"""Real models shared by all tests: made once per session, the engine started once."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from stages.config.corpus import Tokenizer
from stages.config.generation import GenerateRun
from stages.config.records import ScoreRun
from stages.data.tasks import task
from stages.engines.base import Generator
from stages.engines.open import open_generator
from stages.models.environment import prepare_environment
from stages.models.tokenizer import load_tokenizer, make_tokenizer

# Before anything imports torch: settings that only work then.
prepare_environment()

# An example that takes long says that the machine is busy, nothing about the code.
hypothesis.settings.register_profile("afterglow", deadline=None)
hypothesis.settings.load_profile("afterglow")

if TYPE_CHECKING:
    from stages.scoring.scorer import Scorer


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers of `make test` take whole files, and one of them all that looks at the e2e chain."""
    for item in items:
        shared = "chain" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("chain" if shared else str(item.path)))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what the command, called in this process, did to logging.

    Its handler writes to the stderr of one test, which is closed when the next one runs.
    """
    names = (None, "pipeline", "stages", "storage")
    loggers = [logging.getLogger(name) for name in names]
    before = [(one, list(one.handlers), one.level) for one in loggers]
    yield
    for one, handlers, level in before:
        one.handlers[:] = handlers
        one.setLevel(level)


CONTEXT = 64
"""Longest sequence of the tiny model."""


def write_chat_model(directory: Path, *, rows: int | None = None, head_dim: int = 32) -> Path:
    """A one-layer Qwen3 over the characters of the addition task, random but not uniform.

    Args:
        directory: Where to.
        rows: Size of the vocabulary; default that of the tokenizer, more is padding.
        head_dim: Width of an attention head.
    """
    from tests.world import write_model

    make_tokenizer(Tokenizer(kind="characters"), [task("addition").characters], directory)
    words = load_tokenizer(directory)
    return write_model(
        directory,
        words=words,
        sharpen="all",
        by=6.0,
        vocab_size=rows or len(words),
        hidden_size=2 * head_dim,
        intermediate_size=96,
        kv_heads=2,
        context=CONTEXT,
        tied=True,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny causal language model with tokenizer and chat template."""
    return write_chat_model(tmp_path_factory.mktemp("model"))


class EngineSlot:
    """The one vLLM engine a process can hold; opening another model closes the one before."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key: tuple[Any, ...] | None = None
        self._engine: Any = None

    def open(self, directory: Path) -> Generator:
        """An engine with the model in `directory`, decoding at most 8 sequences at once."""
        run = GenerateRun(engine="vllm", max_sequences=8, kv_cache_mib=64)
        return self._hold(
            ("generate", directory),
            lambda: open_generator(directory, dtype="float32", run=run, max_model_len=CONTEXT),
        )

    def open_scorer(self, directory: Path, dtype: str = "float32", **options: int) -> "Scorer":
        """An engine that scores with the model in `directory`; `options` are of `ScoreRun`."""
        from stages.scoring.scorer import open_scorer

        run = ScoreRun.model_validate({"engine": "vllm", "kv_cache_mib": 64, **options})
        key = ("score", directory, dtype, *options.items())
        return self._hold(key, lambda: open_scorer(directory, dtype, run))

    def _hold(self, key: tuple[Any, ...], opened: Callable[[], AbstractContextManager[Any]]) -> Any:
        if key != self._key:
            self.close()
            self._engine = self._stack.enter_context(opened())
            self._key = key
        return self._engine

    def close(self) -> None:
        """End the engine."""
        self._stack.close()
        self._key = self._engine = None


@pytest.fixture(scope="session")
def vllm_slot() -> Iterator[EngineSlot]:
    """vLLM, imported once per session."""
    pytest.importorskip("vllm", reason="install the extra `cpu` or `cuda`")
    slot = EngineSlot()
    yield slot
    slot.close()


@pytest.fixture
def vllm_engine(vllm_slot: EngineSlot, tiny_model: Path) -> Generator:
    """A vLLM engine with the tiny model in it."""
    return vllm_slot.open(tiny_model)


@pytest.fixture(scope="session")
def transformers_engine(tiny_model: Path) -> Iterator[Generator]:
    """The transformers engine with the tiny model in it."""
    run = GenerateRun(engine="transformers", max_sequences=8)
    with open_generator(tiny_model, dtype="float32", run=run, max_model_len=CONTEXT) as engine:
        yield engine
