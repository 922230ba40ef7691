"""Many small objects at once."""

import threading

import pytest

from cluster.storage import open_storage
from cluster.storage.many import AT_ONCE, at_once, delete_all


def test_answers_come_in_the_order_of_the_items_though_they_are_asked_together():
    met = threading.Barrier(AT_ONCE, timeout=120)

    def act(number: int) -> int:
        met.wait()
        return number**2

    assert at_once(act, range(2 * AT_ONCE)) == [number**2 for number in range(2 * AT_ONCE)]


def test_a_failure_is_raised_and_no_other_begins():
    begun: list[int] = []

    def act(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise OSError("away")
        if number >= 2:
            # The caller learns of it meanwhile, be it slow.
            threading.Event().wait(0.05)

    with pytest.raises(OSError, match="away"):
        at_once(act, range(1000), threads=1)
    assert len(begun) < 1000


def test_all_keys_go_and_missing_ones_are_no_error(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    keys = [f"a/{number}" for number in range(100)]
    for key in keys:
        storage.write(key, b"x")
    storage.write("b", b"x")
    delete_all(storage, [*keys, "a/gone"])
    assert list(storage.list("")) == ["b"]
