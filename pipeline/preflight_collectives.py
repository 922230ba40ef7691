"""What the ranks of a survey computed and sent, held against each other and against data sheets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.shapes import gpu_of
from pipeline.preflight_comparison import Finding, compared, figure
from pipeline.preflight_survey import Surveyed

if TYPE_CHECKING:
    from stages.training.reduction import Ranked

UNEVEN = 5.0
"""How often the median an all-reduce may take before that is told."""
SHEET = 0.4
"""Part of its data sheet's rate that a GPU's products of large matrices reach at least, where nothing is wrong."""
NETWORK_GB_PER_S = 10.0
"""Bus bandwidth that TCP does not reach, and a network for training does many times over."""


def collectives(found: Surveyed) -> Iterable[Finding]:
    """The findings on a gang's ranks."""
    ranks = found.ranks
    if not ranks:
        yield Finding(level="warning", check="collectives", told=found.unmeasured or "none were measured")
        return
    if found.unmeasured:
        yield Finding(level="warning", check="collectives", told=found.unmeasured)
    devices = sorted({rank.device for rank in ranks})
    if len(devices) > 1:
        told = f"{', '.join(devices)}: all ranks wait for the slowest, and bits may differ"
        yield Finding(level="warning", check="devices", told=told)
    yield from compared("products of matrices", {_name(rank): rank.tflops for rank in ranks}, "TFLOP/s")
    yield from _below_the_sheet(ranks)
    if len(ranks) == 1:
        yield Finding(level="warning", check="all-reduce", told="there is room for one rank alone, which sends nothing")
        return
    yield from _reductions(ranks)
    yield from compared("links between machines", links(ranks), "GB/s")


def links(ranks: Iterable[Ranked]) -> dict[str, float]:
    """What each machine's ranks sent to another machine's together, in GB/s, by host; without those that sent none."""
    found = defaultdict[str, float](float)
    for rank in ranks:
        if rank.pair is not None:
            found[rank.host] += rank.pair
    return dict(found)


def sheet_part(ranks: Iterable[Ranked]) -> float | None:
    """The least part of its data sheet's rate that a rank reached; None where none has a data sheet."""
    # What is measured is bf16, which older GPUs only imitate.
    gpus = [(rank.tflops, gpu_of(rank.device)) for rank in ranks]
    rates = [(tflops, gpu) for tflops, gpu in gpus if gpu is not None and gpu.has_bf16]
    return min((tflops / gpu.half_tflops for tflops, gpu in rates), default=None)


def _below_the_sheet(ranks: list[Ranked]) -> Iterable[Finding]:
    """That all GPUs are slow alike, which their comparison does not show."""
    slow = [rank for rank in ranks if (part := sheet_part([rank])) is not None and part < SHEET]
    gpu = gpu_of(slow[0].device) if slow else None
    if gpu is None:
        return
    slowest = min(rank.tflops for rank in slow)
    told = (
        f"{len(slow)} of {len(ranks)} ranks are below {SHEET:.0%} of the data sheet's {gpu.half_tflops:g} TFLOP/s of "
        f"{gpu.title}, the slowest at {figure(slowest)}: something else uses the GPUs, or power or heat holds them "
        "back (`nvidia-smi -q -d PERFORMANCE` on the machine says which)"
    )
    yield Finding(level="warning", check="products of matrices", told=told)


def _reductions(ranks: list[Ranked]) -> Iterable[Finding]:
    bus, slowest = ranks[0].bus, max(rank.slowest for rank in ranks)
    machines = len({rank.host for rank in ranks})
    gpu = gpu_of(ranks[0].device)
    if machines > 1 and gpu is not None and gpu.networked and bus < NETWORK_GB_PER_S:
        told = (
            f"{len(ranks)} ranks on {machines} machines, bus bandwidth {figure(bus)} GB/s, where machines with "
            f"{gpu.title} have a network for {NETWORK_GB_PER_S:g} and far more. So little is what NCCL reaches by TCP, "
            "in an image without EFA's or InfiniBand's libraries for example: with NCCL_DEBUG=INFO it logs NET/Socket "
            "then"
        )
        yield Finding(level="warning", check="all-reduce", told=told)
    else:
        told = f"{len(ranks)} ranks, bus bandwidth {figure(bus)} GB/s"
        yield Finding(level="ok", check="all-reduce", told=told)
    if slowest > UNEVEN:
        told = (
            f"the slowest took {slowest:,.1f} times as long as the median: something else uses the network or the cores"
        )
        yield Finding(level="warning", check="all-reduce", told=told)


def _name(rank: Ranked) -> str:
    return rank.host if rank.local_rank == 0 else f"{rank.host}:{rank.local_rank}"
