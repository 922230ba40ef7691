"""Points of few-shot evaluations on their way to MLflow."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.storage import Storage, open_storage
from pipeline.curves import Curves
from pipeline.head import Head, commit_checkpoint
from stages.metrics import MetricWriter, Point, points_body
from stages.training.keeping import checkpoint_prefix, evaluation_key

FOLDER = "stages/pretrain/x"


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}")


@pytest.fixture
def head(storage) -> Head:
    found = Head.acquire(storage, FOLDER, "driver", ttl=3600)
    assert found is not None
    return found


def commit(storage: Storage, head: Head, attempt: int, update: int, last: int = 10) -> str:
    prefix = checkpoint_prefix(FOLDER, update, attempt)
    commit_checkpoint(storage, FOLDER, head.epoch, attempt, prefix, update, lambda known: list(known)[-last:])
    return prefix


def evaluate(storage: Storage, prefix: str, step: int, value: float) -> Point:
    point = Point(name="fewshot/all/5_shot", value=value, step=step, time_ms=step)
    storage.write(evaluation_key(prefix), points_body([point]))
    return point


def taken(points: list[Point]) -> list[Point]:
    found = list(points)
    points.clear()
    return found


def test_points_are_shown_live_and_by_the_stage(storage, head):
    attempt = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    curves.follow(attempt)
    prefix = commit(storage, head, attempt, 10)
    curves.collect()
    assert curves.committed == []
    point = evaluate(storage, prefix, 10, 0.5)
    curves.collect()
    assert taken(curves.live[attempt]) == taken(curves.committed) == [point]
    curves.collect()
    assert curves.live[attempt] == curves.committed == []


def test_a_result_whose_checkpoint_has_gone_already_is_found(storage, head):
    attempt = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    curves.follow(attempt)
    curves.collect()
    prefixes = {update: commit(storage, head, attempt, update, last=1) for update in (10, 20, 30)}
    points = [evaluate(storage, prefixes[update], update, 0.1) for update in (10, 20)]
    curves.collect()
    assert curves.committed == points


def test_what_an_earlier_attempt_left_to_do_is_found(storage, head):
    """Its checkpoint is evaluated when a later attempt, and perhaps another driver, is at work."""
    first = head.new_attempt().attempt
    prefixes = [commit(storage, head, first, update) for update in (10, 20)]
    early = evaluate(storage, prefixes[0], 10, 0.1)
    second = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    curves.follow(second)
    curves.collect()
    assert taken(curves.committed) == [early]
    late = evaluate(storage, prefixes[1], 20, 0.2)
    curves.collect()
    assert taken(curves.committed) == [late]
    assert curves.live[second] == []


def test_an_update_that_is_made_twice_has_one_point(storage, head):
    first = head.new_attempt().attempt
    commit(storage, head, first, 10)
    damaged = commit(storage, head, first, 20)
    point = evaluate(storage, damaged, 20, 0.2)
    head.forget_checkpoint(damaged)
    second = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    curves.follow(second)
    again = evaluate(storage, commit(storage, head, second, 20), 20, 0.2)
    curves.collect()
    assert curves.committed == [point]
    assert curves.live[second] == [again]


def test_points_beyond_what_is_committed_wait(storage, head):
    attempt = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    curves.follow(attempt)
    commit(storage, head, attempt, 10)
    point = evaluate(storage, checkpoint_prefix(FOLDER, 20, attempt), 20, 0.2)
    curves.collect()
    assert curves.committed == []
    commit(storage, head, attempt, 20)
    curves.collect()
    assert curves.committed == [point]


class Counting:
    """A storage that counts what is asked of it."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self.asked = storage, []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)

        def asking(*arguments: Any) -> Any:
            self.asked.append(f"{name} {arguments[0]}")
            return found(*arguments)

        return asking


def test_of_stages_without_evaluations_nothing_more_is_asked(storage, head):
    for _ in range(3):
        commit(storage, head, head.new_attempt().attempt, 10)
    asked = {}
    for evaluated in (False, True):
        counting = Counting(storage)
        curves = Curves(counting, FOLDER, has_updates=True, evaluated=evaluated)  # type: ignore[arg-type]
        curves.follow(3)
        curves.collect()
        counting.asked.clear()
        curves.collect()
        asked[evaluated] = [line for line in counting.asked if "fewshot" in line]
    assert asked == {False: [], True: [f"list {FOLDER}/attempts/3/fewshot/"]}


class Asked:
    """A storage over another one, which remembers what was read."""

    def __init__(self, inner):
        self.inner, self.read_keys = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read(self, key):
        self.read_keys.append(key)
        return self.inner.read(key)


def test_attempts_that_are_over_are_asked_for_no_more_and_lose_no_point(storage, head):
    asked = Asked(storage)
    curves = Curves(asked, FOLDER, has_updates=True)
    for attempt in range(1, 6):
        assert head.new_attempt().attempt == attempt
        curves.follow(attempt)
        curves.collect()
        writer = MetricWriter(storage, f"{FOLDER}/attempts/{attempt}")
        writer.log({"train/loss": 1.0 / attempt}, attempt)
        writer.close()
        commit(storage, head, attempt, attempt)
    curves.collect()
    assert [point.step for point in curves.committed] == [1, 2, 3, 4, 5]
    assert [len(curves.live[attempt]) for attempt in range(1, 6)] == [1] * 5
    asked.read_keys.clear()
    curves.collect()
    assert asked.read_keys == [f"{FOLDER}/attempts/5/metrics/000001.jsonl"]


