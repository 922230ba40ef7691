"""What is said of a gang that failed, by the exceptions that Ray really raises."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.gang_failure import GangError, MachineLost, Ranks, explained
from tests.ports import next_port


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(str(tmp_path))


@pytest.fixture
def raylets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes Ray know machines of these ids, of which those that are `gone` do not answer on their port."""
    import ray

    doors: list[socket.socket] = []

    def make(ids: str, gone: str = "", dead: str = "") -> None:
        found = []
        for number, name in enumerate(ids):
            port = next_port()
            if name not in gone:
                doors.append(socket.create_server(("127.0.0.1", port)))
            found.append({"NodeID": name, "Alive": name not in dead, "NodeManagerPort": port})
            found[number]["NodeManagerAddress"] = "127.0.0.1"
        monkeypatch.setattr(ray, "nodes", lambda: found)

    yield make
    for door in doors:
        door.close()


def failed(**failures: Exception) -> Exception:
    """Ray Train's error, of ranks r0, r1 and so on."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("whatever", {int(rank[1:]): failure for rank, failure in failures.items()})


def raised(error: Exception) -> Exception:
    """As it arrives from a worker whose code raised it."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("it failed", error)


def death() -> Exception:
    from ray.exceptions import RayActorError

    return raised(RayActorError())


BROKEN = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.3]:4711")


def test_a_mistake_comes_before_whatever_followed_from_it(ranks):
    found = explained(failed(r0=death(), r1=raised(UserError("lr: got -1")), r2=raised(BROKEN)), ranks)
    assert isinstance(found, UserError)
    assert str(found) == "lr: got -1"


def test_all_ranks_whose_code_failed_are_told(ranks):
    found = explained(failed(r1=raised(ValueError("b")), r0=raised(KeyError("a"))), ranks)
    assert isinstance(found, GangError)
    assert (str(found), found.died) == ("rank 0: KeyError: 'a'; rank 1: ValueError: b", False)


def test_of_a_death_the_other_ranks_know_only_that_a_connection_broke(ranks):
    found = explained(failed(r0=raised(BROKEN), r2=death(), r1=raised(BROKEN)), ranks)
    assert isinstance(found, GangError)
    assert (str(found), found.died) == ("rank 2 died", True)


def test_memory_that_ran_out_is_told_from_another_death(ranks):
    from ray.exceptions import OutOfMemoryError

    found = explained(failed(r0=raised(OutOfMemoryError("too much")), r1=death()), ranks)
    assert str(found) == "rank 0 was ended because its machine ran out of memory; rank 1 died"


def test_a_broken_connection_alone_is_no_mistake_of_the_code(ranks):
    found = explained(failed(r0=raised(BROKEN)), ranks)
    assert isinstance(found, GangError)
    assert (str(found), found.died) == (f"rank 0: RuntimeError: {BROKEN}", True)


@pytest.mark.parametrize("how", ["gone", "dead"])
def test_a_machine_that_does_not_answer_is_named_with_its_ranks(ranks, raylets, how):
    ranks.note(["a", "b", "b", "c"])
    raylets("abcd", **{how: "bd"})
    found = explained(failed(r0=raised(BROKEN), r1=death(), r2=death()), ranks)
    assert isinstance(found, MachineLost)
    assert (str(found), found.died) == ("machine 127.0.0.1 is lost, and with it ranks 1, 2", True)


def test_machines_that_answer_are_not_suspected(ranks, raylets):
    ranks.note(["a", "b"])
    raylets("ab")
    assert str(explained(failed(r0=death()), ranks)) == "rank 0 died"


def test_what_is_no_workers_failure_is_told_by_its_last_line(ranks):
    found = explained(RuntimeError("several lines\nof which this one counts\n"), ranks)
    assert isinstance(found, GangError)
    assert (str(found), found.died) == ("of which this one counts", True)
