"""Two drivers that are started at once for one workflow, again and again: one runs it, and nothing is told twice."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

from cluster.storage import Storage, open_storage
from pipeline import head
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.head import read_head
from pipeline.record import EventLog, listed
from pipeline.runner import Runner
from pipeline.status import StatusReader
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source, Upper

TIMES = {"file": 50, "s3": 25}
"""By the kind of storage: one on S3 takes several times as long."""
LEASE_SECONDS, LOOK_SECONDS = 60.0, 0.3
"""No lease runs out where a driver only stands still for a moment; whoever waits for one looks again sooner than then.
"""


def chain(number: int) -> Workflow:
    """Two stages that no other workflow of the test has."""
    first, second = Source.model_validate({"text": f"word {number}"}), Upper.model_validate({"from": "first"})
    return Workflow.model_validate({"name": "race", "stages": {"first": first, "second": second}})


def drive(url: str, ids: list[str], barrier: Any, results: Any) -> None:
    """A driver of every workflow in turn, which begins each in the same moment as the other one."""
    storage, owner = open_storage(url), f"driver-{multiprocessing.current_process().pid}"
    # In this process, which is the test's own.
    often = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: time.sleep(min(seconds, LOOK_SECONDS)))
    vars(head)["time"] = often
    for number, workflow_id in enumerate(ids):
        barrier.wait(timeout=300)
        runner = Runner(
            storage, workflow_id, chain(number), owner=owner, ray=False, tracker=Silent(), lease_seconds=LEASE_SECONDS
        )
        results.put((workflow_id, runner.run()))


def test_of_two_drivers_that_race_again_and_again_one_wins_each_time(any_storage: Storage):
    times = TIMES[any_storage.url.partition(":")[0]]
    ids = [create(any_storage, chain(number)) for number in range(times)]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    # Ended with this process: one that waits for the other would keep it.
    arguments = (any_storage.url, ids, barrier, results)
    drivers = [context.Process(target=drive, args=arguments, daemon=True) for _ in range(2)]
    for driver in drivers:
        driver.start()
    ends = Counter(results.get(timeout=300) for _ in range(2 * times))
    for driver in drivers:
        driver.join(timeout=120)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert ends == {(workflow_id, "done"): 2 for workflow_id in ids}
    winners = Counter(check(any_storage, workflow_id) for workflow_id in ids)
    assert sum(winners.values()) == times
    assert listed(any_storage) == dict.fromkeys(ids, "done")


def check(storage: Storage, workflow_id: str) -> str:
    """That one driver did all of a workflow's work, and the other one found it done. Returns the first one's name."""
    events = EventLog(storage, workflow_id).new_events()
    told = Counter((event.type, event.stage) for event in events)
    for stage in ("first", "second"):
        assert told["attempt_started", stage] == told["stage_done", stage] == told["stage_reused", stage] == 1
    assert told["workflow_started", None] == 2
    # Whoever ends gives the lease back, and then says so: where the other one has begun before, that is dropped.
    assert told["workflow_ended", None] in (1, 2)
    epochs = [event.epoch for event in events if event.epoch is not None]
    assert epochs == sorted(epochs), "a driver tells something after the next one has begun"
    owners = [str(event.data["owner"]) for event in events if event.type == "workflow_started"]
    assert len(set(owners)) == 2
    reader = StatusReader(storage, workflow_id, ["first", "second"])
    reader.update()
    for stage in ("first", "second"):
        folder = str(reader.status.stages[stage].folder)
        found = read_head(storage, folder)
        assert found is not None
        assert (found[0].attempt, found[0].epoch, found[0].owner) == (1, 1, owners[0])
        assert found[0].record == f"{folder}/record-1.json"
        assert list(storage.list(f"{folder}/record-")) == [found[0].record]
    return owners[0]
