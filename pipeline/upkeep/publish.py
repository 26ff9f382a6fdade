"""Sets as a repository on the Hub: `afterglow publish`.

The repository is first a list of (path in it, source), so that what a dry run writes is what an
upload sends. Provenance stays at home: it names machines, users and paths.
"""

import logging
import re
import shutil
from pathlib import Path

from pipeline.ledger import RESOLVED
from pipeline.upkeep.cards import dataset_card, model_card
from storage.errors import DataError, RetryError, UsageError
from storage.files.write import disk_errors
from storage.manifest import FILE_NAME, Manifest, read_manifest
from storage.sets import verify_set

log = logging.getLogger(__name__)

Content = dict[str, Path | bytes]
"""By path in the repository: a file, or its bytes."""

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def contents(name: str, directories: list[Path], licence: str) -> tuple[str, Content]:
    """What the repository `name` will hold.

    Args:
        name: `owner/name`.
        directories: Committed sets: one model, or any number of sets of sequences or records.
        licence: Identifier as on the Hub.

    Returns:
        Type of the repository (`dataset` or `model`), and its files.

    Raises:
        UsageError: not the form of a name, or sets that do not go together.
        DataError: a set is damaged.
    """
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"--repo {name}: give owner and name, as in someone/addition-records")
    manifests = {directory: _sound(directory) for directory in directories}
    if all(manifest.parts for manifest in manifests.values()):
        return "dataset", _dataset(name, manifests, licence)
    (directory, manifest), *others = manifests.items()
    if others or manifest.kind != "model":
        raise UsageError(
            "publish one model, or sets of sequences and records: "
            + ", ".join(f"{path.name} holds {found.kind}" for path, found in manifests.items())
        )
    card = model_card(name, licence, manifest)
    return "model", {"README.md": card.encode(), **_files("", directory, manifest)}


def _sound(directory: Path) -> Manifest:
    problems = verify_set(directory)
    if problems:
        raise DataError(f"{directory}: not published. {'; '.join(problems)}")
    return read_manifest(directory)


def _dataset(name: str, manifests: dict[Path, Manifest], licence: str) -> Content:
    by_folder = {_folder(path, manifests): found for path, found in manifests.items()}
    card = dataset_card(name, licence, by_folder)
    out: Content = {"README.md": card.encode()}
    for path, manifest in manifests.items():
        out |= _files(f"{_folder(path, manifests)}/", path, manifest)
    return out


def _folder(directory: Path, manifests: dict[Path, Manifest]) -> str:
    """Name of the node, with digits of the key where two sets share it."""
    manifest = manifests[directory]
    shared = sum(manifest.name == other.name for other in manifests.values()) > 1
    return f"{manifest.name}-{manifest.key[:12]}" if shared else manifest.name


def _files(prefix: str, directory: Path, manifest: Manifest) -> Content:
    names = [*(part.file for part in manifest.parts), *(file.path for file in manifest.files)]
    if (directory / RESOLVED).is_file():
        names.append(RESOLVED)
    return {f"{prefix}{name}": directory / name for name in [*names, FILE_NAME]}


def write(content: Content, directory: Path) -> None:
    """The repository as a directory.

    Raises:
        UsageError: the directory is there and not empty.
        RetryError: the disk refused.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory}: is not empty; give another directory with --into")
    with disk_errors(directory):
        for name, source in content.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)


def upload(name: str, kind: str, content: Content, *, private: bool) -> str:
    """Send everything in one commit; returns the address of the commit.

    Raises:
        RetryError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx  # whatever it is called in this version

    operations = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=source)
        for path, source in content.items()
    ]
    api = HfApi()
    try:
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        done = api.create_commit(
            name, operations, repo_type=kind, commit_message="Sets written by Afterglow"
        )
    except (httpx.HTTPError, HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise RetryError(
            f"{name}: not published ({error}). Check the network and `hf auth login`, then run the "
            "same again; what was sent already is not sent twice."
        ) from error
    return str(done.commit_url)
