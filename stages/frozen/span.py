"""A range of a data set's images that one task shows to a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from stages.context import Context, Output
from stages.data.batches import EvaluationBatch
from stages.data.config import DataConfig
from stages.data.dataset import open_cache, open_shards
from stages.data.evaluation_loader import evaluation_batches
from stages.frozen.config import ForwardConfig
from stages.frozen.threads import torch_threads


@dataclass(frozen=True, kw_only=True)
class Span:
    """Images [start, stop) of `splits`, laid end to end, and how they are shown. Picklable."""

    storage: Storage
    dataset: Output
    model: Output
    splits: tuple[str, ...]
    input: DataConfig
    start: int
    stop: int
    batch: int
    threads: int
    device: str

    def batches(self, resolution: int) -> Iterator[EvaluationBatch]:
        """Each image once, with the data set's own labels; torch has the span's number of threads meanwhile."""
        with torch_threads(self.threads):
            yield from evaluation_batches(
                self.storage,
                self.dataset,
                self.splits,
                resolution=resolution,
                batch=self.batch,
                rank=0,
                world_size=1,
                classes=range(len(self.dataset.meta["classes"])),
                config=self.input,
                span=(self.start, self.stop),
            )


def ranges(config: ForwardConfig, storage: Storage, dataset: Output, splits: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the spans over all images of the splits have of their own and of the config, by field."""
    total = int(open_shards(open_cache(storage, dataset, config.input), dataset, splits).counts.sum())
    shown = {
        "input": config.input,
        "batch": config.batch,
        "threads": config.threads,
        "device": "cuda" if config.gpus_per_task else "cpu",
    }
    return [
        {**shown, "splits": splits, "start": start, "stop": min(start + config.images_per_task, total)}
        for start in range(0, total, config.images_per_task)
    ]


def run_tasks(
    config: ForwardConfig, function: Callable[[Any], Any], tasks: Sequence[Span], context: Context, *, label: str
) -> list[Any]:
    """`function` over the spans, as tasks of the cluster; in order."""
    if len(tasks) == 1 and not config.gpus_per_task:
        # Starting a process elsewhere would take longer, and might wait for room beside a gang that trains.
        return [function(tasks[0])]
    place = {"cpus": config.cpus_per_task, "gpus": float(config.gpus_per_task)}
    return list(context.tasks(function, tasks, label=label, **place))
