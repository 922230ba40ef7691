"""The device of a rank, and the process group that ranks share."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from cluster.errors import UserError
from cluster.gang import LISTENING
from cluster.machine import cpu_name, memory_bytes
from stages.training.config import TrainingConfig
from stages.training.memory import RESERVED

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What forward and backward passes compute in, by `precision`."""


def choose_device(config: TrainingConfig, local_rank: int) -> torch.device:
    """The device of a rank: what the placement says, whatever else the machine has. Raises UserError."""
    if not config.gpus_per_worker:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"gpus_per_worker=1: worker {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; "
            "set it to 0 to train on CPUs"
        )
    return torch.device("cuda", local_rank)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `malloc.h`."""


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let glibc keep what freed tensors leave for the next ones.

    It would give pieces of some MB back to the kernel and get zeroed pages for the next layer's, in every update: a
    tenth of the time. Larger ones than 32 MiB, its greatest threshold, still go back at once.
    """
    libc = ctypes.CDLL(None)
    if device.type == "cpu" and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


COLLECTIVE_SECONDS = 2 * 3600.0
"""How long a collective waits for other ranks. One of them may wait for storage, which gives up by itself; whoever
hangs is the watchdog's to find."""


def initialize_distributed(device: torch.device) -> None:
    """A process group for this process: of the gang that its variables name (`cluster/rendezvous.py`), or of one."""
    if device.type == "cuda":
        # Before the first collective: object collectives use the current GPU, which is the first one for all else.
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, patience = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=COLLECTIVE_SECONDS)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store = _store(rank, ranks, patience)
            dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    for name, value in (("RANK", dist.get_rank()), ("WORLD_SIZE", dist.get_world_size()), ("LOCAL_RANK", 0)):
        os.environ.setdefault(name, str(value))


def _store(rank: int, ranks: int, patience: timedelta) -> TCPStore:
    """What the ranks of a gang find each other by. Where rank 0 listens already, it goes on with that socket."""
    address, listening = os.environ["MASTER_ADDR"], os.environ.pop(LISTENING, None)
    return TCPStore(
        address,
        int(os.environ["MASTER_PORT"]),
        ranks,
        is_master=rank == 0,
        timeout=patience,
        master_listen_fd=int(listening) if listening is not None else None,
    )


def leave_distributed() -> None:
    """End the process group of a gang, after its last collective. A group of one serves the next stage too."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


def host_names() -> list[str]:
    """Of the machines, by rank. Collective."""
    found = [""] * dist.get_world_size()
    dist.all_gather_object(found, socket.gethostname())
    return found


def device_name(device: torch.device) -> str:
    """What the GPU or the processor calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a product of two square matrices on this device: the rate that MFU is a share of.

    The best of a few products, since a busy machine can only make it slower.
    """
    size, tries = (8192, 8) if device.type == "cuda" else (1024, 4)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    if device.type == "cuda":
        del left, right
        torch.cuda.empty_cache()
        forget_peak(device)
    return 2 * size**3 / min(seconds[1:]) / 1e12


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU's memory since `forget_peak`, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_limit(config: TrainingConfig, local_rank: int) -> float | None:
    """Bytes of a rank's device, or None where that is not known.

    Of a GPU, what `patchline plan` counts with too; of a machine's memory, the equal part of one of its workers.
    """
    if not config.gpus_per_worker:
        found = memory_bytes()
        return None if found is None else found / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local_rank >= torch.cuda.device_count():
        return None
    return torch.cuda.get_device_properties(local_rank).total_memory - RESERVED


def resident_memory() -> int:
    """Bytes of the machine's memory that this process holds; 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak of a GPU's memory anew. The kernel's, on a CPU, is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
