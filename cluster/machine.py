"""What this machine calls itself."""

from __future__ import annotations


def cpu_name() -> str:
    """The processor's name: another kind may sum in another order."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        return "unknown"
    return names[0] if names else "unknown"
