"""What lost its lease and does not know it yet removes nothing of the next holder's, and tells nothing in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from pipeline.collection import collect_root
from pipeline.driver import _tell_failed, create, read_workflow
from pipeline.driver_numbers import take_number
from pipeline.head import Head, LeaseLost, commit_checkpoint, read_head, seize
from pipeline.record import listed, mark
from pipeline.removal import Leases, delete
from pipeline.runner import Runner
from pipeline.settings import Settings
from tests.unit.pipeline.interposed import interposed
from tests.unit.pipeline.test_collection_races import flow, folder_of, run, toys  # noqa: F401
from tests.unit.pipeline.test_runner import Silent

TTL = 600.0
"""No lease runs out by itself, however slow the machine is."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}/root")


def once(match: Callable[[str, str], bool], act: Callable[[str], None]) -> Callable[[int, str, str], None]:
    """For `interposed`: `act` on the key of the first call that matches by its name and key."""
    met: list[str] = []

    def before(number: int, name: str, key: str) -> None:
        if not met and match(name, key):
            met.append(key)
            act(key)

    return before


def taken_over(storage: Storage, folder: str) -> Head:
    """As after the lease has run out, which nobody has to wait for here."""
    seize(storage, folder, "another")
    head = Head.acquire(storage, folder, "another", ttl=TTL)
    assert head is not None
    return head


def committed_by_another(storage: Storage, folder: str) -> None:
    """The next driver takes the stage and commits the checkpoint of its first update."""
    head = taken_over(storage, folder)
    attempt = head.new_attempt().attempt
    prefix = f"{folder}/checkpoints/00000001-a{attempt}"
    for name in ("rank-0000.safetensors", "MANIFEST.json"):
        storage.write(f"{prefix}/{name}", b"theirs")
    commit_checkpoint(storage, folder, head.epoch, attempt, prefix, 1, list)


def checkpoints(storage: Storage, folder: str) -> list[str]:
    found = read_head(storage, folder)
    assert found is not None
    return [key for item in found[0].checkpoints for key in storage.list(f"{item.prefix}/")]


@pytest.mark.parametrize("listing", ["checkpoints", "attempts"])
def test_a_driver_that_lost_a_stage_removes_nothing_of_what_the_next_one_commits(storage, listing):
    """It was paused right before it lists what dead attempts have left."""
    met: list[str] = []

    def another(key: str) -> None:
        met.append(key.removesuffix(f"/{listing}/"))
        committed_by_another(storage, met[0])

    def listed(name: str, key: str) -> bool:
        return name == "list_folders" and key.endswith(f"/{listing}/")

    create(storage, flow(), "mine")
    paused, _ = interposed(storage, once(listed, another))
    runner = Runner(
        paused, "mine", read_workflow(storage, "mine"), owner="mine/test", ray=False, tracker=Silent(),
        lease_seconds=TTL, on_lost=lambda why: None,
    )  # fmt: skip
    with pytest.raises(LeaseLost):
        runner.run()
    assert [key.rpartition("/")[2] for key in checkpoints(storage, met[0])] == [
        "MANIFEST.json",
        "rank-0000.safetensors",
    ]
    # Nor does it begin with an attempt, which would come to nothing.
    assert list(storage.list(f"{met[0]}/attempts/")) == []


@pytest.fixture
def no_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection whose thread does not find its loss before it is asked itself."""
    monkeypatch.setattr("pipeline.removal.LEASE_SECONDS", TTL)


@pytest.mark.usefixtures("no_renewals")
def test_gc_that_lost_a_stage_removes_nothing_of_what_the_next_driver_commits(storage):
    """It was paused right before it lists, under its lease."""
    run(storage, flow(), "mine")
    folder = folder_of(storage, "mine", "second")
    storage.write(f"{folder}/checkpoints/00000001-a1/rank-0000.safetensors", b"garbage")

    def under_its_lease(name: str, key: str) -> bool:
        head = read_head(storage, folder)
        held = head is not None and head[0].state == "running"
        return held and name == "list_folders" and key == f"{folder}/checkpoints/"

    paused, _ = interposed(storage, once(under_its_lease, lambda key: committed_by_another(storage, folder)))
    with pytest.raises(LeaseLost):
        collect_root(paused, older_than=0)
    assert len(checkpoints(storage, folder)) == 2


def suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine was suspended for a whole lease: of its clocks, this one alone has gone on."""
    real = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + (TTL if clock == time.CLOCK_BOOTTIME else 0))


