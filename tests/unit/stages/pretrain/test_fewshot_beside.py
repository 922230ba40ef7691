"""Few-shot evaluations that run while training goes on, in processes of their own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from cluster.storage import open_storage
from stages.context import Context, Keep, Output, Rank, Result, Stopped, StopRequest
from stages.metrics import read_points
from stages.pretrain import fewshot
from stages.pretrain.config import PretrainConfig
from stages.pretrain.fewshot_config import FewshotOnTheWay
from stages.pretrain.fewshot_task import CheckpointTask, evaluate_checkpoint, evaluations, published_before, store
from stages.pretrain.run import run
from stages.training.keeping import checkpoint_prefix, evaluation_key
from tests.unit.stages.chain import SMALL, Stages
from tests.unit.stages.models.outputs import small_config

MODEL = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 8}


class Beside:
    """A pretraining's folder without the runner, whose tasks run in another process, as on a cluster.

    At update `holds_at` training goes on only once the evaluation of `holds_for` is there; at `stops_at` it is stopped.
    """

    def __init__(self, stages: Stages, pool: ProcessPoolExecutor, folder: str) -> None:
        self.storage, self.pool, self.folder = stages.storage, pool, folder
        self.kept: dict[int, str] = {}
        self.attempt, self.holds, self.stops_at = 0, {}, 0
        self.waited_for: list[str] = []
        self.seen: list[set[int]] = []

    def run(self, dataset: Output, *, side_by_side: bool = True, stop_wanted: bool = False, **fields: Any) -> Result:
        settings = {"updates": 12, "save_every": 100, "keep_last": 1, "workers": 1, **SMALL, **fields}
        config = PretrainConfig.model_validate({**settings, "data": "ingest", "model": MODEL, "resolution": 16})
        self.attempt += 1
        context = Context(
            storage=self.storage, folder=self.folder, attempt=self.attempt, seed=5, tasks=self._tasks, gang=self._gang,
            checkpoints=lambda: list(dict(sorted(self.kept.items())).values()),
            keep_checkpoints=self._keep, side_by_side=side_by_side, stop_wanted=lambda: stop_wanted,
        )  # fmt: skip
        return run(config, {"data": dataset}, context)

    def _tasks(self, function: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> Iterable[Any]:
        yield from [self.pool.submit(function, item).result() for item in items]

    def _keep(self, keep: Keep) -> list[str]:
        staying = set(keep(dict(sorted(self.kept.items()))))
        return [self.kept.pop(update) for update in set(self.kept) - staying]

    def _gang(self, function: Callable[[Any, Rank], Any], argument: Any, **_: Any) -> Any:
        made = 0

        def commit(prefix: str, update: int, keep: Keep) -> list[str]:
            self.kept[update] = prefix
            self.seen.append(set(self.kept))
            return self._keep(keep)

        def stop() -> StopRequest | None:
            nonlocal made
            made += 1
            for prefix in [self.kept[update] for update in self.holds.get(made, ()) if update in self.kept]:
                deadline = time.monotonic() + 120
                while self.storage.stat(evaluation_key(prefix)) is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                self.waited_for.append(prefix)
            return StopRequest(reason="cancelled") if self.stops_at and made >= self.stops_at else None

        rank = Rank(
            rank=0, world_size=1, local_rank=0, storage=self.storage, folder=self.folder, attempt=self.attempt,
            checkpoint=self.kept[max(self.kept)] if self.kept else None, commit_checkpoint=commit, stop_requested=stop,
        )  # fmt: skip
        return function(argument, rank)


@pytest.fixture(scope="module")
def pool():
    """One process besides this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.stages.training.preload"])
    with ProcessPoolExecutor(1, mp_context=context) as found:
        yield found


@pytest.fixture
def beside(ingested_digits, pool, tmp_path, monkeypatch) -> Beside:
    monkeypatch.setattr(fewshot, "POLL_SECONDS", 0.05)
    return Beside(ingested_digits[0], pool, f"stages/pretrain/{tmp_path.name}")


def points(beside: Beside, attempt: int, update: int) -> dict[str, float]:
    key = evaluation_key(checkpoint_prefix(beside.folder, update, attempt))
    return {point.name: point.value for point in read_points(beside.storage, key)}


EVERY_4 = {"every": 4, "shots": (1, 5)}


def test_checkpoints_are_evaluated_while_training_goes_on(ingested_digits, beside):
    _, dataset = ingested_digits
    plain = beside.run(dataset)
    beside.kept.clear()
    # Update 11 waits for what update 4 left: so it is evaluated with training in the middle.
    beside.holds = {11: (4,)}
    beside.seen.clear()
    result = beside.run(dataset, fewshot=EVERY_4)
    assert beside.waited_for == [checkpoint_prefix(beside.folder, 4, 2)]
    assert result.output.digest == plain.output.digest
    assert sorted({row["update"] for row in result.tables["fewshot_on_the_way"]}) == [4, 8, 12]
    assert points(beside, 2, 12).items() <= result.metrics.items()
    assert list(beside.kept) == [12]
    # Update 4's had been there until then, though one alone is kept otherwise.
    assert {4, 8} in beside.seen


