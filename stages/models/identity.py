"""Who a model is: digests of its weights, tokenizer and chat template, and the checks on them.

Token ids mean nothing without the tokenizer that made them, and an offline teacher score is only
right when the teacher that wrote the SFT data is the one that scores (arXiv 2604.13010, theorem
3.8). So every set carries the identity of the teacher it descends from, and stages compare.
Importing this module does not import torch or transformers.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.job import Input
from stages.models.chat_template import same_template, template_digest
from stages.models.hub import ALLOW_PICKLED, download
from stages.models.tokenizer_comparison import Compatible, Different, compare
from stages.models.tokenizer_identity import TokenizerIdentity, identify_tokenizer, loaded_probes
from storage.copies import local_copy
from storage.errors import DataError
from storage.files.place import Place
from storage.files.write import replace_file

log = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_COPIES = ("pytorch_model*.bin", "consolidated*.safetensors")
"""Weights that are not loaded where others are there."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class ModelIdentity:
    """What makes two model directories the same model."""

    path: str
    """What it is called, as `Input.called`: for people, never compared."""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """sha256 by file name: the weights and `config.json`."""
    tokenizer: str = ""
    """sha256 over vocabulary, merges and pre-tokenisation."""
    chat_template: str = ""
    """sha256 of the chat template; empty without one."""
    dtype: str = ""
    """Numeric type the model is run in."""
    directory: Path | None = field(default=None, compare=False, repr=False)
    """Where the files are; not part of the identity."""

    @property
    def weights(self) -> str:
        """One sha256 over the file digests."""
        text = json.dumps(dict(sorted(self.files.items())))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """A JSON-ready dictionary: with the digest over all weights, and what the tokenizer does.

        Loads the tokenizer.
        """
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        known |= {"files": dict(self.files), "weights": self.weights}
        directory = known.pop("directory")
        return known if directory is None else known | described_tokenizer(directory)


class DigestCache:
    """sha256 of files, remembered by path, size and modification time in one JSON file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        if path is not None and path.exists():
            self._known = json.loads(path.read_text())

    def sha256(self, file: Path) -> str:
        """Digest of the content of `file`, read again only if size or time changed."""
        stat = file.stat()
        stamp: list[object] = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(str(file))
        if known is not None and known[:2] == stamp:
            return str(known[2])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        self._known[str(file)] = [*stamp, digest.hexdigest()]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self._known).encode())
        return digest.hexdigest()


def identify(source: Input, cache: DigestCache) -> tuple[Path, ModelIdentity]:
    """Directory and identity of a model that a job reads.

    Raises:
        DataError: it is unavailable, or not a model (`local_directory`, `model_identity`).
    """
    directory = local_directory(source)
    return directory, model_identity(directory, source.dtype, cache, source.called)


def model_identity(
    directory: Path, dtype: str, cache: DigestCache | None = None, called: str | None = None
) -> ModelIdentity:
    """Identity of the model in `directory`.

    Args:
        directory: Where its files are.
        dtype: Numeric type it is run in.
        cache: Digests that are known already.
        called: Its name; default the directory.

    Raises:
        DataError: the directory has no weights, no `config.json` or no tokenizer.
    """
    cache = cache or DigestCache()
    check_weights(directory)
    weights = sorted(file for pattern in _WEIGHTS for file in directory.glob(pattern))
    if not weights or not (directory / "config.json").exists():
        raise DataError(
            f"{directory}: not a model directory (no *.safetensors or no config.json). Give a "
            "directory written by `save_pretrained`, or a Hub id."
        )
    files = {file.name: cache.sha256(file) for file in [*weights, directory / "config.json"]}
    return ModelIdentity(
        path=called or str(directory),
        files=files,
        tokenizer=tokenizer_hash(directory),
        chat_template=chat_template_hash(directory),
        dtype=dtype,
        directory=directory,
    )


TOKENIZER_FIELDS = ("tokenizer", "chat_template", "fingerprint", "template")
"""What a set says of its tokenizer, and a model identity of its own."""


def described_tokenizer(directory: Place) -> dict[str, Any]:
    """What manifests say of the tokenizer in `directory`: its digests, by bytes and by meaning.

    Loads the tokenizer.

    Raises:
        DataError: the directory has no tokenizer files.
    """
    found = replace(tokenizer_of(directory), loaded=loaded_probes(directory))
    return {
        "tokenizer": found.hash,
        "chat_template": chat_template_hash(directory),
        "fingerprint": found.to_json(),
        "template": template_digest(directory),
    }


def tokenizer_of(directory: Place) -> TokenizerIdentity:
    """What the tokenizer in `directory` does.

    Raises:
        DataError: the directory has no tokenizer files.
    """
    return identify_tokenizer(directory, tokenizer_hash(directory))


def in_footer(described: Mapping[str, Any]) -> dict[str, Any]:
    """What the footer of a part says of a model or tokenizer: its digests over bytes.

    What the tokenizer does is in the manifest alone: it would be repeated in every part, and parts
    of sets from before it was recorded could not be made again byte for byte.
    """
    return {name: one for name, one in described.items() if name not in ("fingerprint", "template")}


def recorded_tokenizer(described: Mapping[str, Any]) -> TokenizerIdentity:
    """What a manifest says of a tokenizer, in the field of a model or of its own."""
    fingerprint = described.get("fingerprint")
    return TokenizerIdentity.of_json(fingerprint, str(described.get("tokenizer") or ""))


def loaded_files(names: Iterable[str]) -> set[str]:
    """Those of a model's files that are loaded: no second copy of the weights in another format."""
    kept = set(names)
    for copy in _COPIES:
        others = {name for name in kept if not fnmatch(name, copy)}
        if any(name.endswith(".safetensors") for name in others):
            kept = others
    return kept


