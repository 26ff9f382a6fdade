"""Tokenizers: loading one, copying one, making one from text. Named apart from the library it uses.

A made tokenizer is an ordinary Hugging Face directory (`tokenizer.json`, `tokenizer_config.json`,
chat template) that `AutoTokenizer` and vLLM load. Special tokens are <pad>, <bos> and <eos>, with
ids 0 to 2.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from stages.config.corpus import GGUF
from stages.config.corpus import Tokenizer as TokenizerTable
from stages.models.environment import prepare_environment
from storage.errors import ConfigError, DataError
from storage.files.place import Place
from storage.files.write import create_once

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")

TEMPLATE = "chat_template.jinja"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""Files of a tokenizer, whatever its family."""


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `directory`; read once per process, so do not change what comes back.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    found = [directory / name for name in FILES if (directory / name).exists()]
    if not found:
        raise DataError(
            f"{directory}: no tokenizer in this directory. Save the model's tokenizer next to it "
            "with `tokenizer.save_pretrained`."
        )
    stats = [file.stat() for file in found]
    return _load(directory, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


def read_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """As `load_tokenizer`, by what `tokenizer.json` says and without torch where there is one.

    For looking at models before anything runs: the class that a model's family has for its
    tokenizer takes seconds to import, and could in principle encode otherwise than its file says.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not (directory / "tokenizer.json").exists():
        return load_tokenizer(directory)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    stats = [(directory / name).stat() for name in names if (directory / name).exists()]
    return _read(directory, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=4)
def _read(directory: Path, _stamp: tuple[tuple[int, int], ...]) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the library raises nothing more specific
        raise DataError(
            f"{directory}: no tokenizer that can be loaded ({error}). Save the model's tokenizer "
            "again with `tokenizer.save_pretrained`."
        ) from error


@lru_cache(maxsize=4)
def _load(directory: Path, _stamp: tuple[tuple[int, int], ...]) -> "PreTrainedTokenizerBase":
    """A tokenizer of 150 thousand ids takes seconds to build; `_stamp` tells changed files."""
    prepare_environment()
    settings = directory / "tokenizer_config.json"
    try:
        # Where tokenizer.json holds everything, its class loads without torch, seconds faster.
        if (
            settings.exists()
            and (directory / "tokenizer.json").exists()
            and json.loads(settings.read_text()).get("tokenizer_class") in _GENERIC
        ):
            from transformers import PreTrainedTokenizerFast as Loader
        else:
            from transformers import AutoTokenizer as Loader
        return Loader.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(
            f"{directory}: no tokenizer that can be loaded ({error}). Save the model's tokenizer "
            "again with `tokenizer.save_pretrained`."
        ) from error


def copy_tokenizer(source: Place, target: Place) -> list[Place]:
    """Copy the tokenizer files in `source` byte for byte; returns the copies.

    Each copy is written atomically; an existing one is kept.

    Raises:
        RetryError: a write failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in FILES if (source / name).exists()]
    for name in names:
        create_once(target / name, (source / name).read_bytes())
    return [target / name for name in names]


def make_tokenizer(table: TokenizerTable, texts: Iterable[str], directory: Path) -> None:
    """Make the tokenizer a corpus asks for and save it.

    Args:
        table: `kind`, `vocab_size`, or `path` of one to copy.
        texts: Documents to learn from; read once, not at all for `path`.
        directory: Where to save it.

    Raises:
        ConfigError: the vocabulary is too small for the kind, or a package is not installed.
        DataError: `path` holds no tokenizer.
    """
    if table.path is not None and table.path.endswith(GGUF):
        from stages.models.gguf import save_gguf_tokenizer

        save_gguf_tokenizer(table.path, directory)
        return
    if table.path is not None:
        load_tokenizer(Path(table.path))
        copy_tokenizer(Path(table.path), directory)
        return
    made = _characters(texts) if table.kind == "characters" else _byte_bpe(table.vocab_size, texts)
    save_tokenizer(made, directory)


def save_tokenizer(tokenizer: "Tokenizer", directory: Path) -> None:
    """Save with our special tokens and chat template, as a Hugging Face directory."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def _characters(texts: Iterable[str]) -> "Tokenizer":
    """One token per character seen, in the order of code points."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *sorted(seen)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    return tokenizer


def _byte_bpe(size: int, texts: Iterable[str]) -> "Tokenizer":
    """Byte-level BPE: all 256 bytes, then merges learnt from the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 3
    if size < smallest:
        raise ConfigError(
            f"corpus.tokenizer.vocab_size = {size}: byte-level BPE needs at least {smallest} "
            "tokens (256 bytes and 3 special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
