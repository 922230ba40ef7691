"""A storage that is away for a while."""

from __future__ import annotations

import pickle

import pytest

from cluster.errors import UserError
from cluster.storage import Conflict, NotFound, enduring, open_storage
from cluster.storage.enduring import Enduring


class Away:
    """A folder that answers nothing for a number of calls, and does what it was asked although it says nothing."""

    def __init__(self, url: str, *, calls: int, error: type[Exception] = ConnectionError, acts: bool = False) -> None:
        self.url, self.calls, self.error, self.acts = url, calls, error, acts
        self.inner = open_storage(url)

    def __getattr__(self, name: str):
        inner = getattr(self.inner, name)

        def call(*arguments):
            if self.calls:
                self.calls -= 1
                if self.acts:
                    inner(*arguments)
                raise self.error("nobody there")
            return inner(*arguments)

        return call


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(enduring, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def url(tmp_path):
    open_storage(f"file://{tmp_path}").write("folder/one", b"1")
    return f"file://{tmp_path}"


CALLS = {
    "read": ("folder/one",), "read_tagged": ("folder/one",), "read_range": ("folder/one", 0, 1),
    "stat": ("folder/one",), "write": ("new", b"2"), "write_if_absent": ("new", b"2"), "list": ("",), "sizes": ("",),
    "list_folders": ("",), "delete": ("folder/one",),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_call_waits_for_the_end_of_an_outage(url, name):
    told: list[str] = []
    found = getattr(Enduring(Away(url, calls=3), told.append), name)(*CALLS[name])
    if name == "delete":
        assert open_storage(url).stat("folder/one") is None
    elif name.startswith("write"):
        assert open_storage(url).stat("new").tag == found
    else:
        listed = list if name in ("list", "sizes") else lambda value: value
        assert listed(found) == listed(getattr(open_storage(url), name)(*CALLS[name]))
    # After how many seconds is a matter of the machine.
    assert [line.split(":")[0].partition(" after")[0] for line in told] == [
        "storage does not answer, and is waited for",
        "storage is back",
    ]


def test_files_come_and_go(url, tmp_path):
    storage = Enduring(Away(url, calls=2), lambda line: None)
    (tmp_path / "file").write_bytes(b"here")
    assert storage.upload("there", tmp_path / "file").bytes == 4
    storage = Enduring(Away(url, calls=2), lambda line: None)
    storage.download("there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"here"
    with storage.writer("written") as writer:
        writer.write(b"more")
    assert storage.read("written") == b"more"


def test_a_write_that_had_its_effect_and_lost_its_answer_counts_once(url):
    storage = Enduring(Away(url, calls=1, acts=True), lambda line: None)
    tag = storage.write_if_absent("head", b"first")
    storage = Enduring(Away(url, calls=1, acts=True), lambda line: None)
    storage.compare_and_swap("head", b"second", tag)
    assert storage.read("head") == b"second"


def test_what_the_storage_says_is_no_outage(url):
    storage = Enduring(Away(url, calls=0), pytest.fail)
    with pytest.raises(NotFound):
        storage.read("nothing")
    with pytest.raises(Conflict):
        storage.write_if_absent("folder/one", b"2")
    with pytest.raises(UserError):
        Enduring(Away(url, calls=1, error=UserError), pytest.fail).write("new", b"2")


def test_an_outage_that_does_not_end_is_an_error(url):
    with pytest.raises(ConnectionError, match="nobody there"):
        Enduring(Away(url, calls=10**9), lambda line: None, patience=0.05).read("folder/one")


def test_it_goes_to_other_processes(url):
    copy = pickle.loads(pickle.dumps(Enduring(open_storage(url), print)))
    assert copy.url == url
    assert copy.read("folder/one") == b"1"
