"""What the ranks of a gang are fed with when all of them are measured at once."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist

from cluster.gang import Place
from stages.data.feeding import Fed, Feeding, measure
from stages.training.devices import initialize_distributed, leave_distributed


def measure_ranks(feeding: Feeding, place: Place) -> list[tuple[str, Fed]]:
    """The machine's name and what was measured, by rank. Importable, so that Ray can send it. Raises UserError."""
    torch.set_num_threads(1)
    # The ranks only wait for each other, for which a GPU's collectives are not needed.
    initialize_distributed(torch.device("cpu"))
    if feeding.gpus and torch.cuda.is_available():
        # All ranks of a machine see all of its GPUs.
        torch.cuda.set_device(place.local_rank)
    own = measure(feeding, rank=place.local_rank, ranks_here=place.local_world_size, together=dist.barrier)
    found: list[tuple[str, Fed]] = [(socket.gethostname(), own)] * place.world_size
    dist.all_gather_object(found, (socket.gethostname(), own))
    leave_distributed()
    return found
