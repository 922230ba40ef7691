"""How busy machines are: what is sampled, and how it comes to rank 0."""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from cluster.system_metrics import SystemMetrics, gpus
from stages.training import loop
from stages.training.machines import MACHINES, SECONDS, Machines
from tests.unit.stages.training.test_loop import points


def test_a_sample_is_what_the_system_says():
    metrics = SystemMetrics()
    busy = time.monotonic() + 0.5
    while time.monotonic() < busy:
        pass
    found = metrics.sample()
    total = psutil.virtual_memory().total / 1e6
    assert found["cpu_utilization_percentage"] > 0
    assert 0 < found["system_memory_usage_megabytes"] < total
    assert found["system_memory_usage_percentage"] == pytest.approx(
        100 * found["system_memory_usage_megabytes"] / total
    )
    assert found["network_receive_megabytes"] >= 0
    assert found["disk_available_megabytes"] == pytest.approx(psutil.disk_usage("/").free / 1e6, rel=0.05)


class Library:
    """What NVIDIA's library answers on a machine with one GPU, and one part of a GPU, which has no power of its own."""

    class NVMLError(Exception):
        pass

    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda number: number)
    nvmlDeviceGetMemoryInfo = staticmethod(lambda device: SimpleNamespace(used=20e9, total=80e9))
    nvmlDeviceGetUtilizationRates = staticmethod(lambda device: SimpleNamespace(gpu=97, memory=40))
    nvmlDeviceGetEnforcedPowerLimit = staticmethod(lambda device: 700_000)

    @staticmethod
    def nvmlDeviceGetPowerUsage(device: int) -> int:
        if device == 1:
            raise Library.NVMLError
        return 350_000


def test_gpus_have_mlflows_names_and_what_one_does_not_tell_is_left_out():
    assert gpus(Library) == {  # pyright: ignore[reportArgumentType]
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_memory_usage_megabytes": 20_000.0,
        "gpu_0_utilization_percentage": 97.0,
        "gpu_0_power_usage_watts": 350.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_1_memory_usage_percentage": 25.0,
        "gpu_1_memory_usage_megabytes": 20_000.0,
        "gpu_1_utilization_percentage": 97.0,
    }


def test_the_first_rank_of_each_machine_tells_and_rank_0_logs_each_sample_once():
    # Each looks its address's name up, which a name server may delay.
    patience = timedelta(seconds=60)
    server = TCPStore("127.0.0.1", 0, None, True, patience, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, None, False, patience)
    hosts, logged = ["a", "a", "b", "b"], []
    with (
        Machines(hosts, 1, client, None, seconds=0.01) as second,
        Machines(hosts, 2, client, None, seconds=0.1),
        Machines(hosts, 0, server, logged.append, seconds=0.05),
    ):
        deadline = time.monotonic() + 120
        while sum("system/b/cpu_utilization_percentage" in values for values in logged) < 3:
            assert time.monotonic() < deadline, logged
            time.sleep(0.05)
    assert not server.check(["patchline/machine/1"]), second
    # Threads that have been told to end are not waited for, and may log a last sample.
    logged = list(logged)
    own, others = ([values for values in logged if f"system/{host}/disk_usage_percentage" in values] for host in "ab")
    assert len(own) + len(others) == len(logged)
    assert len(own) >= len(others)
    assert all(one != other for one, other in pairwise(others)), "a sample of the other machine was logged twice"


def test_more_machines_are_asked_less_often():
    few, many = (Machines([f"m{i}" for i in range(number)], 0, None, None) for number in (MACHINES, 4 * MACHINES))
    assert (few._seconds, many._seconds) == (SECONDS, 4 * SECONDS)


def test_training_logs_its_machine(make_stage, monkeypatch):
    monkeypatch.setattr(loop, "Machines", lambda *given: Machines(*given, seconds=0.05))
    monkeypatch.setattr(loop, "host_names", lambda: ["here"])
    stage = make_stage("machine")
    outcome = loop.train(stage.job(updates=60), stage.rank())
    assert outcome is not None
    assert outcome["outcome"] == "done"
    busy = points(stage, 1, "system/here/cpu_utilization_percentage")
    assert busy
    assert set(busy) <= {0, *range(1, 61)}
    assert points(stage, 1, "train/images_seen")[60] == 60 * 32
    assert points(stage, 1, "train/exaflops")[60] == pytest.approx(stage.job().network.exaflops(60 * 32))
