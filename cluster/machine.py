"""What this machine calls itself, and how much memory it gives."""

from __future__ import annotations

from pathlib import Path

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""A container's limit of memory, as version 2 and version 1 of cgroups show it from within."""


def cpu_name() -> str:
    """The processor's name: another kind may sum in another order."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return "unknown"
    return names[0] if names else "unknown"


def memory_bytes() -> int | None:
    """Memory for all processes here: the container's, where it has a limit, else the machine's. None if unknown."""
    limits = [_number(name) for name in CGROUP_LIMITS]
    # Without a limit, version 1 shows a number beyond any memory.
    return min((found for found in [*limits, _total_memory()] if found is not None), default=None)


def _number(name: str) -> int | None:
    try:
        text = Path(name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _total_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)
