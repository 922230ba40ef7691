"""gc at every moment of a workflow, and a workflow at every moment of gc: what is done stays done, whole."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.storage import Storage, open_storage
from pipeline import failures
from pipeline.collection import collect_root
from pipeline.config import Workflow
from pipeline.driver import create, read_workflow
from pipeline.head import Head, LeaseLost, read_head
from pipeline.kinds import KINDS
from pipeline.record import listed, read_record, recorded_output
from pipeline.removal import delete
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.status import StatusReader
from pipeline.usage import stage_folders
from stages.context import Context, Inputs, Result
from tests.unit.pipeline.interposed import interposed
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import CALLS, Source, Upper, run_source

LEASE = 0.3
Before = Callable[[Storage], Workflow]


class Outside(Source):
    """It reads something from outside, which somebody may change, or another machine see otherwise."""

    kind: ClassVar[str] = "outside"
    there: ClassVar[str] = "before"

    def external_digest(self) -> str | None:
        return self.there

    @classmethod
    def function(cls) -> Any:
        return run_outside


def run_outside(config: Outside, inputs: Inputs, context: Context) -> Result:
    return run_source(config, inputs, context)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (Source, Upper, Outside):
        monkeypatch.setitem(KINDS, config.kind, config)
    monkeypatch.setattr("pipeline.removal.LEASE_SECONDS", 2 * LEASE)
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(Outside, "there", "before")
    CALLS.clear()


def flow(first: Source | None = None, **upper: object) -> Workflow:
    return Workflow(name="toy", stages={"first": first or Source(), "second": Upper(text="first", **upper)})


def drive(storage: Storage, name: str) -> str:
    """Drivers, one after the other as under a supervisor, where a slow machine lets one lose its short lease."""
    for _ in range(5):
        runner = Runner(
            storage, name, read_workflow(storage, name), owner=f"{name}/test", ray=False, tracker=Silent(),
            lease_seconds=LEASE, on_lost=lambda why: None,
        )  # fmt: skip
        with contextlib.suppress(LeaseLost):
            return runner.run()
    raise AssertionError("five drivers have lost their leases")


def run(storage: Storage, workflow: Workflow, name: str) -> None:
    create(storage, workflow, name)
    assert drive(storage, name) == "done"


def forget(storage: Storage, workflow_id: str) -> None:
    """As if somebody had removed its folder by hand: its stages are named by nobody any more."""
    for key in [*storage.list(f"workflows/{workflow_id}/"), *storage.list(f"index/states/{workflow_id}.")]:
        storage.delete(key)


def folder_of(storage: Storage, name: str, stage: str) -> str:
    reader = StatusReader(storage, name, [])
    reader.update()
    return str(reader.status.stages[stage].folder)


def check_whole(storage: Storage, *workflows: str) -> None:
    """That the workflows are done, and all that HEADs reach is there with the bytes that its manifest promises."""
    assert {name: listed(storage).get(name) for name in workflows} == dict.fromkeys(workflows, "done")
    for name in workflows:
        for stage in ("first", "second"):
            found = read_head(storage, folder_of(storage, name, stage))
            assert found is not None, f"{stage} of {name} is done and has no HEAD"
            assert (found[0].state, found[0].record is not None) == ("done", True)
    for folder in stage_folders(storage):
        found = read_head(storage, folder)
        if found is None or found[0].record is None:
            continue
        output = recorded_output(storage, read_record(storage, found[0].record))
        assert output is not None, f"{folder} is done, and its output is gone"
        for entry in output.manifest["files"]:
            assert sha256(storage.read(output.key(entry["path"]))).hexdigest() == entry["sha256"]


# What there may be in a root before somebody comes


def empty(storage: Storage) -> Workflow:
    return flow()


def done_by_another(storage: Storage) -> Workflow:
    run(storage, flow(), "theirs")
    return flow(times=2)


def done_by_nobody_known(storage: Storage) -> Workflow:
    run(storage, flow(), "theirs")
    forget(storage, "theirs")
    return flow()


def removed_before(storage: Storage) -> Workflow:
    run(storage, flow(), "mine")
    delete("mine", Settings(root=storage.url, mlflow=""))
    return flow()


def killed_before(storage: Storage) -> Workflow:
    """A driver was killed after its first stage; an attempt of the second one and garbage are left."""
    run(storage, flow(), "mine")
    second = folder_of(storage, "mine", "second")
    head = Head.acquire(storage, second, "killed", ttl=LEASE)
    assert head is not None
    head.clear()
    head.new_attempt()
    storage.write(f"{second}/attempts/2/text", b"half")
    storage.write(f"{second}/checkpoints/00000005-a1/rank-0000.safetensors", b"garbage")
    forget(storage, "mine")
    return flow()


def failing(storage: Storage) -> Workflow:
    """Its second stage fails twice before it is done."""
    return flow(failures=2)


BEFORE: dict[Before, int] = {
    # Of how many moments one is tried; where leases have to run out each takes seconds.
    empty: 1, done_by_another: 2, done_by_nobody_known: 5, removed_before: 1, killed_before: 9, failing: 5,
}  # fmt: skip


def collect(storage: Storage) -> None:
    with contextlib.suppress(LeaseLost):
        collect_root(storage, older_than=0)


def each_moment(
    tmp_path: Path,
    before: Before,
    act: Callable[[Storage, Workflow], None],
    meanwhile: Callable[[Storage, Workflow], None],
    after: Callable[[Storage], None],
) -> int:
    """`act` on a new root again and again, with `meanwhile` before its first, second, … call; how many there were."""
    for moment in itertools.count(0, BEFORE.get(before, 1)):
        url = f"file://{tmp_path}/root-{moment}"
        workflow, met = before(open_storage(url)), list[str]()

        def hook(
            number: int, name: str, key: str, met: list[str] = met, moment: int = moment, url: str = url,
            workflow: Workflow = workflow,
        ) -> None:  # fmt: skip
            # A pause of a whole lease right here could not be told from a kill: S3 deletes without a condition.
            last = name == "delete" and key.endswith("/HEAD.json")
            if number == moment and not met and not last:
                met.append(f"{name} {key}")
                meanwhile(open_storage(url), workflow)

        storage, calls = interposed(open_storage(url), hook)
        act(storage, workflow)
        try:
            after(open_storage(url))
        except BaseException as error:
            error.add_note(f"at call {moment}: {met}")
            raise
        if calls() <= moment:
            assert moment > 0, "it calls nothing"
            return moment
    raise AssertionError


@pytest.mark.parametrize("before", BEFORE)
def test_gc_at_every_moment_of_a_workflow(tmp_path, before):
    def act(storage: Storage, workflow: Workflow) -> None:
        create(storage, workflow, "mine")
        assert drive(storage, "mine") == "done"

    moments = each_moment(
        tmp_path, before, act, lambda storage, _: collect(storage), lambda storage: check_whole(storage, "mine")
    )
    assert moments > 20


@pytest.mark.parametrize("before", BEFORE)
def test_a_workflow_at_every_moment_of_gc(tmp_path, before):
    drivers: list[threading.Thread] = []

    def meanwhile(storage: Storage, workflow: Workflow) -> None:
        drivers.append(threading.Thread(target=run, args=(storage, workflow, "mine")))
        drivers[-1].start()
        # To its end, but where it waits for a lease of the collection.
        drivers[-1].join(3 * LEASE)

    def after(storage: Storage) -> None:
        if drivers:
            drivers.pop().join(480)
            check_whole(storage, "mine")

    assert each_moment(tmp_path, before, lambda storage, _: collect(storage), meanwhile, after) > 1


def test_gc_at_every_moment_of_a_workflow_whose_outside_looks_otherwise_to_it(tmp_path, monkeypatch):
    """What the driver finds done, gc takes for nobody's, until an event of the driver names it."""

    def before(storage: Storage) -> Workflow:
        run(storage, flow(Outside()), "theirs")
        forget(storage, "theirs")
        return flow(Outside())

    def act(storage: Storage, workflow: Workflow) -> None:
        create(storage, workflow, "mine")
        assert drive(storage, "mine") == "done"

    def meanwhile(storage: Storage, workflow: Workflow) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Outside, "there", "after")
            collect(storage)

    each_moment(tmp_path, before, act, meanwhile, lambda storage: check_whole(storage, "mine"))


