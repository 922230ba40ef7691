"""Room for gangs: what is waited for, and what a range of workers comes to."""

from __future__ import annotations

import itertools
import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.demand import Demand
from cluster.storage import open_storage
from pipeline import room
from pipeline.record import Event, EventLog
from pipeline.room import Door, GrowthWatch, wait_for_room
from pipeline.told import TOLD
from stages.training.config import TrainingConfig, usable_ranks


class Clock:
    """What `room` takes for the time: it goes on by what is waited for."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class Stop(threading.Event):
    """Set by whoever sets it, or once the clock says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock, self.at = clock, math.inf

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._clock.sleep(timeout)
        if self._clock.monotonic() >= self.at:
            self.set()
        # Others are to have their turn.
        return super().wait(0.001)


@pytest.fixture
def drive(tmp_path, monkeypatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(room, "time", clock)
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.01)
    # A number whose multiples a computer has exactly.
    monkeypatch.setattr(room, "SOON_LOOK_SECONDS", 0.125)
    monkeypatch.setattr(room, "SETTLED_SECONDS", 0.05)
    storage = open_storage(f"file://{tmp_path}")
    keeper = SimpleNamespace(stop=Stop(clock))
    return SimpleNamespace(storage=storage, events=EventLog(storage, "w"), keeper=keeper, door=Door())


def events(drive: Any, type_: str) -> list[Event]:
    return [event for event in EventLog(drive.storage, "w").new_events() if event.type == type_]


def free(monkeypatch, *numbers: int) -> None:
    """The cluster has this room at each look, and the last one from then on."""
    looks = itertools.chain(numbers, itertools.repeat(numbers[-1]))
    monkeypatch.setattr(room, "free_workers", lambda cpus, gpus, **_: next(looks))
    monkeypatch.setattr(room, "most_workers", lambda cpus, gpus, **_: 4)


CONFIG = TrainingConfig(updates=1, global_batch=64, workers=8, gpus_per_worker=1)


def test_room_that_is_there_is_taken_without_a_word(drive, monkeypatch):
    free(monkeypatch, 8)
    assert wait_for_room(drive, "pretrain", CONFIG, 8)
    assert events(drive, "waiting_for_room") == []


def test_room_that_is_missing_is_waited_for_in_sight(drive, monkeypatch):
    free(monkeypatch, *[3] * 20, *[8] * 2)
    assert wait_for_room(drive, "pretrain", CONFIG, 8)
    event = events(drive, "waiting_for_room")[0]
    assert TOLD["waiting_for_room"](event.data) == (
        "waiting 0 s for 8 workers with 1 GPU each; the cluster has room for 4, 3 of them free"
    )


def test_a_wait_that_goes_on_is_told_again_and_again_and_ever_more_seldom(drive, monkeypatch):
    free(monkeypatch, 3)
    monkeypatch.setattr(room, "SAY_AGAIN_SECONDS", 0.5)
    drive.keeper.stop.at = 2.0
    assert not wait_for_room(drive, "pretrain", CONFIG, 8)
    waited = [event.data["seconds"] for event in events(drive, "waiting_for_room")]
    assert waited == [0.125, 0.25, 0.5, 1.0, 1.5]


def test_memory_and_labels_are_asked_for_and_named(drive, monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(room, "free_workers", lambda cpus, gpus, **placed: asked.append(placed) or 3)
    monkeypatch.setattr(room, "most_workers", lambda cpus, gpus, **placed: asked.append(placed) or 4)
    config = CONFIG.model_copy(update={"memory_per_worker": 1.5, "node_label": {"gpu": "h100", "zone": "x"}})
    drive.keeper.stop.at = 0.3
    assert not wait_for_room(drive, "pretrain", config, 8)
    assert asked[0] == asked[-1] == {"memory": 1.5, "labels": {"gpu": "h100", "zone": "x"}}
    event = events(drive, "waiting_for_room")[0]
    assert TOLD["waiting_for_room"]({**event.data, "seconds": 40.2}) == (
        "waiting 40 s for 8 workers with 1 GPU and 1.5 GB each, on machines with gpu=h100, zone=x; "
        "the cluster has room for 4, 3 of them free"
    )


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("gpu=h100", {"gpu": "h100"}),
        ("a=b, ray.io/zone=x-1", {"a": "b", "ray.io/zone": "x-1"}),
        ({"a": "b"}, {"a": "b"}),
    ],
)
def test_labels_are_given_as_words_or_as_a_mapping(given, labels):
    assert TrainingConfig(updates=1, node_label=given).node_label == labels


