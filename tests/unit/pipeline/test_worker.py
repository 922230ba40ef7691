"""What a worker's process does around a stage's function."""

from cluster.gang import Interruption, Place
from cluster.storage import open_storage
from pipeline.worker import StopWatch
from stages.context import StopRequest


def test_a_notice_is_left_for_the_driver_once(tmp_path):
    notice = Interruption(preempted=True, seconds=30.0)
    place = Place(rank=1, world_size=2, local_rank=0, interruption=lambda: notice)
    watch, notes = StopWatch(open_storage(f"file://{tmp_path}"), "attempts/1", place), []
    watch.note = notes.append
    assert watch.requested() == watch.requested() == StopRequest(reason="preempted", notice_seconds=30.0)
    watch.close()
    assert notes == ["its machine was taken away with 30 s of notice, too few for a checkpoint: ask for more"]
