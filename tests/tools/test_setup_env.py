"""Making the environment: when it is left alone, when it is made again, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import setup_env
from tools.setup_env import ALSO, CANNOT, LAYERS, SCHEDULERS, Environment, SetupError

SCRIPT = Path(setup_env.__file__).resolve()


def run_script(venv: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--venv", str(venv), "--device", "cpu"],
        check=False,
        capture_output=True,
        text=True,
    )


def pretend_complete(env: Environment, **changes: object) -> None:
    """Give a directory an interpreter and the note of a finished set-up."""
    env.python.parent.mkdir(parents=True)
    env.python.symlink_to(sys.executable)
    env.write_note(**{"ours": True, **setup_env.wanted_note(env, "cpu"), **changes})


def test_a_complete_environment_is_left_alone(tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    pretend_complete(env)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = run_script(env.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("fact", ["complete", "device", "path", "locks", "project"])
def test_any_other_fact_calls_for_work(tmp_path: Path, fact: str) -> None:
    env = Environment(tmp_path / "venv")
    pretend_complete(env, **{fact: "other"})
    assert setup_env.missing(env, setup_env.wanted_note(env, "cpu")) == {fact}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_environment_of_a_scheduler_holds_its_locks_and_not_the_project(
    tmp_path: Path, scheduler: str
) -> None:
    env = Environment(tmp_path / "venv")
    wanted = setup_env.wanted_note(env, scheduler)
    assert "project" not in wanted
    assert wanted["locks"] == setup_env.digest(
        setup_env.LOCKS / "bootstrap.txt", setup_env.LOCKS / f"{scheduler}.txt"
    )
    pretend_complete(env, **wanted)
    setup_env.ensure(env, scheduler)
    assert setup_env.missing(env, setup_env.wanted_note(env, "cpu")) >= {"device", "locks"}


def test_an_environment_that_lost_its_interpreter_lacks_everything(tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    pretend_complete(env)
    env.python.unlink()
    env.python.symlink_to(tmp_path / "uninstalled-python")
    wanted = setup_env.wanted_note(env, "cpu")
    assert setup_env.missing(env, wanted) == set(wanted)


def test_an_interrupted_environment_is_made_from_nothing(tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    pretend_complete(env, complete=False)
    half_installed = env.path / "lib" / "half-installed"
    half_installed.mkdir(parents=True)
    assert setup_env.create(env)
    assert not half_installed.exists()
    assert env.note() == {"ours": True, "complete": False}
    subprocess.run([str(env.python), "-m", "pip", "--version"], check=True, capture_output=True)


def test_an_environment_of_somebody_else_is_never_emptied(tmp_path: Path) -> None:
    env = Environment(tmp_path / "venv")
    pretend_complete(env, ours=False, locks="older")
    (env.path / "pyvenv.cfg").write_text("home = somewhere\n")
    theirs = env.path / "theirs.txt"
    theirs.write_text("precious")
    assert not setup_env.create(env)
    assert theirs.read_text() == "precious"


def test_a_directory_that_is_no_environment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = run_script(tmp_path)
    assert done.returncode == CANNOT
    assert "is not a virtual environment" in done.stderr
    assert "make VENV=path" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_old_python_is_told_which_one_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "python3.12"
    newer.symlink_to(sys.executable)
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SetupError, match=r"Python 3\.9, .*make PYTHON=python3\.12") as refused:
        setup_env.check_python()
    assert refused.value.code == CANNOT


def test_a_failed_command_is_followed_by_the_next_one(tmp_path: Path) -> None:
    made = tmp_path / "made"
    setup_env.first_success("trying", ["false"], ["not-installed-anywhere"], ["touch", str(made)])
    assert made.exists()


def test_when_all_commands_fail_their_last_words_are_shown() -> None:
    with pytest.raises(SetupError) as failed:
        setup_env.first_success("trying", ["sh", "-c", "echo no such host; exit 3"], ["false"])
    assert failed.value.code == setup_env.TRY_AGAIN
    assert "trying failed" in str(failed.value)
    assert "no such host" in str(failed.value)


def test_installs_never_resolve(tmp_path: Path) -> None:
    env = Environment(tmp_path)
    assert "--no-deps" in env.pip("x")
    assert "--no-deps" in env.uv("x")
    assert "cuda" not in LAYERS["cpu"]


def test_the_script_parses_under_an_old_python() -> None:
    compile_old = f"import ast; ast.parse(open({str(SCRIPT)!r}).read(), feature_version=(3, 6))"
    subprocess.run([sys.executable, "-c", compile_old], check=True)


@pytest.mark.parametrize("name", ALSO)
def test_what_is_added_is_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    env, installed = Environment(tmp_path), list[str]()
    monkeypatch.setattr(setup_env, "first_success", lambda what, *_: installed.append(what))
    for _ in range(2):
        setup_env.install_also(env, name)
    assert installed == [f"installing requirements/{name}.txt"]
    (tmp_path / f"afterglow-{name}.txt").write_text("of an older lock")
    setup_env.install_also(env, name)
    assert len(installed) == 2
