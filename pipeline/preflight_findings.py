"""What a survey of a cluster's machines means: what is in order, what is slow, what stands in the way."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.preflight.machine import Machine
from pipeline.preflight_collectives import collectives
from pipeline.preflight_comparison import Finding, compared
from pipeline.preflight_survey import Surveyed

CLOCK_SECONDS, REFUSED_SECONDS = 2.0, 600.0
"""That a clock may be off before times are misread, and before S3, which refuses signatures from 900 s on, is near."""
CACHE_BYTES, SHARED_BYTES = 50 * 10**9, 2**30
"""Free space for shards, and of shared memory, below which that is told."""
OPEN_FILES = 4096
LOCKED_BYTES = 8 * 2**30
"""Of memory that a rank may lock, below which RDMA fails, or NCCL takes TCP in its place."""


def judged(found: Surveyed, *, cache_gigabytes: float = 0.0) -> list[Finding]:
    """The findings on all machines, each of which should have room for a cache of so many 10^9 bytes."""
    machines = found.machines
    findings = [
        Finding(level="problem", check="machines", told=f"{name}: {told}") for name, told in found.errors.items()
    ]
    findings += [
        *_same_versions(machines),
        *_clocks(found.clocks),
        *_rooms(machines, max(CACHE_BYTES, cache_gigabytes * 1e9)),
        *_storage(machines),
        *collectives(found),
    ]
    return findings


def _same_versions(machines: dict[str, Machine]) -> Iterable[Finding]:
    for package in sorted({name for machine in machines.values() for name in machine.versions}):
        versions = {name: machine.versions.get(package, "not installed") for name, machine in machines.items()}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{version} on {_names(versions, version)}" for version in sorted(set(versions.values())))
            yield Finding(level="problem", check="packages", told=f"{package}: {told}: give all machines one image")


def _names(values: dict[str, str], value: str) -> str:
    names = [name for name, own in values.items() if own == value]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} machines"


def _clocks(clocks: dict[str, tuple[float, float]]) -> Iterable[Finding]:
    wrong = {name: ahead for name, (ahead, uncertain) in clocks.items() if abs(ahead) - uncertain > CLOCK_SECONDS}
    for name, ahead in wrong.items():
        told = f"{name}'s is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}: let NTP (chrony) set it"
        yield Finding(level="problem" if abs(ahead) > REFUSED_SECONDS else "warning", check="clocks", told=told)
    if clocks and not wrong:
        worst = max(abs(ahead) + uncertain for ahead, uncertain in clocks.values())
        yield Finding(level="ok", check="clocks", told=f"within {1000 * worst:.0f} ms of each other's")


def _rooms(machines: dict[str, Machine], cache_bytes: float) -> Iterable[Finding]:
    for name, machine in machines.items():
        if machine.cache_free is not None and machine.cache_free < cache_bytes:
            free = f"{name} has {machine.cache_free / 1e9:.1f} GB free for shards, in {machine.cache}"
            told = f"{free}, and {cache_bytes / 1e9:,.0f} are wanted: mount a disk, and name it in input.cache"
            yield Finding(level="warning", check="disk", told=told)
        if machine.shared_memory < SHARED_BYTES:
            told = (
                f"{name} has {machine.shared_memory / 2**20:.0f} MiB of shared memory, which NCCL and Ray's object "
                "store need: mount a memory volume at /dev/shm (docker: --shm-size)"
            )
            yield Finding(level="problem", check="shared memory", told=told)
        if machine.locked_memory is not None and machine.locked_memory < LOCKED_BYTES:
            told = (
                f"{name} lets a process lock {machine.locked_memory / 2**20:,.0f} MiB of memory, and RDMA locks what "
                "it sends: LimitMEMLOCK=infinity for containerd, or docker run --ulimit memlock=-1:-1"
            )
            yield Finding(level="problem", check="locked memory", told=told)
        if machine.open_files < OPEN_FILES:
            told = f"{name} lets a process open {machine.open_files} files: ulimit -n 65536 before `ray start`"
            yield Finding(level="warning", check="open files", told=told)


def _storage(machines: dict[str, Machine]) -> Iterable[Finding]:
    """Of machines that were asked alike: one without GPUs need not be as fast as those with eight."""
    for at_once in sorted({machine.at_once for machine in machines.values()}, reverse=True):
        alike = {name: machine for name, machine in machines.items() if machine.at_once == at_once}
        written, read = (
            {name: getattr(machine, way) for name, machine in alike.items()} for way in ("written", "read")
        )
        yield from compared("bytes written to storage", written, "MB/s", 1e6)
        yield from compared("bytes read from storage", read, "MB/s", 1e6)