def test_nobody_waits_for_evaluations_of_an_attempt_that_stops_and_the_next_one_makes_them(ingested_digits, beside):
    _, dataset = ingested_digits
    hold, tasks = threading.Event(), Beside._tasks

    def held(self, *arguments, **options):
        hold.wait(120)
        return list(tasks(self, *arguments, **options))

    beside._tasks = held.__get__(beside)
    beside.stops_at = 9
    with pytest.raises(Stopped):
        beside.run(dataset, fewshot=EVERY_4)
    assert list(beside.kept) == [4, 8, 9]
    assert not list(beside.storage.list(f"{beside.folder}/attempts/1/fewshot/"))
    hold.set()
    beside.stops_at = 0
    result = beside.run(dataset, fewshot=EVERY_4)
    assert sorted({row["update"] for row in result.tables["fewshot_on_the_way"]}) == [4, 8, 12]
    assert points(beside, 1, 8)
    assert points(beside, 2, 12).items() <= result.metrics.items()
    assert list(beside.kept) == [12]


@pytest.mark.parametrize("fields", [{"workers": 0}, {"side_by_side": False}])
def test_nothing_runs_beside_training_in_this_process(ingested_digits, beside, fields):
    _, dataset = ingested_digits
    beside.run(dataset, fewshot=EVERY_4, **fields)
    # All of them are there still when the last update is committed.
    assert beside.seen[-1] == {4, 8, 12}
    assert list(beside.kept) == [12]


def task_of(beside: Beside, dataset: Output, update: int, attempt: int) -> CheckpointTask:
    return CheckpointTask(
        storage=beside.storage, prefix=checkpoint_prefix(beside.folder, update, attempt), dataset=dataset,
        settings=FewshotOnTheWay(every=4), class_sets={"all": tuple(range(10))}, input=PretrainConfig.model_validate(
            {**SMALL, "data": "d", "model": MODEL, "resolution": 16, "updates": 4}
        ).input,
        model=small_config(), resolution=16, num_classes=7, averaged=False, trained_on=dataset.digest,
    )  # fmt: skip


def test_of_attempts_that_make_the_same_update_the_newest_counts(ingested_digits, beside):
    _, dataset = ingested_digits
    for attempt, value in ((2, 0.2), (10, 0.3), (9, 0.4)):
        store(task_of(beside, dataset, 8, attempt), {"fewshot/all/1_shot": value}, [{"shots": 1}])
    store(task_of(beside, dataset, 4, 2), {"fewshot/all/1_shot": 0.1}, [{"shots": 1}])
    # What was trained on other bytes is another curve.
    store(replace(task_of(beside, dataset, 12, 1), trained_on="0" * 64), {}, [])
    found = evaluations(beside.storage, beside.folder, dataset.digest)
    assert [(own.update, own.metrics["fewshot/all/1_shot"]) for own in found] == [(4, 0.1), (8, 0.3)]


def test_who_comes_second_leaves_the_bytes_of_the_first(ingested_digits, beside):
    _, dataset = ingested_digits
    task = task_of(beside, dataset, 8, 1)
    assert not published_before(beside.storage, task.prefix)
    store(task, {"fewshot/all/1_shot": 0.25}, [{"shots": 1}])
    key = evaluation_key(task.prefix)
    first = beside.storage.read(key)
    time.sleep(0.002)
    assert store(task, {}, [], failed="the image server is away").metrics == {"fewshot/all/1_shot": 0.25}
    assert beside.storage.read(key) == first
    # Killed between note and points: the points follow from the note, and nothing is computed again.
    beside.storage.delete(key)
    evaluate_checkpoint(task)
    assert beside.storage.read(key) == first


def test_another_process_can_be_told_of_a_task(ingested_digits, beside, pool):
    """A storage, a data set and settings go to wherever there is room."""
    _, dataset = ingested_digits
    task = task_of(beside, dataset, 8, 1)
    store(task, {}, [])
    assert pool.submit(evaluate_checkpoint, task).result() is None
    assert open_storage(beside.storage.url).read(evaluation_key(task.prefix)) == b""


def test_a_stop_does_not_wait_for_all_evaluations_after_the_training(ingested_digits, beside):
    fields = {"fewshot": EVERY_4, "side_by_side": False}
    with pytest.raises(Stopped):
        beside.run(ingested_digits[1], **fields, stop_wanted=True)
    done = [update for update in (4, 8, 12) if beside.storage.stat(key_of(beside, update)) is not None]
    assert done == [4]
    assert set(beside.kept) == {4, 8, 12}
    result = beside.run(ingested_digits[1], **fields)
    assert {row["update"] for row in result.tables["fewshot_on_the_way"]} == {4, 8, 12}


def key_of(beside: Beside, update: int) -> str:
    return evaluation_key(checkpoint_prefix(beside.folder, update, 1))
