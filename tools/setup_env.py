"""Make the virtual environment that everything runs in, unless it exists already.

    python3 tools/setup_env.py [--venv .venv] [--device auto|cpu|cuda] [--also EXTRA]
    python3 tools/setup_env.py --venv .venv-airflow --scheduler airflow|dagster

Standard library only, and no syntax younger than Python 3.6: with an interpreter that is too old,
the user must read a message, not a SyntaxError. A note inside the environment records what it was
made from and is marked complete last, so an interrupted set-up is recognised and repeated in an
empty directory. The script adds to an environment that it did not create and never empties it. A
scheduler gets an environment that holds nothing else: it runs the `afterglow` command and imports
none of it.

Two traps shape the CPU install. The ordinary package index carries CUDA builds of torch,
torchvision, torchaudio and torchcodec only, so nothing may be resolved while installing: every
command runs with `--no-deps` on exact pins. And torch's CPU build lies wherever this machine has
it: a mirror or a folder known to pip (uv does not read pip's configuration), or the index uv knows.

Exit codes: 0 done, 75 an install failed (network, disk: try again), 78 this machine will not do.
"""

import argparse
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
LAYERS = {
    "cpu": ("bootstrap", "torch-cpu", "cpu", "dev"),
    "cuda": ("bootstrap", "cuda", "dev"),
    "airflow": ("bootstrap", "airflow"),
    "dagster": ("bootstrap", "dagster"),
}
DEVICES, SCHEDULERS = ("cpu", "cuda"), ("airflow", "dagster")
ALSO = ("bench", "browser", "ray", "smollm2")
OLDEST, NEWEST = (3, 11), (3, 14)
TRY_AGAIN, CANNOT = 75, 78

# Run by the new environment's own interpreter: is it what the lock files describe?
CHECK = """
import importlib.metadata as metadata, importlib.util, sys
device = sys.argv[1]
names = {d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions()}
banned = {"torchvision", "torchaudio", "torchcodec"}
bad = sorted(n for n in names if n in banned or n.startswith("nvidia-")) if device == "cpu" else []
if bad:
    sys.exit("packages that belong to CUDA builds are installed: " + ", ".join(bad))
import torch
built = "cpu" if torch.version.cuda is None else "cuda"
if built != device:
    sys.exit(f"torch {torch.__version__} is a {built} build, but this environment is for {device}")
from transformers import Qwen3ForCausalLM
if importlib.util.find_spec("vllm") is None:
    sys.exit("vllm is not installed")
"""

log = logging.getLogger("setup")


class SetupError(Exception):
    """Set-up cannot go on; the message says how to fix it."""

    def __init__(self, message: str, code: int) -> None:
        """Keep the exit code beside the message."""
        super().__init__(message)
        self.code = code


# ---------------------------------------------------------------------------------------------
# What this machine is


def check_python() -> None:
    """Refuse an interpreter without pinned packages, and name one on this machine that would do.

    Raises:
        SetupError: the running interpreter is too old or too new.
    """
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    usable = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    found = [name for name in usable if shutil.which(name) and answers(name)]
    here = f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}"
    raise SetupError(
        f"{here}, but Afterglow needs 3.{OLDEST[1]} to 3.{NEWEST[1]}. "
        + (f"Run: make PYTHON={found[0]}" if found else "Install one and run: make PYTHON=path"),
        CANNOT,
    )


def answers(python: str) -> bool:
    """Whether an interpreter starts; version managers leave shims of versions they do not have."""
    return subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0