@pytest.mark.parametrize("given", ["h100", "=h100", "gpu=", {"gpu": "in(a, b)"}, {"gpu": "!a"}, ["gpu"]])
def test_labels_that_are_none_are_refused(given):
    with pytest.raises(ValidationError, match="node_label"):
        TrainingConfig(updates=1, node_label=given)


def test_gangs_go_in_by_priority_then_by_their_coming():
    door, order = Door(), []
    waiting = {"first": 0, "second": 0, "urgent": 1}
    for stage, priority in waiting.items():
        door.come(stage, priority)
    while waiting:
        (entering,) = [name for name in waiting if door.room_for(name, 100, 1, 0)]
        door.enter(entering, 1, 0)
        del waiting[entering]
        order.append(entering)
    assert order == ["urgent", "first", "second"]


def test_room_that_was_just_taken_is_not_given_away_again(monkeypatch):
    door = Door()
    door.come("first", 0)
    door.enter("first", cpus=8, gpus=2)
    door.come("second", 0)
    assert door.room_for("second", 6, cpus=2, gpus=0) == 2
    assert door.room_for("second", 6, cpus=1, gpus=1) == 0
    assert door.room_for("second", 6, cpus=2, gpus=0, memory=10) == 2
    monkeypatch.setattr(room, "CLAIM_SECONDS", 0.0)
    assert door.room_for("second", 6, cpus=2, gpus=0) == 6
    monkeypatch.setattr(room, "CLAIM_SECONDS", 60.0)
    door.left("first")
    assert door.room_for("second", 6, cpus=2, gpus=0) == 6


def test_memory_that_was_just_taken_is_not_given_away_again():
    door = Door()
    door.come("first", 0)
    door.enter("first", cpus=8, gpus=0, memory=100)
    door.come("second", 0)
    assert door.room_for("second", 20, cpus=1, gpus=0) == 12
    assert door.room_for("second", 20, cpus=1, gpus=0, memory=10) == 10


def test_a_gang_that_the_cluster_is_too_small_for_keeps_nobody_out(drive, monkeypatch):
    free(monkeypatch, 3)
    large = threading.Thread(target=wait_for_room, args=(drive, "large", CONFIG, 8))
    large.start()
    time.sleep(0.05)
    try:
        assert wait_for_room(drive, "small", CONFIG, 2)
    finally:
        drive.keeper.stop.set()
    large.join()


def test_a_wait_for_room_can_be_cancelled(drive, monkeypatch):
    free(monkeypatch, 0)
    threading.Timer(0.2, drive.keeper.stop.set).start()
    assert not wait_for_room(drive, "pretrain", CONFIG, [2, 8])


@pytest.mark.parametrize(
    ("looks", "workers", "text"),
    [
        ((8,), 8, "8 of 8 workers"),
        ((2, 6, 6), 4, "4 of 8 workers; room for 2 more, which would idle"),
        ((1,), 2, "2 of 8 workers"),
    ],
)
def test_a_range_is_as_many_as_there_is_room_for_and_share_the_batch(drive, monkeypatch, looks, workers, text):
    free(monkeypatch, *looks)
    with GrowthWatch(
        drive, "pretrain", "a/1", (2, 8), cpus=1, gpus=0, usable=lambda ranks: usable_ranks(64, ranks)
    ) as watch:
        assert watch.workers == workers
    (event,) = events(drive, "gang")
    assert TOLD["gang"](event.data) == text


def test_more_room_asks_the_gang_to_stop_and_grow(drive, monkeypatch):
    monkeypatch.setenv("PATCHLINE_GROWTH_SECONDS", "0.02")
    free(monkeypatch, *[3] * 20, 1, 1, 2)
    usable = lambda ranks: usable_ranks(60, ranks)  # noqa: E731
    with GrowthWatch(drive, "pretrain", "a/1", (2, 5), cpus=1, gpus=0, usable=usable) as watch:
        assert watch.workers == 3
        deadline = time.monotonic() + 120
        while drive.storage.stat("a/1/STOP") is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert b'"resized"' in drive.storage.read("a/1/STOP")


def test_the_stage_that_came_first_is_first_until_it_lets_others_pass():
    door = Door()
    door.come("a", 0)
    door.come("b", 0)
    assert (door.first("a"), door.first("b")) == (True, False)
    door.let_pass("a", True)
    assert (door.first("a"), door.first("b")) == (False, True)


def test_nothing_is_asked_of_a_cluster_that_does_not_grow(monkeypatch):
    # Without a cluster, asking would be an error.
    monkeypatch.delenv("PATCHLINE_AUTOSCALED", raising=False)
    with Demand(8, 1, 1) as demand:
        demand.ask()
        assert demand.found() == 0
