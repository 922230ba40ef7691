"""Loss and top-1 accuracy over whole splits, each sample counted once on any number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stages.context import Rank
from stages.data.loader import evaluation_batches
from stages.training.engine import Engine
from stages.training.objectives import correct, per_image_loss
from stages.training.watchdog import Watchdog

if TYPE_CHECKING:
    from stages.training.loop import Job

BATCH = 256
"""Images per forward pass and rank."""


def evaluate(job: Job, rank: Rank, engine: Engine, splits: tuple[str, ...], watchdog: Watchdog) -> dict[str, float]:
    """Mean loss and accuracy over `splits`. Collective: every rank makes the same number of forward passes."""
    totals = torch.zeros(3, dtype=torch.float64)
    batches = evaluation_batches(
        rank.storage,
        job.dataset,
        splits,
        resolution=job.resolution,
        batch=BATCH,
        rank=rank.rank,
        world_size=rank.world_size,
        classes=job.class_ids,
        config=job.config.input,
    )
    for number, batch in enumerate(batches):
        watchdog.at(f"evaluation, batch {number}")
        logits = engine.logits(batch.images)
        losses = per_image_loss(logits, batch.labels, loss=job.config.loss)
        hits = correct(logits, batch.labels)
        totals += torch.stack([losses[batch.mask].sum(), hits[batch.mask].sum(), batch.mask.sum()]).double()
    loss, hits, count = engine.sum_over_ranks(totals).tolist()
    return {"loss": loss / count, "accuracy": hits / count}