def test_what_a_workflow_has_begun_with_stays_until_it_ends_although_it_was_made_anew_since(tmp_path, monkeypatch):
    """Its own record, which speaks of that output, is not there yet."""
    storage = open_storage(f"file://{tmp_path}/root")
    run(storage, flow(), "theirs")
    first = folder_of(storage, "theirs", "first")
    real = Upper.function()

    def meanwhile(config: Upper, inputs: Inputs, context: Context) -> Result:
        # Somebody wants the first stage in another place, say; then gc comes.
        head = Head.acquire(storage, first, "another", ttl=30)
        assert head is not None
        head.begin({})
        attempt = head.new_attempt().attempt
        storage.write(f"{first}/attempts/{attempt}/text", b"hello")
        again = storage.read(f"{first}/record-1.json").replace(b"/attempts/1", b"/attempts/2")
        storage.write(f"{first}/attempts/{attempt}/MANIFEST.json", storage.read(f"{first}/attempts/1/MANIFEST.json"))
        storage.write(f"{first}/record-{attempt}.json", again)
        head.commit_record(f"{first}/record-{attempt}.json")
        collect(storage)
        return real(config, inputs, context)

    monkeypatch.setattr(Upper, "function", classmethod(lambda cls: meanwhile))
    run(storage, flow(times=2, retries=0), "mine")
    check_whole(storage, "theirs", "mine")
    # Now it is the record that speaks of it.
    collect(storage)
    assert storage.read(f"{first}/attempts/1/text") == b"hello"


