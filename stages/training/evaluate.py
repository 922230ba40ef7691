"""Loss and accuracy over whole splits, each sample counted once on any number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stages.context import Rank
from stages.data.evaluation_loader import evaluation_batches
from stages.training.engine import Engine
from stages.training.watchdog import Watchdog

if TYPE_CHECKING:
    from stages.training.job import Job

BATCH = 256
"""Most images per forward pass and rank. Never more than in training, which has the memory for them."""
LOOK_EVERY = 10
"""Batches between two looks at whether the ranks are asked to stop."""


class Interrupted(Exception):
    """The ranks are asked to stop: they all leave the evaluation at the same batch."""


def evaluate(job: Job, rank: Rank, engine: Engine, splits: tuple[str, ...], watchdog: Watchdog) -> dict[str, float]:
    """Mean loss over `splits`, and accuracy where there is any.

    Collective: every rank makes the same number of forward passes. Raises Interrupted, on all ranks alike.
    """
    totals = torch.zeros(3, dtype=torch.float64)
    batches = evaluation_batches(
        rank.storage,
        job.dataset,
        splits,
        resolution=job.resolution,
        batch=min(BATCH, engine.micro_batch),
        rank=rank.rank,
        world_size=rank.world_size,
        classes=job.class_ids,
        config=job.config.input,
    )
    for number, batch in enumerate(batches):
        watchdog.at(f"evaluation, batch {number}")
        if number % LOOK_EVERY == 0:
            asked = torch.tensor(float(rank.stop_requested() is not None))
            if engine.sum_over_ranks(asked) > 0:
                raise Interrupted
        losses, hits = engine.judge(batch)
        totals += torch.stack([losses[batch.mask].sum(), hits[batch.mask].sum(), batch.mask.sum()]).double()
    loss, hits, count = engine.sum_over_ranks(totals).tolist()
    figures = {"loss": loss / count}
    return {**figures, "accuracy": hits / count} if engine.objective.has_accuracy else figures
