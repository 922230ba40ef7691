"""Whether a workflow's training would wait for the network or for storage on machines that have been measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cluster.errors import UserError
from cluster.shapes import ClusterShape, gpu_of
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.estimate import Estimate
from pipeline.feeding import finished_dataset
from pipeline.plan import PlannedStage, Question, plan
from pipeline.preflight_findings import Finding, Surveyed
from stages.data.dataset import stored_shards

CHECK = "workflow"


def bounds(storage: Storage, workflow: Workflow, found: Surveyed) -> Iterable[Finding]:
    """A finding on each stage that trains and is not done, by the plan's formulas and the rates of the survey."""
    shape = measured_shape(found)
    if shape is None:
        devices = ", ".join(sorted({rank.device for rank in found.ranks})) or "no device that was measured"
        told = f"{devices}: of GPUs alone it is predicted whether network or storage are fast enough"
        return [Finding(level="warning", check=CHECK, told=told)]
    try:
        stages = plan(storage, workflow, Question(shape=shape))
    except UserError as error:
        return [Finding(level="problem", check=CHECK, told=str(error))]
    trained = [(stage, stage.estimate) for stage in stages if stage.estimate is not None]
    return [finding for stage, estimate in trained for finding in _bound(storage, workflow, found, stage, estimate)]


def measured_shape(found: Surveyed) -> ClusterShape | None:
    """The cluster as it was measured; None where its devices are no GPUs with a data sheet."""
    gpus = [gpu_of(rank.device) for rank in found.ranks]
    if not gpus or gpus[0] is None:
        return None
    pairs = [rank.pair for rank in found.ranks if rank.pair is not None]
    return ClusterShape(
        gpu=gpus[0],
        gpus=len(gpus),
        gpus_per_node=max(Counter(rank.host for rank in found.ranks).values()),
        # Training goes at the pace of the slowest.
        network_gbit=8 * min(pairs) if pairs else None,
        bucket_mb_per_s=min((machine.written for machine in found.machines.values()), default=0.0) / 1e6 or None,
    )


def _bound(
    storage: Storage, workflow: Workflow, found: Surveyed, stage: PlannedStage, estimate: Estimate
) -> Iterable[Finding]:
    told = [f"{stage.name}: {warning}" for warning in estimate.warnings]
    wanted = _bytes_per_s(storage, workflow, stage, estimate)
    slowest = min((machine.read for machine in found.machines.values()), default=0.0)
    machines = max(1, len({rank.host for rank in found.ranks}))
    if wanted is not None and wanted / machines > slowest:
        told.append(
            f"{stage.name}: the first epoch waits for storage: training takes {wanted / machines / 1e6:,.0f} MB/s of "
            f"images a machine, and the slowest reads {slowest / 1e6:,.0f}"
        )
    if told:
        return [Finding(level="warning", check=CHECK, told=line) for line in told]
    days = f"{estimate.images_per_s:,.0f} images/s, {estimate.days:.3g} days"
    return [Finding(level="ok", check=CHECK, told=f"{stage.name}: {days}; neither network nor storage is the limit")]


def _bytes_per_s(storage: Storage, workflow: Workflow, stage: PlannedStage, estimate: Estimate) -> float | None:
    """Of images that training takes, where its data set is there."""
    try:
        dataset = finished_dataset(storage, workflow, getattr(workflow.stages[stage.name], "data"))  # noqa: B009
    except UserError:
        return None
    shards = stored_shards(storage, dataset, "train")
    size, count = sum(shard.tar.bytes for shard in shards), sum(shard.count for shard in shards)
    return estimate.images_per_s * size / count if count else None
