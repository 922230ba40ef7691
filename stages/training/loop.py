"""The training loop, and where it starts from."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.context import Output, Rank
from stages.data.loader import TrainLoader
from stages.metrics import MetricWriter
from stages.models.config import ModelConfig
from stages.models.position import Mode
from stages.models.store import adapt, model_bytes, read_state
from stages.models.vit import VisionTransformer, initialize
from stages.training.checkpoint import CheckpointWriter, drop_state, read_manifest, read_tensors
from stages.training.config import TrainingConfig
from stages.training.engine import Engine, leave_distributed
from stages.training.evaluate import evaluate
from stages.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a rank needs to know of a training run. Picklable."""

    config: TrainingConfig
    model: ModelConfig
    resolution: int
    dataset: Output
    splits: tuple[str, ...]
    evaluation: dict[str, tuple[str, ...]]
    """Splits to evaluate at the end, by the name that their metrics carry. `validation` also in between."""
    class_ids: tuple[int, ...]
    """The data set's label of each output of the network."""
    updates: int
    seed: int
    pretrained: Output | None = None
    resampling: Mode = "scipy_bilinear"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: the last finished update, the next sample, and the state to go on from."""

    update: int
    cursor: int
    tensors: list[tuple[str, str, Tensor]]


class NotFinite(RuntimeError):
    """The loss or the gradient norm stopped being a number."""


def find_start(job: Job, model: VisionTransformer, rank: Rank) -> Start:
    """Fill the model and say where to go on. The storage decides, in this order:

    1. a committed checkpoint of this stage: its weights, optimizer, update and cursor;
    2. a pretrained model: its weights, position embeddings resampled, head fresh; update 0;
    3. nothing: initialised from the seed; update 0.
    """
    if rank.checkpoint is not None:
        manifest = read_manifest(rank.storage, rank.checkpoint)
        tensors = list(read_tensors(rank.storage, rank.checkpoint, manifest))
        model.load_state_dict(drop_state(iter(tensors)))
        return Start(update=manifest["update"], cursor=manifest["cursor"], tensors=tensors)
    initialize(model, job.seed)
    if job.pretrained is not None:
        source = job.pretrained.meta
        state = read_state(rank.storage, job.pretrained)
        config = ModelConfig.model_validate(source["model"])
        adaptation = adapt(state, config, source["resolution"], model, job.resampling)
        print(f"from {job.pretrained.prefix}: {adaptation}", flush=True)
    return Start(update=0, cursor=0, tensors=[])


def train(job: Job, rank: Rank) -> dict[str, Any]:
    """Train on one rank of a gang; on rank 0 returns the exported model's file and the final metrics."""
    torch.set_num_threads(job.config.threads)
    model = VisionTransformer(job.model, job.resolution, len(job.class_ids))
    start = find_start(job, model, rank)
    engine = Engine(model, job.config, rank.world_size, rank.local_rank)
    if start.tensors:
        engine.restore(start.update, iter(start.tensors))
    metrics = MetricWriter(rank.storage, f"{rank.folder}/attempts/{rank.attempt}") if rank.rank == 0 else None
    checkpoints = CheckpointWriter(rank, metrics)
    loader = _loader(job, rank, start.cursor)
    try:
        stopped = _updates(job, rank, start, engine, iter(loader), checkpoints, metrics, loader)
        outcome = {"stopped": True} if stopped else _finish(job, rank, engine)
        leave_distributed()
        return outcome
    finally:
        loader.close()
        checkpoints.settle()
        if metrics is not None:
            metrics.close()


def _updates(
    job: Job,
    rank: Rank,
    start: Start,
    engine: Engine,
    batches: Iterator[Any],
    checkpoints: CheckpointWriter,
    metrics: MetricWriter | None,
    loader: TrainLoader,
) -> bool:
    """All updates from `start` on. Returns whether the run was asked to stop before its end."""
    config, timer = job.config, _Timer(start.update)
    for update in range(start.update + 1, job.updates + 1):
        lr = learning_rate(config, update, job.updates)
        batch, seed = next(batches), (job.seed, update, rank.rank)
        report = engine.step(batch, lr, seed=seed, stop=rank.stop_requested(), replaced=loader.replaced)
        _check_finite(report.loss, report.gradient_norm, update)
        last = update == job.updates
        if metrics is not None and (update % config.log_every == 0 or last):
            values = {"loss": report.loss, "accuracy": report.accuracy, "gradient_norm": report.gradient_norm}
            speed = {"lr": lr, "images_per_s": timer.rate(update) * config.global_batch}
            replaced = {"replaced": report.replaced} if report.replaced else {}
            metrics.log({f"train/{name}": value for name, value in (values | speed | replaced).items()}, update)
        if not last and config.evaluate_every and update % config.evaluate_every == 0:
            _evaluate(job, rank, engine, metrics, ("validation",), update)
        if update % config.save_every == 0 or last or report.stop:
            checkpoints.save(engine, update, loader.cursor)
        if report.stop and not last:
            checkpoints.wait()
            return True
    checkpoints.wait()
    return False


def _finish(job: Job, rank: Rank, engine: Engine) -> dict[str, Any]:
    """Evaluate, and export the weights as one file. Every rank takes part."""
    # Not logged as points of this attempt: an attempt that was killed after its last checkpoint may have
    # come this far before. The record has these figures, once.
    figures = _evaluate(job, rank, engine, None, tuple(job.evaluation), job.updates)
    state = {name: next(value for key, value in engine.read(name) if key == "weight") for name in engine.names}
    return {"file": _export(rank, state) if rank.rank == 0 else None, "metrics": figures, "stopped": False}


def _export(rank: Rank, state: dict[str, Tensor]) -> dict[str, Any]:
    """Store the whole model as one file of this attempt; returns its entry for the manifest."""
    with tempfile.TemporaryDirectory(prefix="patchline-") as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(model_bytes(state))
        digest = rank.storage.upload(f"{rank.folder}/attempts/{rank.attempt}/{path.name}", path)
    return {"path": path.name, "bytes": digest.bytes, "sha256": digest.sha256}


def _evaluate(
    job: Job, rank: Rank, engine: Engine, metrics: MetricWriter | None, names: Sequence[str], update: int
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in names:
        if name in job.evaluation:
            found = evaluate(job, rank, engine, job.evaluation[name])
            figures |= {f"{name}/{key}": value for key, value in found.items()}
    if metrics is not None:
        metrics.log(figures, update)
    return figures


def _loader(job: Job, rank: Rank, start: int) -> TrainLoader:
    return TrainLoader(
        rank.storage,
        job.dataset,
        job.splits,
        job.config.input,
        resolution=job.resolution,
        seed=job.seed,
        global_batch=job.config.global_batch,
        rank=rank.rank,
        world_size=rank.world_size,
        start=start,
        classes=job.class_ids,
    )


def _check_finite(loss: float, norm: float, update: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NotFinite(f"update {update}: loss {loss}, gradient norm {norm}")


class _Timer:
    """Updates per second since the last question."""

    def __init__(self, update: int) -> None:
        self._update, self._time = update, time.monotonic()

    def rate(self, update: int) -> float:
        now = time.monotonic()
        rate = (update - self._update) / max(now - self._time, 1e-9)
        self._update, self._time = update, now
        return rate
