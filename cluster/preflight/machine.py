"""What a machine says of itself before anything is trained on it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cluster.machine import cores, cpu_name, memory_bytes
from cluster.preflight.bandwidth import bytes_per_s
from cluster.storage import open_storage

PACKAGES = ("ray", "torch", "deepspeed", "numpy", "pillow")
"""Whose versions have to be the same on all machines."""
IPC_LOCK = 14
"""Number of the capability by which a process may lock any amount of memory, in Linux's capability.h."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What machines are asked. Picklable."""

    root: str
    folder: str
    """Below the root, for keys of ours alone."""
    caches: tuple[str, ...]
    """Folders where shards will be kept, as the machine has them; none where nothing is trained."""
    seconds: float
    """For each direction of the bandwidth to storage."""
    at_once: int = 1
    """Objects under way to and from storage, as when the machine's ranks fetch shards."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine. Sizes are in bytes, rates in bytes/s."""

    host: str
    cpu: str
    cores: int
    memory: int | None
    cache: str | None
    """The folder for shards with the least room."""
    cache_free: int | None
    """What can be written there."""
    at_once: int
    """Objects that were under way to and from storage."""
    shared_memory: int
    open_files: int
    """Files that a process may have open."""
    locked_memory: int | None
    """Bytes that a process may lock, on machines with GPUs and RDMA, which locks what it sends; None where there is no
    limit, and where nobody asks."""
    versions: dict[str, str] = field(default_factory=dict)
    written: float
    read: float


def look(asked: Asked) -> Machine:
    """This machine. Importable, so that Ray can send it. Raises OSError where the storage does not answer."""
    folder = f"{asked.folder}/{socket.gethostname()}"
    written, read = bytes_per_s(open_storage(asked.root), folder, asked.seconds, asked.at_once)
    rooms = [(_free(Path(own).expanduser()), own) for own in asked.caches]
    cache_free, cache = min(rooms, default=(None, None))
    return Machine(
        host=socket.gethostname(),
        cpu=cpu_name(),
        cores=cores(),
        memory=memory_bytes(),
        cache=cache,
        cache_free=cache_free,
        at_once=asked.at_once,
        shared_memory=_free(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory=locked_memory(),
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        written=written,
        read=read,
    )


def locked_memory(devices: Path = Path("/dev"), status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes that this process may lock, where there are GPUs and devices of RDMA; None where it may lock all, or none
    of these is there. What is in `devices` and in the process's `status` decides.
    """
    there = any(devices.glob("nvidia[0-9]*")) and any(devices.glob("infiniband/uverbs*"))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if not there or limit == resource.RLIM_INFINITY:
        return None
    (effective,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    return None if int(effective, 16) >> IPC_LOCK & 1 else limit


def _free(folder: Path) -> int:
    """Bytes that can still be written there; where the folder is not there yet, in the nearest above it that is."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
