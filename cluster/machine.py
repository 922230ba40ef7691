"""What this machine calls itself, and how many cores and how much memory it gives."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""A container's limit of memory, as version 2 and version 1 of cgroups show it from within."""


SIOCGIFADDR = 0x8915
"""Of `linux/sockios.h`: an interface's address."""
CPU_QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""A container's limit of processor time; in version 1 its period is in `cpu.cfs_period_us` beside it."""


def cores() -> int:
    """Cores that this process may use: the container's, where it has a limit, else those that it is bound to."""
    bound = len(os.sched_getaffinity(0))
    return max(1, min(bound, round(_quota() or bound)))


def _quota() -> float | None:
    """Cores that a container's limit of processor time amounts to; None where there is none."""
    for name in CPU_QUOTAS:
        try:
            found = Path(name).read_text().split()
            if len(found) == 1:
                found.append(Path(name).with_name("cpu.cfs_period_us").read_text())
        except OSError:
            continue
        if found[0].isdigit() and int(found[1]) > 0:
            return int(found[0]) / int(found[1])
    return None


def interface_of(address: str) -> str | None:
    """Name of the network interface that has this IP address, None where none has it."""
    for _, name in socket.if_nameindex():
        if address in _addresses(name):
            return name
    return None


def _addresses(interface: str) -> set[str]:
    found = set[str]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        # The kernel's answer is a `struct ifreq`: the name in 16 bytes, then a `struct sockaddr_in`.
        answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()))
        found.add(socket.inet_ntop(socket.AF_INET, answer[20:24]))
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
        found |= {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0])) for line in lines if line[5] == interface}
    return found


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
