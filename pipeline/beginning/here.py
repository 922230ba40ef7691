"""What this machine has for training: cores, memory, GPUs, and how fast its cores multiply."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cluster.gpus import Gpu, gpus_here
from cluster.machine import cores, memory_bytes


@dataclass(frozen=True, kw_only=True)
class Here:
    """A machine. `flops` is the rate of a product of matrices in fp32 over all cores, in FLOP/s."""

    cores: int
    memory: int | None
    """In bytes."""
    gpus: tuple[Gpu, ...] = ()
    flops: float = 5e10


def here(seconds: float = 0.1) -> Here:
    """This machine; its rate is measured for so long, and assumed where that is 0."""
    count = cores()
    flops = _flops(seconds) * count if seconds else Here.flops
    return Here(cores=count, memory=memory_bytes(), gpus=gpus_here(), flops=flops)


def _flops(seconds: float, side: int = 64) -> float:
    """FLOP/s of products of two [side, side] matrices on one core: 2 side³ operations each. The fastest counts.

    So small ones are multiplied by one thread: several would wait for each other where others use the cores too.
    """
    import numpy as np

    left = np.ones((side, side), np.float32)
    product = np.empty_like(left)
    best, deadline = float("inf"), time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        np.matmul(left, left, out=product)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
