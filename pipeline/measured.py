"""The efficiency that training has reached here before."""

from __future__ import annotations

from statistics import median

from cluster.storage import Storage
from pipeline.head import read_head
from pipeline.record import Record, read_record
from stages.metrics import MetricReader

KINDS = ("pretrain", "finetune")
LOOKED_AT = 50
"""Stages of each kind that are looked at."""


def measured_efficiency(storage: Storage) -> tuple[float, str] | None:
    """The median `train/mfu` of the newest finished run on GPUs, and which run that was; None where there is none.

    It is a part of the rate that the run was held against: that of a matrix product measured there, unless its
    config has `peak_tflops`. What activation checkpointing computed twice counts as reached.
    """
    newest: tuple[str, Record] | None = None
    for kind in KINDS:
        for name in storage.list_folders(f"stages/{kind}/")[:LOOKED_AT]:
            folder = f"stages/{kind}/{name}"
            head = read_head(storage, folder)
            if head is None or head[0].record is None:
                continue
            record = read_record(storage, head[0].record)
            later = newest is None or record.ended_ms > newest[1].ended_ms
            if record.placement.get("gpus_per_worker") and later:
                newest = folder, record
    if newest is None:
        return None
    folder, record = newest
    points = MetricReader(storage, f"{folder}/attempts/{record.attempt}").new_points()
    reached = [point.value for point in points if point.name == "train/mfu"]
    if not reached:
        return None
    again = 4 / 3 if record.placement.get("activation_checkpointing") else 1.0
    return median(reached) * again, f"measured by {folder.removeprefix('stages/')}"
