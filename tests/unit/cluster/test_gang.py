import dataclasses
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from cluster.errors import UserError
from cluster.gang import Interruption, Place, _interruption, free_workers, most_workers, run_gang


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


@pytest.mark.parametrize(
    # As much of it as a slow machine leaves.
    ("notice", "left"),
    [(300.0, pytest.approx(300.0, abs=60.0)), (-5.0, 0.0), (None, None)],
)
def test_the_notice_of_a_preemption_is_read_from_what_ray_keeps(
    monkeypatch: pytest.MonkeyPatch, notice: float | None, left: object
):
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
    assert found.seconds == left


class Cluster:
    """Ray, as far as counting goes: machines by their ids, with what they have, what of it is free, and labels."""

    def __init__(self, machines: dict[str, tuple[dict[str, float], dict[str, float], dict[str, str]]]) -> None:
        self._machines = machines
        self._private = self.state = self

    def nodes(self) -> list[dict[str, object]]:
        return [
            {"NodeID": name, "Alive": name != "dead", "Resources": whole, "Labels": labels}
            for name, (whole, _, labels) in self._machines.items()
        ]

    def available_resources_per_node(self) -> dict[str, dict[str, float]]:
        return {name: free for name, (_, free, _) in self._machines.items() if name != "dead"}


LARGE = {"CPU": 16.0, "GPU": 8.0, "memory": 512e9}
MACHINES = {
    "a": (LARGE, {"CPU": 16.0, "GPU": 8.0, "memory": 200e9}, {"gpu": "h100", "zone": "x"}),
    "b": (LARGE, {"CPU": 3.0, "GPU": 8.0, "memory": 512e9}, {"gpu": "h200", "zone": "x"}),
    "c": ({"CPU": 16.0, "memory": 64e9}, {"CPU": 16.0, "memory": 64e9}, {}),
    "dead": (LARGE, LARGE, {"gpu": "h100"}),
}


@pytest.mark.parametrize(
    ("asked", "free", "most"),
    [
        ({"cpus": 1}, 35, 48),
        ({"cpus": 1, "gpus": 1}, 11, 16),
        ({"cpus": 1, "memory": 64}, 3 + 3 + 1, 8 + 8 + 1),
        ({"cpus": 1, "gpus": 1, "memory": 100}, 2 + 3, 5 + 5),
        ({"cpus": 1, "gpus": 1, "labels": {"gpu": "h100"}}, 8, 8),
        ({"cpus": 1, "gpus": 1, "memory": 100, "labels": {"gpu": "h200", "zone": "x"}}, 3, 5),
        ({"cpus": 1, "labels": {"gpu": "h300"}}, 0, 0),
    ],
)
def test_workers_are_counted_by_what_each_machine_has_and_what_it_is(monkeypatch, asked, free, most):
    monkeypatch.setattr("cluster.connect.connect", lambda: Cluster(MACHINES))
    assert free_workers(**asked) == free
    assert most_workers(**asked) == most


def test_memory_and_labels_are_asked_of_ray_in_its_words(monkeypatch):
    from ray.train import ScalingConfig
    from ray.train.v2.api import data_parallel_trainer

    asked: list[ScalingConfig] = []

    class Trainer:
        def __init__(self, *_: object, scaling_config: ScalingConfig, **__: object) -> None:
            asked.append(scaling_config)

        def fit(self) -> "Trainer":
            return self

        return_value = None

    monkeypatch.setattr("cluster.connect.connect", lambda: None)
    monkeypatch.setattr(data_parallel_trainer, "DataParallelTrainer", Trainer)
    run_gang(where, None, workers=2, cpus=2, gpus=1, memory=1.5, labels={"gpu": "h100"}, name="labelled")
    run_gang(where, None, workers=(1, 2), cpus=0.5, name="plain")
    labelled, plain = asked
    assert labelled.resources_per_worker == {"CPU": 2, "GPU": 1, "memory": 1_500_000_000}
    assert labelled.label_selector == {"gpu": "h100"}
    assert (plain.resources_per_worker, plain.label_selector) == ({"CPU": 0.5}, None)
