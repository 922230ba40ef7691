"""What the ranks of a gang compute and send, measured: products of matrices, all-reduces, and pairs of machines."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cluster.gang import Place
from stages.training.devices import device_name, initialize_distributed, leave_distributed, matrix_rate

ROUND = 5
"""All-reduces between two looks at the clock."""
PAIR_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What is to be measured. Picklable."""

    seconds: float
    """Of all-reduces."""
    megabytes: int
    """Of each one, in 10^6 bytes."""
    gpus: bool


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One rank. Rates are in GB/s."""

    host: str
    local_rank: int
    device: str
    tflops: float
    """Of a product of matrices, in bf16 on GPUs and fp32 on CPUs, while all others compute too."""
    bus: float
    """Bandwidth of the slowest link that the all-reduces came to: 2 (n - 1) / n of the bytes over the time, as
    nccl-tests' PERFORMANCE.md has it, by this rank's clock; 0 for a single one."""
    slowest: float
    """Seconds of the slowest all-reduce over those of the median one."""
    pair: float | None
    """The best that this rank reached with one of another machine, each sending to the other while the other ranks of
    both do the same; None where there is no other machine, or one that has no rank of this number."""


def measure_collectives(asked: Reduction, place: Place) -> list[Ranked]:
    """All ranks, by number. Importable, so that Ray can send it."""
    device = torch.device("cuda", place.local_rank) if asked.gpus else torch.device("cpu")
    initialize_distributed(device)
    dist.barrier()
    tflops = matrix_rate(device, torch.bfloat16 if asked.gpus else torch.float32)
    bus, slowest = _reduce(asked, device)
    pair = _pairs(asked, device, place)
    own = Ranked(
        host=socket.gethostname(),
        local_rank=place.local_rank,
        device=device_name(device),
        tflops=tflops,
        bus=bus,
        slowest=slowest,
        pair=pair,
    )
    found = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    leave_distributed()
    return found


def _reduce(asked: Reduction, device: torch.device) -> tuple[float, float]:
    ranks = dist.get_world_size()
    if ranks == 1:
        return 0.0, 1.0
    data = torch.ones(asked.megabytes * 10**6 // 4, device=device)
    dist.all_reduce(data)
    took, began = list[float](), time.perf_counter()
    while True:
        for _ in range(ROUND):
            data.fill_(1.0)
            took.append(_timed(lambda: dist.all_reduce(data), device))
        if float(data[0]) != ranks:
            raise ValueError(f"an all-reduce of ones over {ranks} ranks gave {float(data[0])}")
        # All ranks have to go on or stop together.
        late = torch.tensor(float(time.perf_counter() - began > asked.seconds), device=device)
        dist.all_reduce(late)
        if late > 0:
            break
    median = sorted(took)[len(took) // 2]
    return 2 * (ranks - 1) / ranks * 4 * data.numel() / median / 1e9, max(took) / median


def _pairs(asked: Reduction, device: torch.device, place: Place) -> float | None:
    """Each machine's ranks with those of several others in turn: a slow machine is slow with all of them.

    All ranks of a machine send at once, since each may have a connection of its own to the network; as many as the
    machine with the fewest has, so that all machines are measured alike.
    """
    numbers = [0] * dist.get_world_size()
    dist.all_gather_object(numbers, place.local_rank)
    peers = [rank for rank, number in enumerate(numbers) if number == place.local_rank]
    machines = numbers.count(0)
    best = None
    data = torch.ones(asked.megabytes * 10**6 // 4, device=device)
    received = torch.empty_like(data)
    # Whoever has a number that some machine lacks waits.
    own = peers.index(dist.get_rank()) if len(peers) == machines else None
    for turn in range(turns(machines)):
        other = None if own is None else partner(own, turn, machines)
        for _ in range(PAIR_TRIES):
            dist.barrier()
            if other is not None:
                rank = peers[other]
                seconds = _timed(lambda rank=rank: _exchange(data, received, rank), device)
                best = max(best or 0.0, 4 * data.numel() / seconds / 1e9)
    return best


def turns(machines: int) -> int:
    """In how many turns machines are paired: so many that each meets others which have no slow one beside them."""
    return min(max(3, machines.bit_length()), machines - 1 + machines % 2) if machines > 1 else 0


def partner(own: int, turn: int, machines: int) -> int | None:
    """With whom a machine is in a turn, or None: the pairs of a round-robin tournament, by the circle method."""
    odd = machines - 1 + machines % 2
    if own == odd:
        # The last of an even number, who meets whoever would have to meet itself.
        return turn * (odd + 1) // 2 % odd
    other = (turn - own) % odd
    if other != own:
        return other
    return odd if machines > odd else None


def _exchange(data: torch.Tensor, received: torch.Tensor, other: int) -> None:
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, data, other), dist.P2POp(dist.irecv, received, other)]):
        work.wait()


def _timed(operation: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    operation()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
