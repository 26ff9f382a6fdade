"""Ends of responses that are text and no token: found alike in every engine.

Tokens are what is kept, and none is cut: a response ends with the token that completes the string,
even if that token holds more. So whether a position is in the set depends on the tokens before it
alone, every token kept was drawn with the log-probability stored, and the student learns to write
the string and not just to break off before it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.config.data import Sampling
from stages.models.tokenizer import load_tokenizer
from storage.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = 8
"""Tokens read before the string could begin: the first ones may decode to half a character."""


class StopStrings:
    """Finds the strings of `Sampling.stop` in a response while it is decoded.

    Args:
        strings: At least one; special tokens may be given by their text.
        tokenizer: Of the model that writes.
    """

    def __init__(self, strings: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._strings, self._tokenizer = tuple(strings), tokenizer
        # A token holds at least a byte, so that many tokens hold the longest string.
        self._window = max(len(string.encode()) for string in strings) + _MARGIN

    def end(self, tok: Sequence[int]) -> bool:
        """Whether the last of the tokens completes one of the strings; ask after each token."""
        text = self._tokenizer.decode(
            list(tok[-self._window :]),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return any(string in str(text) for string in self._strings)


def stop_strings(sampling: Sampling, tokenizer: Path | None) -> StopStrings | None:
    """What finds the stop strings of `sampling`; None where it has none.

    Raises:
        ConfigError: there is no tokenizer to find them with.
        DataError: the tokenizer cannot be read.
    """
    if not sampling.stop:
        return None
    if tokenizer is None:
        raise ConfigError(
            f"sampling.stop = {list(sampling.stop)}: stop strings need a tokenizer, and this "
            "engine was opened without one"
        )
    return StopStrings(sampling.stop, load_tokenizer(tokenizer))


def text_before(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the strings; all of it where there is none."""
    found = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(found)] if found else text
