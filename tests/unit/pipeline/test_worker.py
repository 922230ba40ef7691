"""What a worker's process does around a stage's function."""

import itertools
import time

import pytest

from cluster.gang import Interruption, Place
from cluster.storage import open_storage
from pipeline.worker import POLL_SECONDS, StopWatch, looks_at, request_stop
from stages.context import StopRequest


def test_a_notice_is_left_for_the_driver_once(tmp_path):
    notice = Interruption(preempted=True, seconds=30.0)
    place = Place(rank=1, world_size=2, local_rank=0, interruption=lambda: notice)
    watch, notes = StopWatch(open_storage(f"file://{tmp_path}"), "attempts/1", place), []
    watch.note = notes.append
    assert watch.requested() == watch.requested() == StopRequest(reason="preempted", notice_seconds=30.0)
    watch.close()
    assert notes == ["its machine was taken away with 30 s of notice, too few for a checkpoint: ask for more"]


@pytest.mark.parametrize(("ranks", "a_second"), [(1, 1), (2, 2), (8, 8), (64, 8), (1024, 8)])
def test_however_many_ranks_look_storage_is_asked_as_often(ranks, a_second):
    looks = sorted(
        moment
        for rank in range(ranks)
        for first, interval in [looks_at(rank, ranks)]
        for moment in (first + number * interval for number in range(600))
        if moment <= 600
    )
    assert len(looks) / 600 == pytest.approx(a_second, rel=0.01)
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert max(gaps) <= POLL_SECONDS + 1e-6, "one of them finds a request within a second"


def test_a_request_in_storage_is_found(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    request_stop(storage, "attempts/1", "resized")
    watch = StopWatch(storage, "attempts/1", Place(rank=0, world_size=1, local_rank=0))
    deadline = time.monotonic() + 60
    while watch.requested() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    watch.close()
    assert watch.requested() == StopRequest(reason="resized")
