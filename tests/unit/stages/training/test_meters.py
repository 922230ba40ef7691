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
    forward = SimpleNamespace(seconds=3.0)
    engine = SimpleNamespace(collectives=collectives, forward=forward, device=torch.device(device), world_size=2)
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
    found = meters.report(30, [meters.own(Spent(9.0, 8.0)), (4.0, 0.5, 1e9, 6.0, 1.5, 4.5)])
    assert found == {
        "images_per_s": pytest.approx(10 * 64 / 8), "tflops": pytest.approx(0.8), "mfu": pytest.approx(0.8),
        "data_wait": pytest.approx(4 / 8), "storage_wait": pytest.approx(1 / 4),
        "checkpoint_stall": pytest.approx(1 / 8), "memory_gb": 3.0,
        "communication": pytest.approx(1 / 8), "slowest_rank": 1, "compute_skew": pytest.approx(1.5),
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


def test_the_slowest_rank_is_that_of_the_last_five_intervals(clock):
    meters, _ = made()
    figures = []
    for interval in range(1, 11):
        clock[0] += 1
        # Rank 1 becomes three times as slow at the sixth one.
        ranks = [(0.0,) * 5 + (float(interval),), (0.0,) * 5 + (float(interval + 2 * max(0, interval - 5)),)]
        figures.append(meters.report(20 + interval, ranks))
    assert [round(found["compute_skew"], 1) for found in figures] == [1.0] * 5 + [1.4, 1.8, 2.2, 2.6, 3.0]
    assert {found["slowest_rank"] for found in figures[5:]} == {1}


def test_the_pace_is_a_part_of_the_best_speed_that_training_had_for_a_while(clock):
    meters, _ = made()
    paces = []
    for interval, seconds in enumerate((9, 1, 1, 1, 1, 1, 4, 4, 4, 4, 4), start=1):
        clock[0] += seconds
        paces.append(meters.report(20 + 10 * interval, [(0.0,) * 6] * 2).get("pace"))
    assert paces == [None] * 5 + [1.0] + [0.25] * 5


def test_short_intervals_have_a_pace_together(clock):
    meters, _ = made()
    paces = []
    for interval, seconds in enumerate([0.01, 0.39] * 15 + [0.04, 1.56], start=1):
        clock[0] += seconds
        paces.append(meters.report(20 + 10 * interval, [(0.0,) * 6] * 2).get("pace"))
    # Six intervals are 1.2 s, and five times that what is usual: 50 updates a second; 20 in 1.6 s are a quarter of it.
    assert [pace for pace in paces if pace is not None] == [pytest.approx(0.25)]


def test_one_rank_trains_with_nobody_to_compare_with(clock):
    meters, _ = made()
    clock[0] += 1
    assert "compute_skew" not in meters.report(30, [(0.0,) * 6])
