import dataclasses
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cluster.errors import UserError
from cluster.gang import Interruption, Place, _interruption, run_gang


def where(argument: object, place: Place) -> tuple[object, Place, int]:
    return argument, place, os.getpid()


def test_a_gang_of_none_is_one_rank_in_this_process():
    argument = {"any": object()}
    found = run_gang(where, argument, workers=0, cpus=1, name="here")
    assert found == (argument, Place(rank=0, world_size=1, local_rank=0, own_process=False), os.getpid())
    assert found[0] is argument


@pytest.mark.parametrize("error", [UserError("field: got 3"), ZeroDivisionError("by nothing"), KeyboardInterrupt()])
def test_exceptions_pass_untouched(error: BaseException):
    def fail(argument: object, place: Place) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_gang(fail, None, workers=0, cpus=1, name="here")
    assert caught.value is error


def test_a_gang_of_none_needs_no_ray():
    code = (
        "import sys; from cluster.gang import run_gang; from cluster.tasks import map_tasks; "
        "print(run_gang(lambda a, place: a + place.world_size, 2, workers=0, cpus=1, name='here'), "
        "list(map_tasks(abs, [-1], label='here')), [name for name in ('ray', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "3 [1] []"


def test_workers_without_a_cluster_are_refused_and_none_is_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="no Ray cluster: RAY_ADDRESS is not set"):
        run_gang(where, None, workers=2, cpus=1, name="nowhere")
    import ray

    assert not ray.is_initialized()


@pytest.mark.parametrize("notice", [30.0, -5.0, None])
def test_the_notice_of_a_preemption_is_read_from_what_ray_keeps(monkeypatch: pytest.MonkeyPatch, notice: float | None):
    # Private: another release of Ray may call them otherwise.
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2.api.preemption import PreemptionInfo

    fields = {field.name for field in dataclasses.fields(context.TrainContext)}
    assert "preemption_context" in fields
    kept = PreemptionContext()
    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=kept))
    assert _interruption() is None
    deadline = None if notice is None else int((time.time() + notice) * 1000)
    kept.preemption_info = PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks={"node": [0, 1]})
    found = _interruption()
    assert isinstance(found, Interruption)
    assert found.preempted
    assert found.seconds == (None if notice is None else pytest.approx(max(0.0, notice), abs=1.0))
