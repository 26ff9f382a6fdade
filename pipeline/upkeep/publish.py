"""Sets as a repository on the Hub: `afterglow publish`.

The content of the repository is collected first, so that a dry run writes what an upload sends.
`provenance.json` is not published: it names machines, users and paths. Neither is the state that a
student hands on to the next round of its training, which is larger than the model.
"""

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.ledger import RESOLVED
from pipeline.upkeep.cards import dataset_card, model_card
from storage.copies import NEXT_ROUND
from storage.errors import DataError, RetryError, UsageError
from storage.files.write import disk_errors
from storage.manifest import FILE_NAME, Manifest, read_manifest, to_text
from storage.sets import verify_set

log = logging.getLogger(__name__)

Content = dict[str, Path | bytes]
"""By path in the repository: a file, or its bytes."""


def contents(name: str, directories: list[Path], licence: str) -> tuple[str, Content]:
    """What the repository `name` will hold.

    Args:
        name: `owner/name`.
        directories: Committed sets: one model, or any number of sets of sequences or records.
        licence: Identifier as on the Hub.

    Returns:
        Type of the repository (`dataset` or `model`), and its files.

    Raises:
        UsageError: `name` is malformed, or the sets do not belong in one repository.
        DataError: a set is damaged.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UsageError(f"--repo {name}: give owner and name, as in someone/addition-records")
    manifests: dict[Path, Manifest] = {}
    for directory in directories:
        if problems := verify_set(directory):
            raise DataError(f"{directory}: not published. {'; '.join(problems)}")
        manifests[directory] = read_manifest(directory)
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


def _dataset(name: str, manifests: dict[Path, Manifest], licence: str) -> Content:
    """A folder for each set: named like its node, with digits of the key where two share that."""
    nodes = [manifest.name for manifest in manifests.values()]
    by_folder: dict[str, Manifest] = {}
    files: Content = {}
    for path, manifest in manifests.items():
        shared = nodes.count(manifest.name) > 1
        folder = f"{manifest.name}-{manifest.key[:12]}" if shared else manifest.name
        by_folder[folder] = manifest
        files |= _files(f"{folder}/", path, manifest)
    return {"README.md": dataset_card(name, licence, by_folder).encode(), **files}


def _files(prefix: str, directory: Path, manifest: Manifest) -> Content:
    kept = tuple(
        file for file in manifest.files if NEXT_ROUND not in PurePosixPath(file.path).parts
    )
    names = [*(part.file for part in manifest.parts), *(file.path for file in kept)]
    if (directory / RESOLVED).is_file():
        names.append(RESOLVED)
    content: Content = {f"{prefix}{name}": directory / name for name in [*names, FILE_NAME]}
    if kept != manifest.files:  # what is published must be whole by its own manifest
        content[f"{prefix}{FILE_NAME}"] = to_text(replace(manifest, files=kept)).encode()
    return content


def write(content: Content, directory: Path) -> None:
    """The repository as a directory.

    Raises:
        UsageError: the directory is not empty.
        RetryError: the disk is full or read-only.
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


_FILES_A_COMMIT = 50
"""The Hub refuses or times out on commits of hundreds of files and advises 50 to 100."""


def upload(name: str, kind: str, content: Content, *, private: bool) -> str:
    """Send everything, a few dozen files a commit; returns the address of the last commit.

    Manifests and the card go last, so that a set exists there once it is whole. After an
    interruption, files that are there already are not sent again.

    Raises:
        RetryError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx  # under the name of this version

    last = {path for path in content if path == "README.md" or path.endswith(FILE_NAME)}
    ordered = sorted(content, key=lambda path: (path in last, path == "README.md"))
    size = _FILES_A_COMMIT
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    api, url = HfApi(), ""
    try:
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        for number, paths in enumerate(batches, start=1):
            part = f" ({number} of {len(batches)})" if len(batches) > 1 else ""
            done = api.create_commit(
                name,
                [CommitOperationAdd(path, content[path]) for path in paths],
                repo_type=kind,
                commit_message=f"Sets written by Afterglow{part}",
            )
            url = str(done.commit_url)
            log.info("%s: commit %d of %d sent", name, number, len(batches))
    except (httpx.HTTPError, HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise RetryError(
            f"{name}: not published ({error}). Check the network and `hf auth login`, then run the "
            "same command again; files that were sent are not sent twice."
        ) from error
    return url
