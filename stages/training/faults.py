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
    config = job.config
    moves = [f"micro_batch={max(1, config.micro_batch_for(rank.world_size) // 2)}"]
    if not config.activation_checkpointing:
        moves.append("activation_checkpointing=true")
    if config.zero_stage < 3:
        moves.append(f"zero_stage={config.zero_stage + 1}")
    return f"rank {rank.rank} ran out of memory ({found}): try {', '.join(moves[:-1])} or {moves[-1]}"