def driver_loaded() -> bool:
    """Whether the NVIDIA kernel driver is loaded and sees a GPU; costs nothing."""
    try:
        return any(Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return False


def detect_device() -> str:
    """`cuda` where a GPU answers, else `cpu`."""
    if driver_loaded():
        return "cuda"
    if shutil.which("nvidia-smi") is None:  # under WSL it is the only sign of a GPU
        return "cpu"
    listed = run(["nvidia-smi", "-L"])
    return "cuda" if listed.returncode == 0 and "GPU 0" in listed.stdout else "cpu"


# ---------------------------------------------------------------------------------------------
# Running commands


def run(command: list) -> subprocess.CompletedProcess:
    """Run a command; its output, both streams together, is kept for the case that it fails."""
    environment = dict(os.environ, UV_PYTHON_DOWNLOADS="never")
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET"):
        environment.pop(name, None)  # each of these would send packages somewhere else
    return subprocess.run(
        command,
        cwd=str(ROOT),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def tail(result: subprocess.CompletedProcess, lines: int = 12) -> str:
    """The last lines of what a command said, indented."""
    return "\n".join("    " + line for line in result.stdout.splitlines()[-lines:])


def timed(what: str, started: float) -> None:
    """Log one line of progress."""
    log.info("  %s: %.1f s", what, time.monotonic() - started)


def first_success(what: str, *commands: list) -> None:
    """Run one command after the other until one succeeds.

    Raises:
        SetupError: none did; the message ends with the last words of each.
    """
    started = time.monotonic()
    failures = []
    for command in commands:
        if shutil.which(command[0]) is None:
            continue
        result = run(command)
        if result.returncode == 0:
            timed(what, started)
            return
        failures.append(" ".join(command) + "\n" + tail(result))
    raise SetupError("{} failed\n{}".format(what, "\n".join(failures)), TRY_AGAIN)


# ---------------------------------------------------------------------------------------------
# The environment


class Environment:
    """A virtual environment and the note this script keeps in it."""

    def __init__(self, path: Path) -> None:
        """Name a directory; nothing is read or written yet."""
        self.path = path
        self.python = path / "bin" / "python"
        self.file = path / "afterglow-setup.json"

    def note(self) -> dict:
        """What the note says; empty when there is none."""
        try:
            return dict(json.loads(self.file.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def write_note(self, **note: object) -> None:
        """Replace the note in one step, so that it is never half written."""
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
        temporary.replace(self.file)

    def pip(self, *arguments: str) -> list:
        """`pip install`, under pip's own configuration: mirrors, folders of wheels, proxies."""
        head = [str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
        # Bytecode is made at first import; compiling all of torch here would take ten seconds.
        return [*head, "--no-compile", "--disable-pip-version-check", *arguments]

    def uv(self, *arguments: str) -> list:
        """`uv pip install`: the same, many times faster."""
        head = [str(self.path / "bin" / "uv"), "pip", "install", "--quiet", "--no-deps"]
        return [*head, "--python", str(self.python), *arguments]


def digest(*paths: Path) -> str:
    """sha256 over the contents of some files."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.read_bytes())
    return sha.hexdigest()


def wanted_note(env: Environment, kind: str) -> dict:
    """The note of an environment that needs no work. Scripts in it hold its path, so it counts."""
    note = {
        "complete": True,
        "device": kind,
        "path": str(env.path),
        "locks": digest(*[LOCKS / f"{stem}.txt" for stem in LAYERS[kind]]),
    }
    if kind in DEVICES:
        note["project"] = str(ROOT) + " " + digest(ROOT / "pyproject.toml")
    return note


def missing(env: Environment, wanted: dict) -> set:
    """Names of the facts in which the environment differs from the wanted one."""
    note = env.note() if env.python.exists() else {}
    return {name for name, value in wanted.items() if note.get(name) != value}


def create(env: Environment) -> bool:
    """Make an empty environment, or take one that somebody else made as it is.

    Returns:
        Whether the environment is ours to empty.

    Raises:
        SetupError: the directory holds something else, or Python lacks the venv module.
    """
    ours = bool(env.note().get("ours"))
    if not ours and env.python.exists() and (env.path / "pyvenv.cfg").exists():
        log.info("  adding to the existing environment %s", env.path)
        return False
    if not ours and env.path.exists() and any(env.path.iterdir()):
        raise SetupError(
            f"{env.path} exists and is not a virtual environment: move it away, "
            "or name another place with make VENV=path",
            CANNOT,
        )
    started = time.monotonic()
    if ours:
        shutil.rmtree(str(env.path))
    env.path.mkdir(parents=True, exist_ok=True)
    env.write_note(ours=True, complete=False)
    # In an activated environment sys.executable may be what was just removed.
    python = getattr(sys, "_base_executable", None) or sys.executable
    made = run([python, "-m", "venv", str(env.path)])
    if made.returncode:
        raise SetupError(
            f"{python} cannot make virtual environments (on Debian and Ubuntu install "
            f"python3-venv)\n{tail(made)}",
            CANNOT,
        )
    timed("creating the environment", started)
    return True


def install_packages(env: Environment, kind: str) -> None:
    """Install every pinned package: by uv, or by pip where only pip reaches the index."""
    for stem in LAYERS[kind]:
        what = f"installing requirements/{stem}.txt"
        pins = ["-r", str(LOCKS / f"{stem}.txt")]
        if stem == "bootstrap":
            first_success(what, env.pip(*pins))
        elif stem == "torch-cpu":
            first_success(what, env.pip(*pins), env.uv("--torch-backend", "cpu", *pins))
        else:
            first_success(what, env.uv(*pins), env.pip(*pins))


def install_project(env: Environment) -> None:
    """Install this repository's packages, editable, with the pinned build backend."""
    project = ["--no-build-isolation", "-e", str(ROOT)]
    first_success("installing afterglow", env.uv(*project), env.pip(*project))


def install_also(env: Environment, name: str) -> None:
    """Add `requirements/NAME.txt`, unless it is there; a note of its own says so."""
    file = env.path / f"afterglow-{name}.txt"
    wanted = digest(LOCKS / f"{name}.txt")
    if file.exists() and file.read_text() == wanted:
        return
    pins = ["-r", str(LOCKS / f"{name}.txt")]
    first_success(f"installing requirements/{name}.txt", env.uv(*pins), env.pip(*pins))
    file.write_text(wanted)


def verify(env: Environment, device: str) -> None:
    """Import in the new environment what everything rests on.

    Raises:
        SetupError: a package is missing, or comes from the wrong build.
    """
    started = time.monotonic()
    result = run([str(env.python), "-c", CHECK, device])
    if result.returncode:
        raise SetupError(f"{env.path} is not usable\n{tail(result)}", CANNOT)
    timed("checking", started)


def set_up(env: Environment, kind: str) -> None:
    """Bring the environment up to date with the lock files and pyproject.toml."""
    wanted = wanted_note(env, kind)
    started = time.monotonic()
    differs = missing(env, wanted)
    if not differs:
        return  # another process was faster
    log.info("setting up %s (%s)", env.path, kind)
    ours = env.note().get("ours", False)
    if differs != {"project"}:
        ours = create(env)
        install_packages(env, kind)
    if kind in DEVICES:
        install_project(env)
        verify(env, kind)
    env.write_note(ours=ours, **wanted)
    log.info("  ready after %.0f s", time.monotonic() - started)


def ensure(env: Environment, kind: str) -> None:
    """Set up unless nothing is missing; `auto` keeps to what an environment was made for."""
    if kind == "auto" and env.note().get("device"):
        kind = str(env.note()["device"])
        if kind == "cpu" and driver_loaded():
            log.warning("%s is for CPU, but this machine has a GPU: make DEVICE=cuda", env.path)
    if kind != "auto" and not missing(env, wanted_note(env, kind)):
        return
    check_python()
    if kind == "auto":
        kind = detect_device()
    env.path.parent.mkdir(parents=True, exist_ok=True)
    with env.path.with_name(env.path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second `make` waits here
        set_up(env, kind)


def main() -> int:
    """Parse the command line and set up; returns the exit code of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description="Make the environment Afterglow runs in.")
    parser.add_argument("--venv", default=".venv", help="directory of the environment")
    parser.add_argument("--device", default="auto", choices=["auto", *DEVICES])
    parser.add_argument(
        "--also", choices=ALSO, help="add the packages of this extra to the environment"
    )
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="this scheduler, and nothing else")
    arguments = parser.parse_args()
    env = Environment((ROOT / arguments.venv).resolve())
    try:
        ensure(env, arguments.scheduler or arguments.device)
        if arguments.also:
            install_also(env, arguments.also)
    except SetupError as error:
        log.error("set-up: %s", error)
        return error.code
    except KeyboardInterrupt:
        log.error("set-up: interrupted; the next run starts over")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