def test_a_collection_that_was_killed_is_finished_by_the_next_one(tmp_path, monkeypatch):
    """Also where it held the lease of a stage that a workflow names."""
    # Neither this one nor the next one is to lose its leases on a slow machine.
    monkeypatch.setattr("pipeline.removal.LEASE_SECONDS", 60.0)
    storage = open_storage(f"file://{tmp_path}/root")
    run(storage, flow(), "mine")
    second = folder_of(storage, "mine", "second")
    garbage = [f"{second}/attempts/7/{name}" for name in ("1", "2", "3")]
    for key in garbage:
        storage.write(key, b"garbage")

    def killed(number: int, name: str, key: str) -> None:
        if name == "delete" and key == garbage[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_root(interposed(storage, killed)[0], older_than=0)
    assert [storage.stat(key) is None for key in garbage] == [True, False, False]
    document, tag = read_head(storage, second) or (None, "")
    assert document is not None
    assert document.state == "running"
    # It was alive a minute ago, and its lease is one that has run out by then.
    long_ago = {"ttl_seconds": LEASE, "renewed_ms": document.renewed_ms - 60_000}
    storage.compare_and_swap(f"{second}/HEAD.json", document.model_copy(update=long_ago).body(), tag)
    collect(storage)
    assert not any(storage.stat(key) for key in garbage)
    check_whole(storage, "mine")


@pytest.mark.parametrize("before", [done_by_another, empty])
def test_delete_at_every_moment_of_a_workflow_that_uses_the_same(tmp_path, before):
    def prepare(storage: Storage) -> Workflow:
        workflow = before(storage)
        if "theirs" not in listed(storage):
            run(storage, workflow, "theirs")
        return workflow

    def act(storage: Storage, workflow: Workflow) -> None:
        create(storage, workflow, "mine")
        assert drive(storage, "mine") == "done"

    def meanwhile(storage: Storage, workflow: Workflow) -> None:
        with contextlib.suppress(LeaseLost):
            delete("theirs", Settings(root=storage.url, mlflow=""))

    each_moment(tmp_path, prepare, act, meanwhile, lambda storage: check_whole(storage, "mine"))
