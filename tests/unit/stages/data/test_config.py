"""How many threads a loader has."""

import pytest

from cluster import machine
from stages.data.config import DataConfig


@pytest.mark.parametrize(
    ("loader_threads", "workers_here", "cores", "threads"),
    [
        (None, 1, 8, 8), (None, 1, 64, 16), (None, 4, 64, 16), (None, 8, 96, 12), (None, 3, 8, 2), (None, 16, 8, 1),
        (None, None, 8, 2), (5, 4, 8, 5), (40, 1, 8, 40), (5, None, 8, 5), (0, 1, 8, 0), (0, None, 8, 0),
    ],
)  # fmt: skip
def test_threads_are_those_asked_for_or_a_workers_share_of_the_cores(
    monkeypatch, loader_threads, workers_here, cores, threads
):
    monkeypatch.setattr(machine, "CPU_QUOTAS", ())
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(cores)))
    assert DataConfig(loader_threads=loader_threads).threads(workers_here) == threads
