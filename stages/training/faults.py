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
from stages.training.fitting import fitting_moves
from stages.training.memory import Network, memory

if TYPE_CHECKING:
    from stages.training.loop import Job

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
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(_advice(job, rank, str(error).splitlines()[0])) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise UserError(_advice(job, rank, str(error).splitlines()[0])) from None


def _advice(job: Job, rank: Rank, found: str) -> str:
    """What to change, with the memory that a worker needs by the model that `patchline plan` has."""
    config, device = job.config, "cuda" if job.config.gpus_per_worker else "cpu"
    network = Network(model=job.model, resolution=job.resolution, num_classes=len(job.class_ids))
    needed = memory(config, network, rank.world_size, device).total
    moves = [str(move) for move in fitting_moves(config, network, rank.world_size, device)]
    cure = f"try {', '.join(moves[:-1])} or {moves[-1]}" if len(moves) > 1 else f"try {moves[0]}" if moves else ""
    text = f"rank {rank.rank} ran out of memory ({found}); training needs about {needed / 1e9:.1f} GB a worker"
    return f"{text}: {cure or 'take devices with more'}"
