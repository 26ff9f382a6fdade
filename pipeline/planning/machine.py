"""What this machine has: cores, memory, GPUs. Asks the operating system and `nvidia-smi`."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_MIB = 1 << 20


@dataclass(frozen=True)
class GPU:
    """One GPU."""

    name: str
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class Machine:
    """This machine, as far as a plan needs to know it."""

    cpu: str
    """Name of the processor, or of its architecture."""
    cpus: int
    """Cores of the machine, as the ledger counts them."""
    cores: int
    """Cores that this process may use."""
    memory: int
    """Bytes that processes may use; 0 where unknown."""
    gpus: tuple[GPU, ...] = ()
    """Those that the installed torch can use."""

    def device(self, wanted: str = "auto") -> str:
        """`cuda` or `cpu`, for a field that says `auto`, `cuda` or `cpu`."""
        return "cuda" if self.gpus and wanted != "cpu" else "cpu"

    def capacity(self, device: str) -> int:
        """Bytes of memory of a device; of several GPUs, the smallest. 0 where unknown."""
        return min(gpu.memory for gpu in self.gpus) if device == "cuda" else self.memory

    def __str__(self) -> str:
        """As the ledger names machines: two sets with one name were made on equal machines."""
        cpu = f"{self.cpu} with {self.cpus} CPUs"
        return ", ".join([cpu, *(gpu.name for gpu in self.gpus)])


@cache
def this_machine() -> Machine:
    """What this machine has."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:(.*)$", _read(cpuinfo), re.MULTILINE)
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = os.cpu_count() or 1
    return Machine(
        cpu=names[0].strip() if names else platform.machine(),
        cpus=cpus,
        cores=len(affinity(0)) if affinity else cpus,
        memory=_memory(),
        gpus=_gpus(),
    )


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _memory() -> int:
    """Memory and swap of the machine, or less where the control group has a limit."""
    fields = re.findall(r"^(MemTotal|SwapTotal):\s*(\d+) kB", _read(Path("/proc/meminfo")), re.M)
    found = [sum(int(kib) << 10 for _, kib in fields)]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _read(Path("/sys/fs/cgroup") / name).strip()
        if limit.isdigit():
            found.append(int(limit))
    return min(size for size in found if size > 0) if any(found) else 0


def _gpus() -> tuple[GPU, ...]:
    """NVIDIA GPUs that CUDA would show this process; none where torch is built for CPUs."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return ()
    except importlib.metadata.PackageNotFoundError:
        return ()
    query = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if re.fullmatch(r"\d+(,\d+)*", visible):
        rows = [row for row in rows if row[0] in visible.split(",")]
    return tuple(GPU(name, int(mib) * _MIB) for _, name, mib in rows if mib.isdigit())
