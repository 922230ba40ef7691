"""Collectives of real processes: every rank is measured, and all know of all."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.queues import Queue

import pytest

from cluster.gang import Place
from stages.training.reduction import Reduction, measure_collectives, partner, turns
from tests.ports import next_port

RANKS = 3
ASKED = Reduction(seconds=0.2, megabytes=1, gpus=False)


def _rank(rank: int, machines: int, port: int, results: Queue) -> None:
    place = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    # All on one, two of them on one, or each on its own.
    local = {1: rank, 2: max(0, rank - 1), 3: 0}[machines]
    results.put(measure_collectives(ASKED, Place(rank=rank, world_size=RANKS, local_rank=local)))


@pytest.mark.parametrize("machines", [1, 2, RANKS])
def test_every_rank_has_its_figures(machines):
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), next_port()
    # They end with this process at the latest.
    processes = [
        context.Process(target=_rank, args=(rank, machines, port, results), daemon=True) for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    # All know of all.
    assert found[0] == found[1] == found[2]
    assert [rank.local_rank for rank in found[0]] == {1: [0, 1, 2], 2: [0, 0, 1], 3: [0, 0, 0]}[machines]
    assert all(rank.tflops > 0 and rank.bus > 0 and rank.slowest >= 1 for rank in found[0])
    pairs = [rank.pair for rank in found[0]]
    # The second rank of one machine has nobody to send to where the other machine has one rank.
    linked = {1: 0, 2: 2, 3: 3}[machines]
    assert all(pair is not None and pair > 0 for pair in pairs[:linked])
    assert pairs[linked:] == [None] * (RANKS - linked)


def test_a_gang_of_one_sends_nothing():
    (own,) = measure_collectives(ASKED, Place(rank=0, world_size=1, local_rank=0))
    assert (own.bus, own.slowest, own.pair) == (0.0, 1.0, None)
    assert own.tflops > 0


@pytest.mark.parametrize("machines", [2, 3, 4, 5, 8, 13, 128])
def test_machines_are_paired_with_others_in_each_turn_and_never_twice_with_the_same(machines):
    met = set()
    for turn in range(turns(machines)):
        pairs = {own: partner(own, turn, machines) for own in range(machines)}
        idle = [own for own, other in pairs.items() if other is None]
        assert len(idle) == machines % 2
        assert all(other is None or (other != own and pairs[other] == own) for own, other in pairs.items())
        found = {frozenset(pair) for pair in pairs.items() if None not in pair}
        assert not met & found
        met |= found
    # Whoever is slow, all others also meet somebody else.
    if machines > 2:
        for slow in range(machines):
            assert all(any(own in pair for pair in met if slow not in pair) for own in range(machines) if own != slow)
