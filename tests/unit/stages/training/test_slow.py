"""When it is told that training is slow, who is named, and that it is told once."""

import time

import pytest
import torch

from stages.training.collectives import Collectives
from stages.training.forward_clock import ForwardClock
from stages.training.slow import Slow, skew


def told(*intervals: tuple[float | None, int, float]) -> list[str | None]:
    slow = Slow(["node-a", "node-b", "node-c"])
    found = []
    for pace, rank, times in intervals:
        figures = {"slowest_rank": rank, "compute_skew": times} | ({"pace": pace} if pace is not None else {})
        found.append(slow.look(figures))
    return found


def test_a_rank_that_the_others_wait_for_is_named_with_its_machine_once():
    late = "slow: rank 2, on node-c, computes 1.8 times as long as the others"
    assert told(*[(1.0, 2, 1.8)] * 5) == [None, None, late, None, None]


def test_how_slow_training_is_comes_with_the_rank():
    late = "slow: training runs at 40% of its usual speed: rank 2, on node-c, computes 3.0 times as long as the others"
    assert told(*[(0.4, 2, 3.0)] * 3)[-1] == late


def test_where_no_rank_stands_out_it_is_something_between_them():
    *nothing, said = told(*[(0.4, 0, 1.1)] * 3)
    assert nothing == [None, None]
    assert said is not None
    assert said.startswith("slow: training runs at 40% of its usual speed, though all ranks compute about equally long")


def test_noise_is_not_told():
    assert told(*[(0.4, 0, 1.1), (1.0, 0, 1.0)] * 5) == [None] * 10
    assert told(*[(1.0, rank, 2.0) for rank in (0, 1, 2, 0, 1, 2)]) == [None] * 6
    assert told(*[(None, 0, 1.0)] * 5) == [None] * 5


def test_an_interval_that_is_too_short_for_a_speed_changes_nothing():
    *nothing, said = told(*[(0.4, 0, 1.1), (None, 0, 1.1)] * 3)
    assert [line for line in nothing if line] == [nothing[4]]
    assert said is None
    slow_and_late = told(*[(0.4, 0, 1.1)] * 3, *[(None, 2, 3.0)] * 3)[-1]
    assert slow_and_late == (
        "slow: training runs at 40% of its usual speed: rank 2, on node-c, computes 3.0 times as long as the others"
    )


def test_it_is_told_when_it_is_over():
    assert told(*[(0.4, 0, 1.1)] * 3, (0.9, 0, 1.1))[-1] == "training is no longer slowed by anything"
    assert told(*[(1.0, 1, 2.0)] * 3, (1.0, 1, 1.1))[-1] == "training is no longer slowed by one of its ranks"


@pytest.mark.parametrize(
    ("seconds", "expected"), [([1.0, 3.0], (1, 3.0)), ([4.0, 2.0, 1.0, 3.0], (0, 2.0)), ([0, 0], (0, 1))]
)
def test_the_slowest_is_compared_with_the_median_of_the_others(seconds, expected):
    assert skew(seconds) == expected


def test_what_is_gathered_in_a_forward_pass_is_not_the_ranks_own_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    collectives = Collectives()
    clock = ForwardClock(torch.device("cpu"), collectives)
    for _ in range(2):
        with clock.timed():
            now[0] += 3
            with collectives.timed():
                now[0] += 10
    assert clock.seconds == 6
