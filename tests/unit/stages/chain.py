"""Stages without the runner: the digits ingested, and a gang of one in this process that remembers its jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import Storage
from stages.context import Context, Output, Rank
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as run_ingest

SMALL: dict[str, Any] = {
    "global_batch": 32,
    "threads": 1,
    "log_every": 1,
    "input": {"flip": False, "crop_area": (0.5, 1.0), "streams": 2, "window": 64, "loader_threads": 0},
}
"""Settings of training that are good for a test."""


@dataclass
class Stages:
    """Makes the contexts of stages in one storage."""

    storage: Storage
    jobs: list[Any] = field(default_factory=list)
    """What the stages' gangs were told, in order."""

    def context(self, kind: str, *, seed: int = 0) -> Context:
        return Context(
            storage=self.storage, folder=f"stages/{kind}/x", attempt=1, seed=seed, gang=self._gang(f"stages/{kind}/x"),
            tasks=lambda function, items, label, **place: [function(item) for item in items],
        )  # fmt: skip

    def ingested(self) -> Output:
        config = IngestConfig(source=DigitsSource(), samples_per_shard=300, held_out_classes=3)
        return run_ingest(config, {}, self.context("ingest")).output

    def _gang(self, folder: str) -> Callable[..., Any]:
        rank = Rank(
            rank=0, world_size=1, local_rank=0, storage=self.storage, folder=folder, attempt=1, checkpoint=None,
            commit_checkpoint=lambda prefix, update, keep: (), stop_requested=lambda: None,
        )  # fmt: skip

        def gang(function: Callable[[Any, Rank], Any], argument: Any, **place: Any) -> Any:
            self.jobs.append(argument)
            return function(argument, rank)

        return gang
