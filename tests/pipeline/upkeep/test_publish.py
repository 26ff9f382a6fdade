"""Repositories for the Hub: written here, and read back by the libraries their readers use."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from pipeline.upkeep import publish
from pipeline.upkeep.adopt import adopt_set
from storage.errors import DataError, RetryError, UsageError
from storage.manifest import SetIdentity, build_manifest, write_manifest
from storage.rows import Rows
from storage.sets import verify_set
from storage.shard import read_rows
from storage.store import Store
from tests.command import ROOT
from tests.pipeline.upkeep.sets import PLAN, make_set

LOAD = """
import json, sys, datasets
found = {}
for name in datasets.get_dataset_config_names(sys.argv[1]):
    splits = datasets.load_dataset(sys.argv[1], name, cache_dir=sys.argv[2])
    found[name] = {split: [len(table), sum(map(len, table["tok"])), sum(table["seq_id"])]
                   for split, table in splits.items()}
print(json.dumps(found))
"""


def facts(path: Path) -> list[int]:
    rows = Rows.concat(list(read_rows(path)))
    return [len(rows), rows.tokens, int(rows["seq_id"].sum())]


def command(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "publish", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    return [make_set(tmp_path / "store", kind)[0] for kind in ("sequences", "head_tail")]


def test_datasets_finds_each_table_and_split(sets: list[Path], tmp_path: Path) -> None:
    """In a process of its own and without a network."""
    into = tmp_path / "repository"
    done = command(*sets, "--repo", "me/records", "--dry-run", "--into", into)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["type"], result["url"]) == ("dataset", None)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, into, tmp_path / "cache"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert loaded.returncode == 0, loaded.stderr
    expected = {
        name: {
            split: facts(next(directory.glob(f"part-{index:05d}-*")))
            for index, (_, split) in enumerate(PLAN)
        }
        for name, directory in zip(("rollouts", "teacher-logits"), sets, strict=True)
    }
    assert json.loads(loaded.stdout) == expected


def test_the_card_says_where_it_came_from_and_what_it_promises(
    sets: list[Path], tmp_path: Path
) -> None:
    kind, content = publish.contents("me/records", sets, "cc-by-4.0")
    publish.write(content, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert kind == "dataset"
    for word in (
        'license: "cc-by-4.0"',
        '"config_name": "teacher-logits"',
        "wwwwwwww",
        "47 |",
        "without bias",
        '"seed": 0',
    ):
        assert word in card, word
    assert not list((tmp_path / "out").rglob("provenance.json"))


def test_a_published_set_can_be_adopted(sets: list[Path], tmp_path: Path) -> None:
    _, content = publish.contents("me/records", sets, "unknown")
    publish.write(content, tmp_path / "out")
    manifest = adopt_set(tmp_path / "out" / "teacher-logits", Store(tmp_path / "other"))
    assert manifest.stage == "teacher-logits"


def test_two_sets_of_one_stage_have_a_folder_each(tmp_path: Path) -> None:
    two = [make_set(tmp_path, seed=seed)[0] for seed in (0, 1)]
    _, content = publish.contents("me/records", two, "unknown")
    folders = {name.split("/")[0] for name in content} - {"README.md"}
    assert folders == {directory.name for directory in two}


def test_what_is_not_published(sets: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give owner and name"):
        publish.contents("records", sets, "unknown")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        publish.write({}, tmp_path / "full")
    part = next(sets[0].glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=part.name):
        publish.contents("me/records", sets, "unknown")


def test_a_hub_that_cannot_be_reached_is_an_error_to_try_again(sets: list[Path]) -> None:
    done = command(
        *sets, "--repo", "me/records", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_none"
    )
    assert done.returncode == RetryError.exit_code, done.stderr
    assert "me/records: not published" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_lies_where_transformers_looks_for_it(tmp_path: Path, sets: list[Path]) -> None:
    directory = tmp_path / "train-0123456789ab"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    meta = {"guarantee": {"level": "unbiased", "reason": "full support"}}
    manifest = build_manifest(
        directory,
        SetIdentity("train", 1, "0" * 64, "train.reverse_kl", "model", {}, meta=meta),
        files=["config.json"],
    )
    write_manifest(directory, manifest)
    kind, content = publish.contents("me/student", [directory], "apache-2.0")
    assert (kind, set(content)) == ("model", {"README.md", "config.json", "manifest.json"})
    card = content["README.md"]
    assert isinstance(card, bytes)
    assert b"unbiased: full support" in card
    assert b'library_name: "transformers"' in card
    with pytest.raises(UsageError, match="publish one model, or sets"):
        publish.contents("me/student", [directory, *sets], "apache-2.0")


def test_what_the_next_round_goes_on_from_stays_at_home(tmp_path: Path) -> None:
    directory = tmp_path / "train-0123456789ab"
    (directory / "next-round").mkdir(parents=True)
    for name in ("config.json", "next-round/checkpoint.pt"):
        (directory / name).write_text("{}")
    manifest = build_manifest(
        directory,
        SetIdentity("train", 1, "0" * 64, "train.reverse_kl", "model", {}),
        files=["config.json", "next-round/checkpoint.pt"],
    )
    write_manifest(directory, manifest)
    _, content = publish.contents("me/student", [directory], "apache-2.0")
    publish.write(content, tmp_path / "out")
    assert not (tmp_path / "out" / "next-round").exists()
    assert verify_set(tmp_path / "out") == []
    assert verify_set(directory) == []


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that takes commits of small files."""

    commits: ClassVar[list[list[str]]] = []
    refuse_after: ClassVar[int] = 1_000

    def do_POST(self) -> None:
        """Answer one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, object] = {}
        if self.path.endswith("/repos/create"):
            answer = {"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer["files"] = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in files
            ]
        elif "/commit/" in self.path:
            if len(self.commits) >= self.refuse_after:
                self.send_response(504)
                self.end_headers()
                return
            lines = [json.loads(line) for line in body.splitlines()]
            self.commits.append([x["value"]["path"] for x in lines if x["key"] == "file"])
            number = f"{len(self.commits):040d}"
            answer = {
                "commitOid": number,
                "commitUrl": f"http://{self.headers['Host']}/me/model/commit/{number}",
            }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.commits, Hub.refuse_after = [], 1_000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def many_parts(store: Path, parts: int) -> Path:
    """A set of so many small files."""
    directory = store / "corpus-0123456789ab"
    directory.mkdir(parents=True)
    names = [f"extra-{index:04d}.json" for index in range(parts)]
    for name in names:
        (directory / name).write_text("{}")
    (directory / "config.json").write_text("{}")
    identity = SetIdentity("train", 1, "0" * 64, "train.reverse_kl", "model", {}, meta={})
    write_manifest(directory, build_manifest(directory, identity, files=["config.json", *names]))
    return directory


def test_thousands_of_files_are_sent_in_commits_that_the_hub_takes(
    hub: str, tmp_path: Path
) -> None:
    directory = many_parts(tmp_path, 130)
    environment = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    done = command(directory, "--repo", "me/model", **environment)
    assert done.returncode == 0, done.stderr
    assert [len(commit) for commit in Hub.commits] == [50, 50, 33]
    assert Hub.commits[-1][-2:] == ["manifest.json", "README.md"]
    assert json.loads(done.stdout.splitlines()[-1])["url"].endswith(f"{3:040d}")


def test_a_commit_that_times_out_is_an_error_to_try_again(hub: str, tmp_path: Path) -> None:
    Hub.refuse_after = 1
    directory = many_parts(tmp_path, 70)
    environment = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    done = command(directory, "--repo", "me/model", **environment)
    assert done.returncode == RetryError.exit_code, done.stderr
    assert "run the same command again" in done.stderr
    assert "manifest.json" not in Hub.commits[0]
