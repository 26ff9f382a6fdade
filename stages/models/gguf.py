"""GGUF files: where they are, and the model and tokenizer in one.

`transformers` reads the format and dequantises the weights, with the packages `gguf` and
`accelerate`.
"""

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from stages.models.packaged import packaged_file
from storage.errors import ConfigError, DataError
from storage.files.write import sha256_file


def load_gguf(
    pattern: str, sha256: str | None, tokenizer_into: Path
) -> tuple[PreTrainedModel, str]:
    """The dequantised model in a GGUF file, in float32; its tokenizer is written beside.

    The model is a new one that knows nothing of quantisation, so it is saved and loaded as any
    other.

    Args:
        pattern: The file; `{package}/name` is one of an installed Python package.
        sha256: Digest it must have, if any.
        tokenizer_into: Where tokenizer and chat template go.

    Returns:
        The model and the sha256 of the file.

    Raises:
        ConfigError: a package is not installed.
        DataError: the file is missing, is another one than `sha256` names, or cannot be read.
    """
    file = _gguf_file(pattern)
    digest = sha256_file(file)
    if sha256 is not None and digest != sha256:
        raise DataError(
            f"{file}: its sha256 is {digest}, but {sha256} is expected. This is another file than "
            "the recipe was written for; get that one, or change `sha256`."
        )
    disable_progress_bar()
    with _told(file, "as a causal language model"):
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
    save_gguf_tokenizer(pattern, tokenizer_into)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        settings.pop(name, None)
    model = type(read)(type(read.config).from_dict(settings)).to(torch.float32)  # type: ignore[reportArgumentType]
    model.load_state_dict(read.state_dict())
    return model.eval(), digest


def save_gguf_tokenizer(pattern: str, directory: Path) -> None:
    """Write the tokenizer and the chat template in a GGUF file, as a Hugging Face directory.

    Raises:
        ConfigError: a package is not installed.
        DataError: the file is missing, or holds no tokenizer that can be read.
    """
    file = _gguf_file(pattern)
    with _told(file, "as a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    tokenizer.save_pretrained(directory)


def _gguf_file(pattern: str) -> Path:
    file = packaged_file(pattern)
    if not file.is_file():
        raise DataError(f"{file}: no such GGUF file; check the recipe")
    lacking = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if lacking:
        raise ConfigError(
            f"{file}: reading GGUF needs {' and '.join(lacking)}; install the extra `smollm2`"
        )
    return file


@contextmanager
def _told(file: Path, what: str) -> Iterator[None]:
    """What transformers says of a file that it cannot read, as an error that names the file."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, struct.error) as error:
        raise DataError(
            f"{file}: cannot be read {what} ({error}). transformers reads GGUF files of some "
            "architectures and quantisations only."
        ) from error
