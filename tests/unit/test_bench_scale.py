"""What docs/scale.md is simulated with, against what can be told by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from stages.training.interval import Failures, goodput
from tests.bench.scale import alike
from tests.bench.scale_failures import Cluster, _attempt, simulate
from tests.bench.scale_reading import reading

FAILURES = Failures(between=7200.0, restart=60.0, copy=1.0, upload=30.0)


@pytest.mark.parametrize(
    ("seconds", "kept", "trained", "saving"),
    [
        (50, 0, 50, 0),
        (101, 0, 100, 1),
        (130, 0, 129, 1),  # Copied after 101 s, committed after 131 s.
        (131, 100, 130, 1),
        (240, 200, 238, 2),
    ],
)
def test_an_attempt_keeps_what_was_committed(seconds: float, kept: float, trained: float, saving: float):
    assert _attempt(seconds, 100.0, FAILURES) == pytest.approx((kept, trained, saving))


def test_an_upload_that_is_slower_than_the_interval_makes_training_wait():
    kept, trained, saving = _attempt(1000.0, 10.0, FAILURES)
    assert trained == pytest.approx(10 * len(range(0, 1000, 31)), abs=20)
    assert kept <= trained
    assert trained + saving == pytest.approx(1000)


@pytest.mark.parametrize("interval", [10.0, 100.0, 1000.0])
def test_the_formula_is_what_is_simulated(interval: float):
    cluster = Cluster(machines=16, mtbf=16 * FAILURES.between)
    found = [simulate(cluster, interval, FAILURES, days=200, seed=seed) for seed in range(4)]
    assert mean(spent.goodput for spent in found) == pytest.approx(goodput(interval, FAILURES), abs=0.004)
    assert sum(spent.failures for spent in found) == pytest.approx(4 * 200 * 86400 / 7200, rel=0.05)
    for spent in found:
        assert spent.goodput + spent.lost + spent.saving + spent.restarting == pytest.approx(1)


def test_spare_machines_are_better_than_waiting():
    def of(spares: int) -> float:
        cluster = Cluster(machines=16, mtbf=16 * 86400.0, spares=spares, replaced=43_200.0)
        return mean(simulate(cluster, 100.0, FAILURES, days=100, seed=seed).goodput for seed in range(4))

    # With none, half a day is waited for each failure: once in a day of training.
    assert of(0) == pytest.approx(2 / 3, abs=0.08)
    assert of(0) < of(1) < of(4)
    never_waits = replace(FAILURES, between=86400.0)
    assert of(4) == pytest.approx(goodput(100.0, never_waits), abs=0.002)


def test_a_machine_reads_all_of_few_streams_and_its_part_of_as_many_as_rows():
    cluster = {"tars": 200, "per_tar": 100, "machines": 8, "batch": 64, "window": 50}
    few, many = reading(**cluster, streams=4), reading(**cluster, streams=64)
    assert (few.share, few.again) == (1.0, 1.0)
    assert many.share == pytest.approx(1 / 8, abs=0.05)
    assert many.again < 0.5


def test_what_was_recorded_is_told_from_what_changed():
    assert alike("fetch_tar", {"GET": 32, "HEAD": 1}, {"GET": 32, "HEAD": 1})
    assert not alike("fetch_tar", {"GET": 33, "HEAD": 1}, {"GET": 32, "HEAD": 1})
    assert not alike("fetch_tar", {"GET": 32}, {"GET": 32, "HEAD": 1})
    assert alike("keeper", {"GET": 1.3}, {"GET": 1.4})
    assert not alike("stop_64", {"GET": 64.0}, {"GET": 8.0})
    assert alike("head_bytes", 225, 224)
    assert not alike("head_bytes", 300, 224)
    assert alike("list_seconds_20000", 9.0, 0.1)
