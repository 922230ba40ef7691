"""Whether this machine has room: disk, memory, shared memory, open files, ports."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.local.processes import free_ports
from cluster.machine import cores, memory_bytes
from pipeline.preflight_comparison import Finding
from pipeline.preflight_findings import OPEN_FILES, SHARED_BYTES
from pipeline.settings import home

DISK_BYTES, LEAST_DISK = 5 * 10**9, 5 * 10**8
"""Free space below which that is told, and below which nothing can be stored."""
MEMORY_BYTES = 4 * 2**30
"""Memory that the local stack and two small workers need."""
PORTS = 12
"""Of the local stack."""


def of_machine() -> Iterator[Finding]:
    """The findings."""
    yield processor(cores(), memory_bytes())
    yield disk(home())
    yield shared_memory(Path("/dev/shm"))
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield ports()


def processor(count: int, memory: int | None) -> Finding:
    """Cores and memory."""
    told = f"{count} core{'s' if count > 1 else ''}, {'?' if memory is None else f'{memory / 2**30:.1f}'} GiB of memory"
    if memory is not None and memory < MEMORY_BYTES:
        told += ": little for the local stack and two workers: -o pretrain.workers=1 -o finetune.workers=1"
        return Finding(level="warning", check="machine", told=told)
    return Finding(level="ok", check="machine", told=told)


def disk(folder: Path) -> Finding:
    """Free space at a folder or, where it is not there yet, at the nearest above it that is."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        told = f"{place} cannot be written: name another folder: export PATCHLINE_HOME=/path/to/folder"
        return Finding(level="problem", check="disk", told=told)
    free = shutil.disk_usage(place).free
    told = f"{free / 1e9:.1f} GB free for {folder}"
    if free >= DISK_BYTES:
        return Finding(level="ok", check="disk", told=told)
    told += ": free some (`patchline du` and `patchline gc` help), or export PATCHLINE_HOME=/path/on/a/larger/disk"
    return Finding(level="warning" if free >= LEAST_DISK else "problem", check="disk", told=told)


def shared_memory(folder: Path) -> Finding:
    """What Ray's object store and NCCL share between processes."""
    size = shutil.disk_usage(folder).total if folder.is_dir() else 0
    told = f"{size / 2**30:.1f} GiB at {folder}"
    if size >= SHARED_BYTES:
        return Finding(level="ok", check="shared memory", told=told)
    told += ": Ray takes slower files instead, and NCCL may fail: docker run --shm-size=8g, or a memory volume there"
    return Finding(level="warning", check="shared memory", told=told)


def open_files(limit: int) -> Finding:
    """How many files a process may open."""
    if limit >= OPEN_FILES or limit == resource.RLIM_INFINITY:
        return Finding(level="ok", check="open files", told=f"a process may have {limit:,} open")
    told = f"a process may have {limit:,} open, of many shards and workers more: ulimit -n 65536 before `patchline up`"
    return Finding(level="warning", check="open files", told=told)


def ports() -> Finding:
    """Whether the local stack finds ports on loopback."""
    try:
        free_ports(PORTS)
    except OSError as error:
        told = f"{error}: end what listens on 127.0.0.1 there (ss -tlnp shows it)"
        return Finding(level="problem", check="ports", told=told)
    return Finding(level="ok", check="ports", told="the local stack finds free ones on loopback")