def tokenizer_hash(directory: Place) -> str:
    """sha256 over what decides token ids; blind to formatting, padding and truncation settings.

    Raises:
        DataError: the directory has no tokenizer files.
    """
    fast = directory / "tokenizer.json"
    if isinstance(fast, Path) and fast.exists():
        stat = fast.stat()
        return _hash_of_file(fast, (stat.st_size, stat.st_mtime_ns))
    if fast.exists():
        return _hash_of_content(fast.read_text())
    found = [directory / name for name in _TOKENIZER_FILES if (directory / name).exists()]
    if not found:
        raise DataError(
            f"{directory}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json). Save the "
            "model's tokenizer into the same directory with `tokenizer.save_pretrained`."
        )
    digest = hashlib.sha256()
    for file in found:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _hash_of_file(file: Path, _stamp: tuple[int, int]) -> str:
    """A tokenizer of 150 thousand ids takes half a second, and every node asks for it."""
    return _hash_of_content(file.read_text())


def _hash_of_content(text: str) -> str:
    content = json.loads(text)
    kept = {
        name: content.get(name)
        for name in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def chat_template_hash(directory: Place) -> str:
    """sha256 of the chat template next to the model, or an empty string."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    settings = directory / "tokenizer_config.json"
    template = json.loads(settings.read_text()).get("chat_template") if settings.exists() else None
    return hashlib.sha256(json.dumps(template).encode()).hexdigest() if template else ""


def local_directory(source: Input) -> Path:
    """Directory of a model; one named by Hub id is downloaded through `huggingface_hub`.

    One in a store that is not on this machine is copied into the cache.

    Raises:
        DataError: neither a directory nor a model the Hub knows, or the Hub cannot be reached.
    """
    path = source.directory
    if not isinstance(path, Path):
        return local_copy(path)
    if path.is_dir():
        check_weights(path)
        return path
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = download(source.path, source.revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{source.path}: no such directory, and it could not be downloaded from the Hub "
            f"({error}). Check the path, or download the model first."
        ) from error
    if not any(file for pattern in _WEIGHTS for file in found.glob(pattern)):
        raise DataError(
            f"{source.path}: the repository has no *.safetensors. If its weights are pickled and "
            f"you trust their origin, set {ALLOW_PICKLED}=1; else give another model."
        )
    check_weights(found)
    return found


def check_weights(directory: Path) -> None:
    """Raise for pickled weights, which may run code when loaded, and for adapters.

    transformers lays an adapter over the weights where PEFT is installed and ignores it elsewhere;
    vLLM ignores it.

    Raises:
        DataError: there is an adapter, or there are pickled weights only and the environment does
            not allow them.
    """
    if (directory / "adapter_config.json").exists():
        raise DataError(
            f"{directory / 'adapter_config.json'}: an adapter (LoRA), which is not applied here. "
            "Merge it into the model (`merge_and_unload` of PEFT, then `save_pretrained`) and give "
            "that directory."
        )
    pickled = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if not pickled or any(directory.glob("*.safetensors")) or os.environ.get(ALLOW_PICKLED) == "1":
        return
    raise DataError(
        f"{directory / pickled[0]}: pickled weights, which may run code when they are loaded. Save "
        "the model as safetensors (`save_pretrained`), or set "
        f"{ALLOW_PICKLED}=1 if you trust its origin."
    )


def check_teacher(
    expected: Mapping[str, object] | None,
    found: Mapping[str, object],
    where: str,
    consistency: str = "refuse",
) -> None:
    """Compare the teacher a set descends from with the one about to be used.

    Weights, tokenizer and chat template must be the same. Another numeric type is the same teacher
    with other rounding errors; that is logged.

    Args:
        expected: `Manifest.teacher` of the set, or None when its origin is unknown.
        found: `ModelIdentity.to_json()` of the teacher in use.
        where: Name of the set, for the message.
        consistency: `refuse` raises, `warn` logs.

    Raises:
        DataError: the two differ and `consistency` is `refuse`.
    """
    if expected is None:
        log.warning("%s: it does not name its teacher; teacher consistency is not checked", where)
        return
    if expected.get("dtype") != found.get("dtype"):
        log.warning(
            "%s: its teacher ran in %s, the teacher in use runs in %s: probabilities will "
            "differ by rounding. Set teacher.dtype to that of the set to rule it out.",
            where, expected.get("dtype"), found.get("dtype"),
        )  # fmt: skip
    ours, theirs = expected["files"], found["files"]
    assert isinstance(ours, Mapping)
    assert isinstance(theirs, Mapping)
    names = sorted(loaded_files(ours) | loaded_files(theirs))
    differing = [name for name in names if ours.get(name) != theirs.get(name)]
    result = compare(recorded_tokenizer(expected), recorded_tokenizer(found))
    if isinstance(result, Different):
        differing.append(f"tokenizer ({result.reason})")
    if not same_template(expected, found):
        differing.append("chat template")
    if not differing:
        return
    message = (
        f"{where}: its teacher is {expected['path']} (weights {str(expected['weights'])[:12]}), "
        f"but {found['path']} (weights {str(found['weights'])[:12]}) is about to be used; "
        f"differing: {', '.join(differing)}. Offline distillation needs the same teacher in both "
        'places. Use that teacher, or set `consistency = "warn"` to continue anyway.'
    )
    if consistency == "refuse":
        raise DataError(message)
    log.warning(message)


def check_tokenizer(
    expected: TokenizerIdentity, found: TokenizerIdentity, where: str, other: str
) -> None:
    """Raise if token ids of two tokenizers would be mixed; log what differs without harm.

    Args:
        expected: Of the data.
        found: Of the model that is to read it.
        where: Name of the data, for the message.
        other: Name of the model.

    Raises:
        DataError: ids of one mean something else to the other; both hashes are in the message.
    """
    result = compare(expected, found)
    if isinstance(result, Compatible):
        log.info("%s and %s: their tokenizers share their ids; %s", where, other, result.note)
    if isinstance(result, Different):
        raise DataError(
            f"{where}: made with tokenizer {expected.hash[:12]}, but {other} has tokenizer "
            f"{found.hash[:12]}; token ids would not match: {result.reason}. Use a model of the "
            "same tokenizer."
        )
