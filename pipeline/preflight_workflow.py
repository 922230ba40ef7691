"""Whether a workflow's training would wait for the network or for storage on machines that have been measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from cluster.errors import UserError
from cluster.preflight.machine import Machine
from cluster.shapes import GPUS, ClusterShape, gpu_of
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.estimate import Estimate
from pipeline.estimate_reading import ASSUMED
from pipeline.plan import PlannedStage, Question, plan
from pipeline.preflight_collectives import sheet_part
from pipeline.preflight_comparison import Finding, Level
from pipeline.preflight_survey import Surveyed
from stages.training.config import TrainingConfig

CHECK = "workflow"


def bounds(
    storage: Storage, workflow: Workflow, found: Surveyed, question: Question | None = None
) -> Iterable[Finding]:
    """A finding at least on each stage that trains, by the plan's formulas and the rates of the survey.

    Of the `question`, the sizes of data sets that are not there yet are taken, and its terms.
    """
    question = question or Question()
    shape = measured_shape(found)
    if shape is None:
        devices = ", ".join(sorted({rank.device for rank in found.ranks})) or "no device that was measured"
        return [
            _finding("warning", f"{devices}: of GPUs alone it is predicted whether network or storage are fast enough")
        ]
    terms = replace(question.terms, ceiling=sheet_part(found.ranks))
    try:
        stages = plan(storage, workflow, replace(question, shape=shape, terms=terms))
    except UserError as error:
        return [_finding("problem", str(error))]
    training = [stage for stage in stages if isinstance(workflow.stages[stage.name], TrainingConfig)]
    findings = [finding for stage in training for finding in _of_stage(stage)]
    if any(stage.estimate is not None for stage in training):
        findings.append(_decoding(shape))
    return findings or [_finding("ok", "no stage trains")]


def measured_shape(found: Surveyed) -> ClusterShape | None:
    """The cluster as it was measured; None where its devices are no GPUs with a data sheet."""
    gpus = [gpu_of(rank.device) for rank in found.ranks]
    if not gpus or gpus[0] is None:
        return None
    hosts = Counter(rank.host for rank in found.ranks)
    # Those that train: the cluster's head may have another network card.
    machines = [machine for machine in found.machines.values() if machine.host in hosts]
    return ClusterShape(
        gpu=gpus[0],
        gpus=len(gpus),
        gpus_per_node=max(hosts.values()),
        # All connections of a machine together: in a ring over all ranks it sends what the bus bandwidth counts.
        network_gbit=8 * found.ranks[0].bus if len(hosts) > 1 else None,
        # Training goes at the pace of the slowest.
        bucket_mb_per_s=_slowest(machines, "written"),
        read_mb_per_s=_slowest(machines, "read"),
    )


def _slowest(machines: Iterable[Machine], way: str) -> float | None:
    """In MB/s."""
    return min((getattr(machine, way) for machine in machines), default=0.0) / 1e6 or None


def _of_stage(stage: PlannedStage) -> Iterable[Finding]:
    if stage.action == "reuse":
        return [_finding("ok", f"{stage.name}: is done")]
    estimate = stage.estimate
    if estimate is None:
        why = stage.unknown or "its network is known once the stages before it are done"
        return [_finding("warning", f"{stage.name}: was not judged: {why}")]
    told = list(estimate.warnings)
    if not _storage_judged(estimate):
        told.append(
            "storage was not judged: there is no data set yet, and nobody says how large its images are: --images and "
            "--image-bytes do"
        )
    if told:
        return [_finding("warning", f"{stage.name}: {line}") for line in told]
    days = f"{estimate.images_per_s:,.0f} images/s, {estimate.days:.3g} days"
    return [_finding("ok", f"{stage.name}: {days}; neither network nor storage is the limit")]


def _storage_judged(estimate: Estimate) -> bool:
    """Whether it is known what a machine fetches in the first epoch, or even small images would take too long."""
    first = estimate.first_epoch
    return first is not None and (first.image_bytes_from != ASSUMED or first.waits)


def _decoding(shape: ClusterShape) -> Finding:
    """What is not measured here, since it takes the data set and the room of a whole training."""
    name = next(name for name, gpu in GPUS.items() if gpu == shape.gpu)
    return _finding(
        "warning",
        f"decoding was not measured: `patchline bench-data WORKFLOW --on {name}x{shape.gpus} --gpus-per-node "
        f"{shape.gpus_per_node} --workers {shape.gpus}` tells whether it is the limit, once the data set is there",
    )


def _finding(level: Level, told: str) -> Finding:
    return Finding(level=level, check=CHECK, told=told)
