"""What a survey of a cluster's machines means: what is in order, what is slow, what stands in the way."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cluster.preflight.machine import Machine

if TYPE_CHECKING:
    from stages.training.reduction import Ranked

Level = Literal["ok", "warning", "problem"]

SLOW = 0.75
"""Part of the median below which a machine is called slow."""
UNEVEN = 5.0
"""How often the median an all-reduce may take before that is told."""
CLOCK_SECONDS, REFUSED_SECONDS = 2.0, 600.0
"""That a clock may be off before times are misread, and before S3, which refuses signatures from 900 s on, is near."""
CACHE_BYTES, SHARED_BYTES = 50 * 10**9, 2**30
"""Free space for shards, and of shared memory, below which that is told."""
OPEN_FILES = 4096
LOCKED_BYTES = 8 * 2**30
"""Of memory that a rank may lock, below which RDMA fails, or NCCL takes TCP in its place."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check came to."""

    level: Level
    check: str
    told: str


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a job on the cluster has found."""

    machines: dict[str, Machine]
    """By their addresses."""
    errors: dict[str, str]
    """What machines said that could not answer, by their addresses."""
    clocks: dict[str, tuple[float, float]]
    """How far each machine's clock is ahead of the driver's, and how far that may be wrong, in seconds."""
    ranks: list[Ranked]
    """Of the gang that was measured; empty where there was no room for one."""
    unmeasured: str = ""
    """Why there was none."""


def judged(found: Surveyed) -> list[Finding]:
    """The findings on all machines."""
    machines = found.machines
    findings = [
        Finding(level="problem", check="machines", told=f"{name}: {told}") for name, told in found.errors.items()
    ]
    findings += [
        *_same_versions(machines),
        *_clocks(found.clocks),
        *_rooms(machines),
        *_rates("bytes written to storage", {name: machine.written for name, machine in machines.items()}, "MB/s", 1e6),
        *_rates("bytes read from storage", {name: machine.read for name, machine in machines.items()}, "MB/s", 1e6),
        *_collectives(found),
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


def _rooms(machines: dict[str, Machine]) -> Iterable[Finding]:
    for name, machine in machines.items():
        if machine.cache_free < CACHE_BYTES:
            free = f"{name} has {machine.cache_free / 1e9:.1f} GB free for shards"
            told = f"{free}: mount a disk, and name it in input.cache"
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


def _rates(check: str, rates: dict[str, float], unit: str, size: float) -> Iterable[Finding]:
    """Slow machines by name, and what the others reach."""
    if not rates:
        return
    median = statistics.median(rates.values())
    slow = {name: rate for name, rate in rates.items() if rate < SLOW * median}
    for name, rate in slow.items():
        told = f"{name} is slow: {_figure(rate / size)} {unit}, half of the machines reach {_figure(median / size)}"
        yield Finding(level="warning", check=check, told=told)
    if not slow:
        low, high = _figure(min(rates.values()) / size), _figure(max(rates.values()) / size)
        reached = low if low == high else f"{low} to {high}"
        yield Finding(level="ok", check=check, told=f"{reached} {unit}{' each' if len(rates) > 1 else ''}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _collectives(found: Surveyed) -> Iterable[Finding]:
    ranks = found.ranks
    if not ranks:
        yield Finding(level="warning", check="collectives", told=found.unmeasured or "none were measured")
        return
    devices = sorted({rank.device for rank in ranks})
    if len(devices) > 1:
        told = f"{', '.join(devices)}: all ranks wait for the slowest, and bits may differ"
        yield Finding(level="warning", check="devices", told=told)
    yield from _rates("products of matrices", {_name(rank): rank.tflops for rank in ranks}, "TFLOP/s", 1.0)
    if len(ranks) == 1:
        yield Finding(level="warning", check="all-reduce", told="there is room for one rank alone, which sends nothing")
        return
    bus, slowest = ranks[0].bus, max(rank.slowest for rank in ranks)
    yield Finding(level="ok", check="all-reduce", told=f"{len(ranks)} ranks, bus bandwidth {_figure(bus)} GB/s")
    if slowest > UNEVEN:
        told = (
            f"the slowest took {slowest:,.1f} times as long as the median: something else uses the network or the cores"
        )
        yield Finding(level="warning", check="all-reduce", told=told)
    pairs = {_name(rank): rank.pair for rank in ranks if rank.pair is not None}
    yield from _rates("links between machines", pairs, "GB/s", 1.0)


def _name(rank: Ranked) -> str:
    return f"{rank.host}:{rank.local_rank}" if rank.local_rank else rank.host
