"""What a rank does about trouble that is not its own code's: tells all ranks, tells the driver, ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from cluster.errors import UserError
from stages.context import Rank, write_fault
from stages.training.devices import memory_limit, resident_memory
from stages.training.fitting import fitting_moves
from stages.training.memory import memory

if TYPE_CHECKING:
    from stages.training.job import Job

EXIT_CODE = 75
"""Of a process that ends itself because the gang cannot go on (EX_TEMPFAIL of sysexits.h)."""


T = TypeVar("T")


def agreed(own: T | None) -> T | None:
    """The first rank's answer that is not None: every rank gets the same one. Collective."""
    answers: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, own)
    return next((found for found in answers if found is not None), None)


def end_process(rank: Rank, found: str) -> None:
    """Leave a note of what was found, for the driver, and end this process, whatever it waits for."""
    print(f"rank {rank.rank} ends the attempt: {found}", flush=True)
    try:
        write_fault(rank, found)
    finally:
        os._exit(EXIT_CODE)


def tell(found: str) -> None:
    """Say what was found, where the process is the user's own and not ours to end."""
    print(f"training stands: {found}", flush=True)


@contextmanager
def explained_memory(job: Job, rank: Rank) -> Iterator[None]:
    """Turns a lack of memory into an error that says what to change."""
    before = 0 if job.config.gpus_per_worker else resident_memory()
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(_advice(job, rank, before, str(error).splitlines()[0])) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise UserError(_advice(job, rank, before, str(error).splitlines()[0])) from None


def _advice(job: Job, rank: Rank, before: int, found: str) -> str:
    """What to change, with the memory that a worker needs by the model that `patchline plan` has.

    `before` is what the process held of the device in bytes when training began.
    """
    config, device = job.config, "cuda" if job.config.gpus_per_worker else "cpu"
    network = job.network
    needed = memory(config, network, rank.world_size, device)
    limit = memory_limit(config, rank.local_rank)
    text = f"rank {rank.rank} ran out of memory ({found}); training needs about {needed.total / 1e9:.1f} GB a worker"
    if limit is not None:
        # On a CPU, the copy that a checkpoint is stored from lies in the same memory.
        limit -= before + (needed.host if device == "cpu" else 0)
        text = f"{text}, of {max(limit, 0.0) / 1e9:.1f} GB"
        # Whatever the model holds possible: this was too much.
        limit = min(limit, needed.total - 1)
    moves = [str(move) for move in fitting_moves(config, network, rank.world_size, device, limit)]
    if not moves:
        return f"{text}: {'no setting makes it fit: ' if limit is not None else ''}take devices with more"
    *others, last = moves
    return f"{text}: try {', '.join(others)} or {last}" if others else f"{text}: try {last}"
