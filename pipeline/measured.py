"""What training has reached here before: its efficiency, and how long it took to store a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from cluster.shapes import gpu_of
from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.record import EventLog, Record, listed, read_record
from stages.metrics import MetricReader
from stages.models.config import model_config
from stages.models.flops import forward_macs
from stages.training.config import TrainingConfig
from stages.training.memory import Network

LOOKED_AT = 20
"""Newest workflows that are looked at."""
ALIKE = 4.0
"""Networks whose cost per image is within this factor of each other's are alike in what they reach."""


def measured_efficiency(storage: Storage, config: TrainingConfig, network: Network) -> tuple[float, str] | None:
    """The part of its GPUs' data-sheet rate that the newest run like this one reached, and which run that was.

    Its `train/mfu`, which is a part of what a matrix product reached there (or of `peak_tflops`), times that rate,
    over the data sheet's. A run is like this one where it pretrained in the same precision a network of a similar cost
    per image, on GPUs that are known. None where there is none. What activation checkpointing computed twice counts as
    reached.
    """
    for folder, record in _finished(storage):
        sheet, peak = _sheet_rate(record), record.metrics.get("peak_tflops")
        if not sheet or not peak or not _alike(record, config, network.macs):
            continue
        points = MetricReader(storage, f"{folder}/attempts/{record.attempt}").new_points()
        reached = [point.value for point in points if point.name == "train/mfu"]
        if reached:
            again = 4 / 3 if record.placement.get("activation_checkpointing") else 1.0
            return median(reached) * again * peak / sheet, f"measured by {folder.removeprefix('stages/')}"
    return None


def measured_upload(storage: Storage, config: TrainingConfig, network: Network) -> tuple[float, str] | None:
    """Seconds in which the newest run of this network and optimizer stored a checkpoint, and which run that was.

    Its `train/checkpoint_seconds`, whatever it ran on. None where there is none.
    """
    for folder, record in _finished(storage):
        fields: Any = record.identity.get("config", {})
        same = (fields.get("optimizer"), bool(fields.get("polyak_decay"))) == (
            config.optimizer,
            bool(config.polyak_decay),
        )
        if not same or model_config(fields["model"]) != network.model:
            continue
        points = MetricReader(storage, f"{folder}/attempts/{record.attempt}").new_points()
        took = [point.value for point in points if point.name == "train/checkpoint_seconds"]
        if took:
            return median(took), f"measured by {folder.removeprefix('stages/')}"
    return None


def measured_speed(storage: Storage, config: TrainingConfig, network: Network) -> tuple[float, str] | None:
    """Images/s that a worker of the newest run of this network took, and which run that was. None where there is none.

    Without the time in which it waited for them: `train/images_per_s` over 1 - `train/data_wait`, in precision and
    device as the config has them.
    """
    for folder, record in _finished(storage):
        fields: Any = record.identity.get("config", {})
        workers = record.placement.get("workers")
        alike = fields.get("precision") == config.precision and fields["resolution"] == network.resolution
        on_gpus = bool(record.placement.get("gpus_per_worker"))
        if not alike or on_gpus != bool(config.gpus_per_worker) or not isinstance(workers, int):
            continue
        if model_config(fields["model"]) != network.model:
            continue
        speeds, waits = dict[int, float](), dict[int, float]()
        for point in MetricReader(storage, f"{folder}/attempts/{record.attempt}").new_points():
            for name, found in (("train/images_per_s", speeds), ("train/data_wait", waits)):
                if point.name == name:
                    found[point.step] = point.value
        took = [speed / max(0.01, 1 - waits.get(step, 0.0)) for step, speed in speeds.items()]
        if took:
            return median(took) / max(1, workers), f"taken by {folder.removeprefix('stages/')}"
    return None


def _finished(storage: Storage) -> Iterator[tuple[str, Record]]:
    """Pretraining stages of the newest workflows, newest first, with their records."""
    newest = sorted(listed(storage), key=lambda name: name.split("-")[-3:], reverse=True)
    seen = set[str]()
    for workflow in newest[:LOOKED_AT]:
        for event in reversed(EventLog(storage, workflow).new_events()):
            folder = str(event.data.get("folder", ""))
            if not folder.startswith("stages/pretrain/") or folder in seen:
                continue
            seen.add(folder)
            head = read_head(storage, folder)
            if head is not None and head[0].record is not None:
                yield folder, read_record(storage, head[0].record)


def _alike(record: Record, config: TrainingConfig, macs: int) -> bool:
    fields: Any = record.identity.get("config", {})
    if fields.get("precision") != config.precision:
        return False
    theirs = forward_macs(model_config(fields["model"]), fields["resolution"], 1)
    return 1 / ALIKE <= theirs / macs <= ALIKE


def _sheet_rate(record: Record) -> float | None:
    """TFLOP/s of one of the run's GPUs by its data sheet, in the run's precision."""
    gpu = gpu_of(record.builds.get("device", ""))
    if gpu is None:
        return None
    config: Any = record.identity.get("config", {})
    return gpu.fp32_tflops if config.get("precision") == "fp32" else gpu.half_tflops
