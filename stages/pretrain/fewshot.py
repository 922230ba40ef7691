"""Few-shot evaluations during pretraining, from the driver: a thread beside the gang that trains.

Training only makes checkpoints for them, which stay until they are evaluated. So where anything ends in between,
nothing is lost: the next attempt finds what is outstanding.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cluster.errors import UserError
from stages.classifiers.class_sets import check_images, class_sets_of
from stages.context import Context, Output, Result, Stopped, StopRequest
from stages.data.manifest import dataset_meta
from stages.frozen.splits import pool_and_test
from stages.pretrain.fewshot_config import FewshotOnTheWay
from stages.pretrain.fewshot_task import CheckpointTask, evaluate_checkpoint, evaluations, published_before, store
from stages.training.job import Job
from stages.training.keeping import update_and_attempt

POLL_SECONDS = 2.0
"""Between looks for new checkpoints, each of which reads one small object."""
TRIES = 3
"""How often an evaluation that fails is tried in one attempt, but for what trying again is of no use to."""
TABLE = "fewshot_on_the_way"


class Evaluations:
    """Those of one attempt. Raises UserError where the data set has not the images for them."""

    def __init__(self, job: Job, settings: FewshotOnTheWay, dataset: Output, context: Context) -> None:
        self._job, self._settings, self._dataset, self._context = job, settings, dataset, context
        self._class_sets = _class_sets(job, settings, dataset)
        self._evaluated = set[str]()
        self._failures = Counter[str]()
        self._over = threading.Event()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Evaluate checkpoints while the block trains, one after the other, and what is left at its end.

        Where training runs in this process nothing runs beside it: torch's threads and memory are shared. Where it
        ends otherwise than well, nobody waits for an evaluation. Raises Stopped where the workflow is to stop before
        all are done.
        """
        thread = threading.Thread(target=self._follow, name="few-shot", daemon=True)
        is_beside = self._context.side_by_side and self._job.config.workers != 0
        if is_beside:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
        if is_beside:
            thread.join()
        while self._evaluate_next():
            if self._context.stop_wanted():
                # The model is stored, and its checkpoints stay: another attempt trains nothing and goes on from here.
                raise Stopped(StopRequest(reason="cancelled"), save_seconds=0.0)
        self._context.keep_checkpoints(self._job.keep_rule(self._context.storage))

    def added_to(self, result: Result) -> Result:
        """The stage's result, with the last update's figures and a table of all of them."""
        found = evaluations(self._context.storage, self._context.folder, self._job.dataset.digest)
        last = [own.metrics for own in found if own.update == self._job.updates]
        figures = {name: value for own in last for name, value in own.items()}
        rows = [row for own in found for row in _rows(own.update, own.rows, own.failed)]
        return replace(result, metrics={**result.metrics, **figures}, tables={**result.tables, TABLE: rows})

    def _follow(self) -> None:
        told = ""
        while not self._over.wait(POLL_SECONDS):
            try:
                while not self._over.is_set() and self._evaluate_next():
                    pass
                told = ""
            except Exception as error:
                # Storage that is away: training deals with it, and at its end nothing is passed over.
                if told != str(error):
                    print(f"few-shot evaluation waits: {error}", flush=True)
                told = str(error)

    def _evaluate_next(self) -> bool:
        """Evaluate the oldest checkpoint that is to be and is not yet; returns whether there was one."""
        for prefix in self._context.checkpoints():
            if prefix in self._evaluated or not self._is_wanted(update_and_attempt(prefix)[0]):
                continue
            if not published_before(self._context.storage, prefix):
                self._evaluate(self._task(prefix))
                return True
            self._evaluated.add(prefix)
        return False

    def _is_wanted(self, update: int) -> bool:
        return update % self._settings.every == 0 or update == self._job.updates

    def _evaluate(self, task: CheckpointTask) -> None:
        update = update_and_attempt(task.prefix)[0]
        began = time.monotonic()
        place = {"cpus": self._settings.cpus, "gpus": float(self._settings.gpus)}
        try:
            list(self._context.tasks(evaluate_checkpoint, [task], label=f"few-shot at update {update}", **place))
            print(f"few-shot evaluation of update {update} in {time.monotonic() - began:.1f} s", flush=True)
        except Exception as error:
            # Whatever it is, training is not to end by it.
            self._failures[task.prefix] += 1
            given_up = isinstance(error, UserError) or self._failures[task.prefix] >= TRIES
            then = "it is left out" if given_up else "it is tried again"
            print(f"few-shot evaluation of update {update} failed; {then}: {_last_line(error)}", flush=True)
            if given_up:
                store(task, {}, [], failed=_last_line(error))
            else:
                time.sleep(POLL_SECONDS)

    def _task(self, prefix: str) -> CheckpointTask:
        job = self._job
        return CheckpointTask(
            storage=self._context.storage,
            prefix=prefix,
            settings=self._settings,
            dataset=self._dataset,
            class_sets=self._class_sets,
            input=job.config.input,
            model=job.model,
            resolution=job.resolution,
            num_classes=job.network.num_classes,
            averaged=job.config.polyak_decay > 0,
            trained_on=job.dataset.digest,
        )


def _class_sets(job: Job, settings: FewshotOnTheWay, dataset: Output) -> dict[str, tuple[int, ...]]:
    """The labels to tell apart, by the name of the set. Raises UserError."""
    meta = dataset_meta(dataset)
    pool, test = pool_and_test(meta)
    own = dataset.digest == job.dataset.digest
    found = class_sets_of(
        settings.class_sets,
        classes=len(meta.classes),
        held_out=meta.held_out,
        never_trained_on=own and bool(meta.held_out) and not set(job.class_ids) & set(meta.held_out),
    )

    def labels(splits: tuple[str, ...]) -> set[int]:
        return {label for name in splits for label, count in enumerate(meta.split(name).class_counts) if count}

    check_images(found, meta.name, meta.classes, pool=labels(pool), test=labels(test))
    return found


def _rows(update: int, rows: list[dict[str, Any]], failed: str) -> list[dict[str, Any]]:
    """Those of the stage's table, which all have the same columns."""
    columns = ("data", "class_set", "classifier", "shots", "accuracy", "standard_error", "regularisation", "draws")
    empty: dict[str, Any] = dict.fromkeys((*columns, "classes", "test_images"))
    return [{"update": update, **empty, **row, "failed": failed} for row in rows or [{}]]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
