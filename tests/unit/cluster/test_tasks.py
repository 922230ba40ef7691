import os

import pytest

from cluster.connect import connect, disconnect
from cluster.errors import UserError
from cluster.tasks import map_tasks


def test_results_are_in_the_order_of_the_items():
    assert list(map_tasks(lambda item: (item * 2, os.getpid()), iter([3, 1, 2]), label="double")) == [
        (6, os.getpid()),
        (2, os.getpid()),
        (4, os.getpid()),
    ]
    assert list(map_tasks(abs, [], label="nothing")) == []


def test_the_first_mistake_ends_it_as_it_is():
    done: list[int] = []
    mistake = UserError("image 2: got a PDF, expected a JPEG")

    def work(item: int) -> None:
        if item == 2:
            raise mistake
        done.append(item)

    with pytest.raises(UserError) as caught:
        list(map_tasks(work, [1, 2, 3], label="work"))
    assert caught.value is mistake
    assert done == [1]


@pytest.mark.parametrize("address", [None, ""])
def test_without_an_address_no_cluster_is_started_by_accident(address: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    import ray

    with pytest.raises(UserError, match="RAY_ADDRESS is not set; submit the workflow to a cluster, or run it here"):
        connect()
    with pytest.raises(UserError, match="RAY_ADDRESS is not set"):
        list(map_tasks(abs, [1], label="work", ray=True))
    assert not ray.is_initialized()


def test_ending_a_connection_that_was_never_made_does_nothing():
    import ray

    disconnect()
    disconnect()
    assert not ray.is_initialized()