def write_losses(storage: Storage, attempt: int, steps: range) -> None:
    """Points of an attempt, one in 100 ms."""
    body = points_body(Point(name="train/loss", value=1.0, step=step, time_ms=100 * step) for step in steps)
    storage.write(f"{FOLDER}/attempts/{attempt}/metrics/000000.jsonl", body)


def test_what_an_attempt_lost_is_what_the_next_one_makes_again(storage, head):
    first = head.new_attempt().attempt
    write_losses(storage, first, range(1, 18))
    commit(storage, head, first, 10)
    second = head.new_attempt().attempt
    write_losses(storage, second, range(11, 15))
    third = head.new_attempt().attempt
    expected = {first: (7.0, 0.7), second: (4.0, 0.4)}
    curves = Curves(storage, FOLDER, has_updates=True)
    for attempt in (second, third):
        curves.follow(attempt)
        lost = {point.name: point for point in curves.lost(attempt - 1)}
        updates, seconds = expected[attempt - 1]
        assert lost["lost/updates"].value == updates
        assert lost["lost/seconds"].value == pytest.approx(seconds)
        assert {point.step for point in lost.values()} == {attempt - 1}
    # Later, and from another driver's eyes: the same points, so that MLflow keeps one of each.
    commit(storage, head, third, 20)
    again = Curves(storage, FOLDER, has_updates=True)
    again.follow(third)
    assert {point.name: point for point in again.lost(second)} == lost


def test_an_attempt_that_ended_at_its_checkpoint_lost_nothing(storage, head):
    first = head.new_attempt().attempt
    write_losses(storage, first, range(1, 11))
    commit(storage, head, first, 10)
    second = head.new_attempt().attempt
    curves = Curves(storage, FOLDER, has_updates=True)
    curves.follow(second)
    assert curves.lost(first) == []
    assert curves.lost(second) == []


def test_attempts_that_are_shown_afterwards_have_all_of_their_points(storage, head):
    """One after the other, though each look finds the later ones too, which end those before."""
    for number in range(1, 4):
        attempt = head.new_attempt().attempt
        writer = MetricWriter(storage, f"{FOLDER}/attempts/{attempt}")
        for update in (10 * number - 1, 10 * number):
            writer.log({"train/loss": 1.0}, update)
        writer.close()
        commit(storage, head, attempt, 10 * number)
    curves, shown = Curves(storage, FOLDER, has_updates=True), []
    for attempt in (1, 2, 3):
        curves.follow(attempt)
        curves.collect()
        shown.append([point.step for point in taken(curves.live[attempt])])
    assert shown == [[9, 10], [19, 20], [29, 30]]
    assert sorted({point.step for point in curves.committed}) == [9, 10, 19, 20, 29, 30]


def test_an_evaluation_that_an_attempt_left_to_the_next_one_is_of_the_stage_too(storage, head):
    """Not what that one's machines were like at the same update."""
    commit(storage, head, head.new_attempt().attempt, 10)
    attempt = head.new_attempt().attempt
    writer = MetricWriter(storage, f"{FOLDER}/attempts/{attempt}")
    for name in ("system/machine/memory", "validation/loss", "raw/validation/loss"):
        writer.log({name: 1.0}, 10)
    writer.log({"train/loss": 1.0}, 20)
    writer.close()
    curves = Curves(storage, FOLDER, has_updates=True)
    curves.follow(attempt)
    curves.collect()
    assert (len(curves.live[attempt]), curves.committed) == (4, [])
    commit(storage, head, attempt, 20)
    curves.collect()
    shown = [(point.name, point.step) for point in curves.committed]
    assert shown == [("validation/loss", 10), ("raw/validation/loss", 10), ("train/loss", 20)]


def test_an_update_that_is_evaluated_twice_since_its_checkpoint_was_damaged_has_one_point(storage, head):
    curves = Curves(storage, FOLDER, has_updates=True)
    for start, end, value in ((0, 20, 0.25), (10, 30, 0.75)):
        attempt = head.new_attempt().attempt
        curves.follow(attempt)
        writer = MetricWriter(storage, f"{FOLDER}/attempts/{attempt}")
        for update in range(start + 10, end + 1, 10):
            writer.log({"train/loss": value, "validation/loss": value}, update)
            writer.flush()
            newest = commit(storage, head, attempt, update)
        writer.close()
        curves.collect()
        head.forget_checkpoint(newest)
    shown = [(point.name, point.step, point.value) for point in curves.committed]
    assert shown == [
        (name, update, 0.25 if update < 30 else 0.75)
        for update in (10, 20, 30)
        for name in ("train/loss", "validation/loss")
    ]


def test_an_attempt_that_is_shown_after_a_later_one_has_its_evaluations_too(storage, head):
    made = {}
    for update in (10, 20):
        attempt = head.new_attempt().attempt
        made[attempt] = evaluate(storage, commit(storage, head, attempt, update), update, update / 100)
    curves = Curves(storage, FOLDER, has_updates=True, evaluated=True)
    shown = {}
    for attempt in (2, 1):
        curves.follow(attempt)
        curves.collect()
        shown[attempt] = taken(curves.live[attempt])
    assert shown == {attempt: [point] for attempt, point in made.items()}
    assert sorted(point.step for point in curves.committed) == [10, 20]
