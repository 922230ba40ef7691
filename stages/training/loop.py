"""The training loop, and where it starts from."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from cluster.machine import cores
from stages.context import CheckpointDamaged, Rank, Rollback
from stages.data.bound import Host, InputBound
from stages.data.loader import TrainLoader
from stages.metrics import MetricWriter
from stages.models.build import Network, build
from stages.models.config import as_vit, model_config
from stages.models.download import WEIGHTS
from stages.models.initialize import initialize
from stages.models.masked import MaskedVisionTransformer
from stages.models.store import adapt, read_state
from stages.training.checkpoint import CheckpointWriter
from stages.training.config import TrainingConfig, usable_ranks
from stages.training.devices import (
    DTYPES,
    choose_device,
    device_name,
    host_names,
    initialize_distributed,
    keep_freed_memory,
    leave_distributed,
    matrix_rate,
)
from stages.training.engine import Engine
from stages.training.evaluate import Interrupted, evaluate
from stages.training.export import export_weights
from stages.training.faults import agreed, end_process, explained_memory, tell
from stages.training.fetch import fetched
from stages.training.guard import Guard
from stages.training.job import Job
from stages.training.machines import Machines
from stages.training.manifest import Position
from stages.training.masked import MaskedPrediction
from stages.training.meters import Meters
from stages.training.objectives import Objective, Supervised
from stages.training.report import Pending, StepReport
from stages.training.restore import load_weights
from stages.training.slow import Slow
from stages.training.watchdog import Watchdog


def train(job: Job, rank: Rank) -> dict[str, Any] | None:
    """Train on one rank of a gang; rank 0 returns how it ended. Ranks without work return None.

    `outcome` is `done` (with the models' files, the final metrics, and what machine it was), `stopped` (with the
    reason), `rollback` (with what to leave out), or `damaged` (with what is wrong with the checkpoint).
    """
    rank = _among_those_with_work(job.config, rank)
    if rank.rank >= rank.world_size:
        print(f"idle: global_batch={job.config.global_batch} has equal parts for {rank.world_size} ranks", flush=True)
        return None
    torch.set_num_threads(job.config.threads)
    device = choose_device(job.config, rank.local_rank)
    keep_freed_memory(device)
    initialize_distributed(device)
    with explained_memory(job, rank), ExitStack() as stack:
        found = partial(end_process, rank) if rank.own_process else tell
        watchdog = stack.enter_context(Watchdog(job.config.hang_seconds, found))
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

    1. a committed checkpoint of this stage, or at first of a branch's trunk: its weights, optimizer, update and cursor;
    2. a pretrained model: its weights, position embeddings resampled, its head or a fresh one; update 0;
    3. nothing: initialised from the seed; update 0.

    Raises CheckpointDamaged, on all ranks alike, where the first is not what its manifest promises.
    """

    def __init__(self, job: Job, rank: Rank, watchdog: Watchdog, stack: ExitStack) -> None:
        self.job, self.rank, self.watchdog = job, rank, watchdog
        model = _network(job)
        # Before there is an engine, whose peak of memory it would add to.
        peak = job.config.peak_tflops or (_matrix_rate(job.config, rank) if rank.rank == 0 else 0.0)
        data = job.dataset.digest
        with fetched(rank, data, job.trunk_folder) if rank.checkpoint is not None else nullcontext() as checkpoint:
            if checkpoint is not None:
                position = checkpoint.position
                load_weights(model, checkpoint)
            else:
                position = Position(data=data)
                _initialize(model, job, rank)
            self.engine = Engine(model, job.config, rank.world_size, rank.local_rank, _objective(job))
            if checkpoint is not None:
                self.engine.restore(position.counters, checkpoint.tensors())
        self.start = self.logged = position.update
        # A branch's trunk evaluates its own updates.
        own = rank.checkpoint is not None and rank.checkpoint.startswith(f"{rank.folder}/")
        self.evaluation_due = own and position.evaluation_due and self._evaluates(self.start)
        self.guard = Guard(job.config.guards, position.recent_losses)
        self.loader = stack.enter_context(_loader(job, rank, position.cursor))
        # Closed in the opposite order: an outstanding checkpoint flushes the metrics.
        self.metrics = None
        if rank.rank == 0:
            writer = MetricWriter(rank.storage, f"{rank.folder}/attempts/{rank.attempt}")
            self.metrics = stack.enter_context(closing(writer))
        self.checkpoints = CheckpointWriter(rank, self.metrics, job.about(), job.keep_rule(rank.storage))
        stack.callback(self._settle_checkpoint)
        flops = 6.0 * job.network.macs
        self.meters = Meters(self.engine, job.config, update=position.update, flops_per_image=flops, peak=peak)
        self.input_bound = InputBound(job.config.input, _host(self.loader, rank))
        hosts = host_names()
        self.slow = Slow(hosts)
        stack.enter_context(Machines(hosts, rank.rank, watchdog.store, self._log_machine if self.metrics else None))
        self.pending: deque[tuple[int, int, Pending]] = deque()

    def updates(self) -> dict[str, Any] | None:
        """All updates that are left; returns how the attempt ends where it is asked to stop before the last one."""
        job, config = self.job, self.job.config
        if self.evaluation_due and not self._evaluate_on_the_way(self.start):
            # The checkpoint from which it starts still tells that this is due.
            return self._stopped(time.monotonic())
        for update in range(self.start + 1, job.updates + 1):
            begin, last = self.loader.cursor, update == job.updates
            self.watchdog.at(f"update {update} waits for images")
            self.checkpoints.check()
            with self.meters.waiting_for_data():
                batch = next(self.loader)
            self.watchdog.at(f"update {update} computes")
            pending = self.engine.step(
                batch,
                job.rate(update),
                seed=(job.seed, update, self.rank.rank),
                signal=self.rank.stop_requested() is not None,
                replaced=self.loader.replaced,
                own=self.meters.own(self.loader.spent()) if self._logs(update) else None,
            )
            self.pending.append((update, begin, pending))
            saved_every = (config.save_every, config.keep_every, job.evaluated_every)
            due = last or any(every and update % every == 0 for every in saved_every)
            evaluates = self._evaluates(update)
            # A stop at an evaluation, or in it, saves this update: the next attempt evaluates it.
            stop = self._settle(keep=0 if due or evaluates else self.engine.lag)
            stop = stop or (evaluates and not self._evaluate_on_the_way(update))
            asked = time.monotonic()
            if due or stop:
                self._save(update, evaluation_due=evaluates and stop)
            if stop and not last:
                return self._stopped(asked)
        with self.watchdog.patient("its checkpoint is stored"):
            self.checkpoints.wait()
        return None

    def finish(self) -> dict[str, Any]:
        """Evaluate, and export the weights. Every rank takes part."""
        # Not logged as points of this attempt: an attempt that was killed after its last checkpoint may have
        # come this far before. The record has these figures, once.
        try:
            figures = self._evaluate(tuple(self.job.evaluation))
        except Interrupted:
            return self._stopped(time.monotonic())
        files = [self._export("weight", "raw.safetensors")] if self.job.config.polyak_decay else []
        files.append(self._export("average" if self.job.config.polyak_decay else "weight", WEIGHTS))
        machine = {"device": device_name(self.engine.device), "peak_tflops": self.meters.peak}
        return {"outcome": "done", "files": files, "metrics": figures, "machine": machine}

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

    def _settle_checkpoint(self) -> None:
        with self.watchdog.patient("its checkpoint is stored"):
            self.checkpoints.settle()

    def _save(self, update: int, *, evaluation_due: bool) -> None:
        assert not self.pending, f"update {update} would be saved before anybody has looked at it"
        with self.watchdog.patient(f"update {update} is saved"), self.meters.saving():
            position = Position(
                update=update,
                cursor=self.loader.cursor,
                counters=self.engine.counters(),
                recent_losses=self.guard.recent,
                data=self.job.dataset.digest,
                evaluation_due=evaluation_due,
            )
            self.checkpoints.save(self.engine, position)

    def _evaluates(self, update: int) -> bool:
        """Whether it is evaluated on the way. The last one is at the end."""
        every = self.job.config.evaluate_every
        return bool(every) and update % every == 0 and update < self.job.updates

    def _logs(self, update: int) -> bool:
        return update % self.job.config.log_every == 0 or update == self.job.updates

    def _log(self, update: int, report: StepReport) -> None:
        if self.metrics is None:
            return
        meters = self.meters.report(update, report.ranks)
        if told := self.input_bound.look(meters["data_wait"], meters["storage_wait"]):
            print(told, flush=True)
        if told := self.slow.look(meters):
            print(told, flush=True)
        values = {
            "loss": report.loss,
            "accuracy": report.accuracy if self.engine.objective.has_accuracy else None,
            "gradient_norm": report.gradient_norm,
            "parameter_norm": report.parameter_norm,
            "lr": self.job.rate(update),
            **meters,
            "checkpoint_seconds": self.checkpoints.seconds_stored or None,
            "replaced": report.replaced or None,
            "images_seen": update * self.job.config.global_batch,
            "exaflops": self.job.network.exaflops(update * self.job.config.global_batch),
        }
        self.metrics.log({f"train/{name}": value for name, value in values.items() if value is not None}, update)
        self.logged = update

    def _log_machine(self, values: Mapping[str, float]) -> None:
        """Log how busy a machine is, at the newest update that has points."""
        if self.metrics is not None:
            self.metrics.log(values, self.logged)

    def _evaluate_on_the_way(self, update: int) -> bool:
        """Log points of the validation split; returns False, and logs none, where the ranks are asked to stop."""
        with self.meters.apart():
            try:
                figures = self._evaluate(("validation",))
            except Interrupted:
                return False
        if self.metrics is not None:
            self.metrics.log(figures, update)
        return True

    def _evaluate(self, names: Sequence[str]) -> dict[str, float]:
        """Loss and accuracy on splits by their names. With Polyak's average those are its own; the weights' are `raw`.

        Raises Interrupted.
        """
        raw = self._evaluate_weights(names)
        if not self.job.config.polyak_decay:
            return raw
        with self.engine.tensors.averaged():
            return {f"raw/{name}": value for name, value in raw.items()} | self._evaluate_weights(names)

    def _evaluate_weights(self, names: Sequence[str]) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name in names:
            self.watchdog.at(f"evaluation of {name}")
            found = evaluate(self.job, self.rank, self.engine, self.job.evaluation[name], self.watchdog)
            figures |= {f"{name}/{key}": value for key, value in found.items()}
        return figures

    def _export(self, key: str, name: str) -> dict[str, Any] | None:
        with self.watchdog.patient(f"{name} is exported"):
            return export_weights(self.engine, self.rank, key, name)