linux = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock of this system goes on")


@linux
@pytest.mark.usefixtures("no_renewals")
def test_leases_run_out_while_the_machine_is_suspended(storage, monkeypatch):
    head = Head.acquire(storage, "stages/toy/1", "delete", ttl=TTL)
    assert head is not None
    with Leases([head]) as leases:
        leases.check()
        suspended(monkeypatch)
        with pytest.raises(LeaseLost, match="could not be renewed in time"):
            leases.check()


@linux
@pytest.mark.usefixtures("no_renewals")
def test_a_deletion_whose_lease_ran_out_leaves_what_is_left_of_the_workflow(storage, monkeypatch):
    run(storage, flow(), "mine")
    # The stages stay: it is not at their leases that it stops.
    run(storage, flow(), "theirs")

    def first(name: str, key: str) -> bool:
        return name == "delete" and key == "workflows/mine/workflow.yaml"

    paused, _ = interposed(storage, once(first, lambda key: suspended(monkeypatch)))
    monkeypatch.setattr(Settings, "storage", lambda self: paused)
    with pytest.raises(LeaseLost):
        delete("mine", Settings(root=storage.url, mlflow=""))
    assert list(storage.list("workflows/mine/events/"))
    assert "mine" in listed(storage)


@pytest.mark.usefixtures("no_renewals")
def test_gc_that_lost_an_empty_folder_leaves_the_head_of_the_next_driver(storage, monkeypatch):
    """Before HEAD goes it waits for a renewal on its way, which may last for longer than the lease."""
    run(storage, flow(), "mine")
    folder = folder_of(storage, "mine", "second")
    delete("mine", Settings(root=storage.url, mlflow=""))
    real, heads = Leases.drop, list[Head]()

    def drop(leases: Leases, head: Head) -> None:
        if head.folder == folder:
            heads.append(taken_over(storage, folder))
        real(leases, head)

    monkeypatch.setattr(Leases, "drop", drop)
    with pytest.raises(LeaseLost):
        collect_root(storage, older_than=0)
    heads[0].renew()


def begun(storage: Storage, name: str, silent_for: float, ttl: float) -> None:
    """Driver 0 holds the workflow, and was last alive so many seconds ago by this machine's clock; 1 is submitted."""
    create(storage, flow(), name)
    take_number(storage, name)
    assert Head.acquire(storage, f"workflows/{name}", "driver 0", ttl=ttl) is not None
    mark(storage, name, "running")
    take_number(storage, name)
    document, tag = read_head(storage, f"workflows/{name}") or (None, "")
    assert document is not None
    old = document.model_copy(update={"renewed_ms": document.renewed_ms - int(1000 * silent_for)})
    storage.compare_and_swap(f"workflows/{name}/HEAD.json", old.body(), tag)


def test_a_mistake_ends_no_workflow_whose_driver_is_at_work_by_another_clock(storage):
    """The second driver's clock is ahead: to it the first one looks silent, at each of its renewals."""
    begun(storage, "mine", silent_for=60, ttl=2)

    def renewed(number: int, name: str, key: str) -> None:
        if name == "read_tagged":
            document, tag = read_head(storage, key.removesuffix("/HEAD.json")) or (None, "")
            assert document is not None
            again = document.model_copy(update={"nonce": str(number)})
            storage.compare_and_swap(key, again.body(), tag)

    _tell_failed(interposed(storage, renewed)[0], "mine", 1, "pin: this machine has torch 2.12.0")
    assert listed(storage) == {"mine": "running"}


def test_a_mistake_ends_a_workflow_whose_driver_is_gone(storage):
    begun(storage, "mine", silent_for=60, ttl=0.2)
    _tell_failed(storage, "mine", 1, "pin: this machine has torch 2.12.0")
    assert listed(storage) == {"mine": "failed"}
