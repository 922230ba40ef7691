"""The meters' figures, by a clock of the test's."""

from types import SimpleNamespace

import pytest
import torch

from stages.data.spent import Spent
from stages.training import meters as meters_module
from stages.training.config import TrainingConfig
from stages.training.meters import Meters


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(meters_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meters_module, "peak_memory", lambda device: 3_000_000_000)
    return now


def made(device: str = "cpu") -> tuple[Meters, SimpleNamespace]:
    collectives = SimpleNamespace(seconds=7.0)
    engine = SimpleNamespace(collectives=collectives, device=torch.device(device), world_size=2)
    config = TrainingConfig(updates=100, global_batch=64)
    # 10 GFLOP an image, and devices of 0.5 TFLOP/s.
    return Meters(engine, config, update=20, flops_per_image=1e10, peak=0.5), collectives


def test_an_interval_has_its_images_its_waits_and_no_evaluation(clock):
    meters, collectives = made()
    with meters.waiting_for_data():
        clock[0] += 2
    clock[0] += 5
    collectives.seconds += 1
    with meters.apart():
        clock[0] += 100
        collectives.seconds += 50
    with meters.saving():
        clock[0] += 1
    # The other rank waited longer for its data, and holds less.
    found = meters.report(30, [meters.own(Spent(9.0, 8.0)), (4.0, 0.5, 1e9, 6.0, 1.5)])
    assert found == {
        "images_per_s": pytest.approx(10 * 64 / 8), "tflops": pytest.approx(0.8), "mfu": pytest.approx(0.8),
        "data_wait": pytest.approx(4 / 8), "storage_wait": pytest.approx(1 / 4),
        "checkpoint_stall": pytest.approx(1 / 8), "memory_gb": 3.0,
        "communication": pytest.approx(1 / 8),
    }  # fmt: skip


def test_the_next_interval_begins_where_the_last_one_ended(clock):
    meters, _ = made()
    clock[0] += 8
    meters.report(30, [(2.0, 0.0, 1e9, 1.0, 0.0), (4.0, 0.5, 1e9, 6.0, 3.0)])
    clock[0] += 4
    found = meters.report(40, [(5.0, 1.0, 1e9, 5.0, 3.0), (4.0, 0.5, 2e9, 9.0, 9.0)])
    assert found["images_per_s"] == pytest.approx(10 * 64 / 4)
    assert (found["data_wait"], found["checkpoint_stall"], found["memory_gb"]) == pytest.approx((3 / 4, 1 / 4, 2.0))
    # Of the rank that waited the longest, in this interval alone.
    assert found["storage_wait"] == pytest.approx(3 / 4)
    assert found["communication"] == 0.0


def test_a_gpu_says_nothing_of_collectives(clock, monkeypatch):
    monkeypatch.setattr(meters_module, "forget_peak", lambda device: None)
    meters, _ = made("cuda")
    clock[0] += 8
    assert "communication" not in meters.report(30, [meters.own(Spent(0.0, 0.0))] * 2)
