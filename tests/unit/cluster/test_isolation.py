"""When a machine is cut off, by real sockets: whoever closes theirs is away."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster.isolation import Isolation
from tests.ports import next_port


class Machine:
    def __init__(self) -> None:
        self._door: socket.socket | None = socket.create_server(("127.0.0.1", next_port()))
        self.address = self._door.getsockname()

    def leave(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def come_back(self) -> None:
        self._door = socket.create_server(self.address)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine, Machine]]:
    found = (Machine(), Machine(), Machine())
    yield found
    for machine in found:
        machine.leave()


def test_whoever_reaches_nobody_is_cut_off_and_for_how_long_is_counted(machines):
    head, *others = machines
    isolation = Isolation()

    def look(now: float) -> float:
        return isolation.look(head.address, lambda: [other.address for other in others], now)

    assert look(0.0) == 0
    for machine in machines:
        machine.leave()
    assert [look(10.0), look(14.0), look(45.0)] == [0, 4, 35]
    others[1].come_back()
    assert look(50.0) == 0
    others[1].leave()
    assert [look(60.0), look(70.0)] == [0, 10]
    head.come_back()
    assert look(80.0) == 0


def test_a_head_that_is_away_alone_is_no_isolation(machines):
    head, *others = machines
    isolation = Isolation()

    def look(now: float) -> float:
        return isolation.look(head.address, lambda: [other.address for other in others], now)

    look(0.0)
    head.leave()
    others[0].leave()
    assert [look(now) for now in (10.0, 100.0, 1000.0)] == [0, 0, 0]


def test_with_nobody_but_the_head_nobody_can_tell(machines):
    head, *_ = machines
    isolation = Isolation()
    assert isolation.look(head.address, list, 0.0) == 0
    head.leave()
    assert [isolation.look(head.address, list, now) for now in (10.0, 1000.0)] == [0, 0]