def _network(job: Job) -> Network:
    """What is trained, uninitialised."""
    if job.masked is not None:
        return MaskedVisionTransformer(as_vit(job.model), job.resolution, job.masked)
    return build(job.model, job.resolution, len(job.class_ids))


def _objective(job: Job) -> Objective:
    if job.masked is not None:
        return MaskedPrediction(job.masked, as_vit(job.model), job.seed)
    return Supervised(job.config)


def _matrix_rate(config: TrainingConfig, rank: Rank) -> float:
    return matrix_rate(choose_device(config, rank.local_rank), DTYPES[config.precision])


def _initialize(model: Network, job: Job, rank: Rank) -> None:
    """Draw the weights, and put those of a pretrained model in their places."""
    initialize(model, job.seed)
    if job.pretrained is not None:
        source = job.pretrained.meta
        state = read_state(rank.storage, job.pretrained)
        config = model_config(source["model"])
        resolution = source["resolution"]
        adaptation = adapt(state, config, resolution, model, job.resampling, fresh_head=job.fresh_head)
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
        pinned=job.config.gpus_per_worker > 0,
        ranks_here=rank.local_world_size,
    )


def _host(loader: TrainLoader, rank: Rank) -> Host:
    return Host(cores=cores(), loaders=rank.local_world_size, threads=loader.threads, native=loader.native)
