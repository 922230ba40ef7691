"""What failures cost, against limits that can be told by hand."""

import math

import pytest

from stages.training.interval import Failures, best_interval, daly, goodput, young

HOUR = 3600.0


def of(**fields: float) -> Failures:
    return Failures(**{"between": 24 * HOUR, "restart": 120.0, "copy": 1.0, "upload": 0.0, **fields})


def test_without_failures_only_the_copies_cost():
    assert goodput(99, of(between=1e15)) == pytest.approx(0.99, rel=1e-6)


def test_few_failures_cost_half_an_interval_the_upload_and_the_restart():
    few = of(between=100 * HOUR, upload=30)
    lost = 1 / 601 + (600 / 2 + 30 + 120) / (100 * HOUR)
    assert 1 - goodput(600, few) == pytest.approx(lost, rel=0.01)


@pytest.mark.parametrize("between", [1, 24, 1000])
@pytest.mark.parametrize("copy", [0.1, 10])
def test_no_other_interval_is_better_than_the_best(between: float, copy: float):
    failures = of(between=between * HOUR, copy=copy)
    best = best_interval(failures)
    assert all(goodput(best, failures) >= goodput(best * factor, failures) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    assert best == pytest.approx(daly(copy, between * HOUR), rel=0.01)
    assert daly(copy, between * HOUR) == pytest.approx(young(copy, between * HOUR), rel=0.1)


def test_checkpoints_do_not_follow_each_other_faster_than_they_are_stored():
    slow = of(copy=0.1, upload=600)
    assert young(0.1, slow.between) < 600
    assert best_interval(slow) == 600
    assert goodput(600, slow) > goodput(300, slow)
    assert goodput(300, slow) == pytest.approx(goodput(600, slow) / 2, rel=1e-9), "training waits for half of the time"


@pytest.mark.parametrize(("between", "best"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_is_what_the_paper_predicts(between: float, best: float):
    # Captions of its figures 3 to 5, in minutes: dumps of five minutes.
    assert daly(5, between) == pytest.approx(best, rel=0.01)


def test_daly_ends_where_a_checkpoint_takes_longer_than_a_failure():
    assert daly(300, 100) == 100
    assert math.isfinite(best_interval(of(between=100, copy=300)))
