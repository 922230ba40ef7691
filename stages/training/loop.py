"""The training loop, and where it starts from."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from stages.context import CheckpointDamaged, Output, Rank, Rollback
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.metrics import MetricWriter
from stages.models.config import ModelConfig
from stages.models.flops import forward_macs
from stages.models.position import Mode
from stages.models.store import WEIGHTS, adapt, read_state
from stages.models.vit import VisionTransformer, initialize
from stages.training.checkpoint import CheckpointWriter
from stages.training.config import TrainingConfig, usable_ranks
from stages.training.devices import choose_device, initialize_distributed, leave_distributed
from stages.training.engine import Engine
from stages.training.evaluate import evaluate
from stages.training.export import export_weights
from stages.training.faults import agreed, end_process, explained_memory
from stages.training.guard import Guard
from stages.training.manifest import Damaged, Position
from stages.training.meters import Meters
from stages.training.report import Pending, StepReport
from stages.training.restore import CheckpointFiles, load_weights
from stages.training.schedule import learning_rate
from stages.training.watchdog import Watchdog


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

    def about(self) -> dict[str, Any]:
        """What whoever uses the weights has to know. JSON."""
        classes = dataset_meta(self.dataset).classes
        return {
            "model": self.model.model_dump(mode="json"),
            "resolution": self.resolution,
            "num_classes": len(self.class_ids),
            "classes": [classes[i] for i in self.class_ids],
            "class_ids": list(self.class_ids),
            "seed": self.seed,
            "trained_on": self.dataset.digest,
        }


def train(job: Job, rank: Rank) -> dict[str, Any] | None:
    """Train on one rank of a gang; rank 0 returns how it ended. Ranks without work return None.

    `outcome` is `done` (with the models' files and the final metrics), `stopped` (with the reason), `rollback`
    (with what to leave out), or `damaged` (with what is wrong with the checkpoint).
    """
    rank = _among_those_with_work(job.config, rank)
    if rank.rank >= rank.world_size:
        print(f"idle: global_batch={job.config.global_batch} has equal parts for {rank.world_size} ranks", flush=True)
        return None
    torch.set_num_threads(job.config.threads)
    initialize_distributed(choose_device(job.config, rank.local_rank), timeout=2 * job.config.hang_seconds)
    with explained_memory(job, rank), ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(job.config.hang_seconds, lambda found: end_process(rank, found)))
        try:
            with watchdog.patient("starts"):
                run = _Run(job, rank, watchdog, stack)
            outcome = run.updates() or run.finish()
        except _Trouble as trouble:
            outcome = {"outcome": "rollback", **asdict(trouble.rollback)}
        except CheckpointDamaged as damage:
            outcome = {"outcome": "damaged", "prefix": damage.prefix, "reason": damage.reason}
    leave_distributed()
    return outcome


def _among_those_with_work(config: TrainingConfig, rank: Rank) -> Rank:
    """The rank, in a world of those among which the global batch can be divided."""
    ranks = usable_ranks(config.global_batch, rank.world_size)
    if "WORLD_SIZE" in os.environ:
        os.environ["WORLD_SIZE"] = str(ranks)
    return replace(rank, world_size=ranks)


class _Trouble(Exception):
    """An update cannot be used. All ranks find it alike, since they look at the same figures."""

    def __init__(self, rollback: Rollback) -> None:
        super().__init__(rollback.reason)
        self.rollback = rollback


class _Run:
    """One rank's training: what an update needs, and how far it has come.

    Storage decides where it starts:

    1. a committed checkpoint of this stage: its weights, optimizer, update and cursor;
    2. a pretrained model: its weights, position embeddings resampled, head fresh; update 0;
    3. nothing: initialised from the seed; update 0.

    Raises CheckpointDamaged, on all ranks alike, where the first is not what its manifest promises.
    """

    def __init__(self, job: Job, rank: Rank, watchdog: Watchdog, stack: ExitStack) -> None:
        self.job, self.rank, self.watchdog = job, rank, watchdog
        model = VisionTransformer(job.model, job.resolution, len(job.class_ids))
        files = _fetch(rank) if rank.checkpoint is not None else nullcontext()
        with files as checkpoint:
            if checkpoint is not None:
                position = checkpoint.position
                _load_weights(model, checkpoint, rank)
            else:
                position = Position(data=job.dataset.digest)
                _initialize(model, job, rank)
            self.engine = Engine(model, job.config, rank.world_size, rank.local_rank)
            if checkpoint is not None:
                _restore(self.engine, position, checkpoint, rank)
        self.start = position.update
        self.guard = Guard(job.config.guards, position.recent_losses)
        self.loader = stack.enter_context(_loader(job, rank, position.cursor))
        # Closed in the opposite order: an outstanding checkpoint flushes the metrics.
        self.metrics = None
        if rank.rank == 0:
            writer = MetricWriter(rank.storage, f"{rank.folder}/attempts/{rank.attempt}")
            self.metrics = stack.enter_context(closing(writer))
        keep = {"keep_last": job.config.keep_last, "keep_every": job.config.keep_every}
        self.checkpoints = CheckpointWriter(rank, self.metrics, job.about(), **keep)
        stack.callback(self.checkpoints.settle)
        flops = 6.0 * forward_macs(job.model, job.resolution, len(job.class_ids))
        self.meters = Meters(self.engine, job.config, update=position.update, flops_per_image=flops)
        self.pending: deque[tuple[int, int, Pending]] = deque()

    def updates(self) -> dict[str, Any] | None:
        """All updates that are left; returns how the attempt ends where it is asked to stop before the last one."""
        job, config = self.job, self.job.config
        for update in range(self.start + 1, job.updates + 1):
            begin, last = self.loader.cursor, update == job.updates
            self.watchdog.at(f"update {update} waits for images")
            with self.meters.waiting_for_data():
                batch = next(self.loader)
            self.watchdog.at(f"update {update} computes")
            pending = self.engine.step(
                batch,
                learning_rate(config, update, job.updates),
                seed=(job.seed, update, self.rank.rank),
                signal=self.rank.stop_requested() is not None,
                replaced=self.loader.replaced,
                with_norm=self._logs(update),
            )
            self.pending.append((update, begin, pending))
            due = last or any(every and update % every == 0 for every in (config.save_every, config.keep_every))
            stop = self._settle(keep=0 if due else self.engine.lag)
            if config.evaluate_every and update % config.evaluate_every == 0 and not last:
                self._evaluate(("validation",), update)
            asked = time.monotonic()
            if due or stop:
                self._save(update)
            if stop and not last:
                return self._stopped(asked)
        with self.watchdog.patient("its checkpoint is stored"):
            self.checkpoints.wait()
        return None

    def finish(self) -> dict[str, Any]:
        """Evaluate, and export the weights. Every rank takes part."""
        # Not logged as points of this attempt: an attempt that was killed after its last checkpoint may have
        # come this far before. The record has these figures, once.
        names = tuple(self.job.evaluation)
        figures, files = self._evaluate(names, None), []
        if self.job.config.polyak_decay:
            figures = {f"raw/{name}": value for name, value in figures.items()}
            files = [self._export("weight", "raw.safetensors")]
            with self.engine.tensors.averaged():
                figures |= self._evaluate(names, None)
        files.append(self._export("average" if self.job.config.polyak_decay else "weight", WEIGHTS))
        return {"outcome": "done", "files": files, "metrics": figures}

    def _stopped(self, asked: float) -> dict[str, Any]:
        """What is told of a stop, once its checkpoint is committed. `asked` is when that began."""
        own = self.rank.stop_requested()
        request = agreed(asdict(own) if own is not None else None)
        with self.watchdog.patient("its checkpoint is stored"):
            self.checkpoints.wait()
        return {"outcome": "stopped", "request": request, "save_seconds": time.monotonic() - asked}

    def _settle(self, *, keep: int) -> bool:
        """Look at what the updates measured, all but the newest `keep`. Returns whether training is to stop now."""
        stop = False
        while len(self.pending) > (0 if stop else keep):
            update, begin, pending = self.pending.popleft()
            report = pending.report()
            if trouble := self.guard.trouble(report):
                samples = self.job.config.guards.skip_batches * self.job.config.global_batch
                raise _Trouble(Rollback(update=update, start=begin, stop=begin + samples, reason=trouble))
            if self._logs(update):
                self._log(update, report)
            stop |= report.signals > 0
        return stop

    def _save(self, update: int) -> None:
        with self.watchdog.patient(f"update {update} is saved"), self.meters.saving():
            position = Position(
                update=update,
                cursor=self.loader.cursor,
                counters=self.engine.counters(),
                recent_losses=self.guard.recent,
                data=self.job.dataset.digest,
            )
            self.checkpoints.save(self.engine, position)

    def _logs(self, update: int) -> bool:
        return update % self.job.config.log_every == 0 or update == self.job.updates

    def _log(self, update: int, report: StepReport) -> None:
        if self.metrics is None:
            return
        values = {
            "loss": report.loss,
            "accuracy": report.accuracy,
            "gradient_norm": report.gradient_norm,
            "parameter_norm": report.parameter_norm,
            "lr": learning_rate(self.job.config, update, self.job.updates),
            **self.meters.report(update),
            "checkpoint_seconds": self.checkpoints.seconds_stored or None,
            "replaced": report.replaced or None,
        }
        self.metrics.log({f"train/{name}": value for name, value in values.items() if value is not None}, update)

    def _evaluate(self, names: Sequence[str], update: int | None) -> dict[str, float]:
        """Loss and accuracy on splits by their names; logged as points of an update where one is given."""
        figures: dict[str, float] = {}
        for name in names:
            if name in self.job.evaluation:
                self.watchdog.at(f"evaluation of {name} after update {update or self.job.updates}")
                found = evaluate(self.job, self.rank, self.engine, self.job.evaluation[name], self.watchdog)
                figures |= {f"{name}/{key}": value for key, value in found.items()}
        if self.metrics is not None and update is not None:
            self.metrics.log(figures, update)
        return figures

    def _export(self, key: str, name: str) -> dict[str, Any] | None:
        with self.watchdog.patient(f"{name} is exported"):
            return export_weights(self.engine, self.rank, key, name)


def _fetch(rank: Rank) -> CheckpointFiles:
    """The checkpoint's files, on this machine. Raises CheckpointDamaged on all ranks where one finds it damaged."""
    assert rank.checkpoint is not None
    files, problem = CheckpointFiles(rank.storage, rank.checkpoint), None
    try:
        files.fetch()
    except Damaged as error:
        problem = str(error)
    if problem := agreed(problem):
        files.close()
        raise CheckpointDamaged(rank.checkpoint, problem)
    return files


def _load_weights(model: VisionTransformer, files: CheckpointFiles, rank: Rank) -> None:
    # All ranks have the same verified bytes, and find the same.
    try:
        load_weights(model, files)
    except Damaged as error:
        raise CheckpointDamaged(str(rank.checkpoint), str(error)) from None


def _restore(engine: Engine, position: Position, files: CheckpointFiles, rank: Rank) -> None:
    try:
        engine.restore(position.counters, files.tensors())
    except Damaged as error:
        raise CheckpointDamaged(str(rank.checkpoint), str(error)) from None


def _initialize(model: VisionTransformer, job: Job, rank: Rank) -> None:
    """Draw the weights, and put those of a pretrained model in their places."""
    initialize(model, job.seed)
    if job.pretrained is not None:
        source = job.pretrained.meta
        state = read_state(rank.storage, job.pretrained)
        config = ModelConfig.model_validate(source["model"])
        adaptation = adapt(state, config, source["resolution"], model, job.resampling)
        print(f"from {job.pretrained.prefix}: {adaptation}", flush=True)


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
        left_out=[(rollback.start, rollback.stop) for rollback in rank.rollbacks],
    )
