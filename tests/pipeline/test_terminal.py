"""What a person sees on a terminal, and what a program reads; terminals are real (`pty`)."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.command import last_object
from tests.command import ROOT, afterglow

SMALL = ("--set", "corpus.count=96", "--set", "corpus.sequences_per_part=32")


def on_terminal(*arguments: str, store: Path) -> str:
    """Stdout and stderr of the command where both are a terminal."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "pipeline", *arguments, "--set", f"store={store}"]
    with subprocess.Popen(command, stdout=writer, stderr=writer, cwd=ROOT) as process:
        os.close(writer)
        seen = b""
        while True:
            try:
                block = os.read(reader, 65536)
            except OSError:  # the other end is closed
                break
            seen += block
        assert process.wait() == 0, seen.decode()
    os.close(reader)
    return seen.decode().replace("\r\n", "\n")


def test_a_terminal_shows_the_table_alone(tmp_path: Path) -> None:
    seen = on_terminal("status", "corpus", *SMALL, store=tmp_path)
    assert seen.splitlines()[0].startswith("node")
    assert "{" not in seen


def test_json_is_asked_for(tmp_path: Path) -> None:
    seen = on_terminal("status", "corpus", *SMALL, "--json", store=tmp_path)
    assert json.loads(seen.splitlines()[-1])["nodes"][0]["node"] == "corpus"


def test_a_program_reads_it_unasked(tmp_path: Path) -> None:
    assert afterglow("status", "corpus", *SMALL, store=tmp_path).result["verb"] == "status"


@pytest.mark.parametrize(
    ("out", "found"),
    [
        ('table\n{"verb": "run"}\n', {"verb": "run"}),
        ('{"verb": "run"}\nInfo: bye\n', {"verb": "run"}),
        ("no object\n", {}),
        ("", {}),
    ],
)
def test_the_last_object_is_found(out: str, found: dict[str, str]) -> None:
    assert last_object(out) == found


def test_an_interruption_is_told_once(tmp_path: Path) -> None:
    """Ctrl-C reaches the command and the process of its stage."""
    big = ("--set", "corpus.count=300000", "--set", "corpus.sequences_per_part=1000")
    # A shell's background jobs ignore the signal, and so would what they start.
    alert = ["env", "--default-signal=INT"]
    command = [*alert, sys.executable, "-m", "pipeline", "run", "corpus", *big]
    with subprocess.Popen(
        [*command, "--set", f"store={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        while not list(tmp_path.glob("corpus-*/.work/*")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 75
    assert err.count("interrupted; finished parts and checkpoints are kept") == 1
    assert "Traceback" not in err
