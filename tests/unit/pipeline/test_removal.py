"""delete and gc: what is removed, and above all what is not."""

from __future__ import annotations

import contextlib
import platform
import threading
from typing import ClassVar

import pytest

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import api
from pipeline.collection import collect_root
from pipeline.config import Workflow
from pipeline.driver import create, read_workflow
from pipeline.garbage import unreached
from pipeline.head import Head, LeaseLost, read_head
from pipeline.ids import generate
from pipeline.kinds import KINDS
from pipeline.record import EventLog, listed, mark
from pipeline.removal import Leases, delete, remove_stages, unlist
from pipeline.retries import make_anew
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.status import StatusReader
from pipeline.usage import References
from stages.context import Context, Inputs, Result
from tests.unit.pipeline.job_server import RAY
from tests.unit.pipeline.toys import CALLS, Source, Upper, run_source


class Silent:
    """A tracker that shows nothing."""

    def __getattr__(self, name):
        return lambda *_: None


class Outside(Source):
    """It reads something that is not on this machine, but on that of its driver."""

    kind: ClassVar[str] = "outside"
    there: ClassVar[bool] = False

    def external_digest(self) -> str | None:
        if not self.there:
            raise UserError("/data: no such folder on this machine")
        return "digest"

    @classmethod
    def function(cls):
        return run_outside


def run_outside(config: Outside, inputs: Inputs, context: Context) -> Result:
    return run_source(config, inputs, context)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for config in (Source, Upper, Outside):
        monkeypatch.setitem(KINDS, config.kind, config)
    CALLS.clear()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow="")


@pytest.fixture
def storage(settings) -> Storage:
    return settings.storage()


def flow(**upper) -> Workflow:
    return Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first", **upper)})


def run(storage: Storage, workflow: Workflow, name: str) -> str:
    """Run a workflow to its end; returns its id."""
    create(storage, workflow, name)
    drive(storage, name)
    return name


def drive(storage: Storage, name: str) -> str:
    return Runner(
        storage, name, read_workflow(storage, name), owner=f"{name}/test", ray=False, tracker=Silent(), lease_seconds=5
    ).run()


def folders(storage: Storage, name: str) -> dict[str, str]:
    reader = StatusReader(storage, name, [])
    reader.update()
    return {stage.name: str(stage.folder) for stage in reader.status.stages.values()}


def everything(storage: Storage) -> dict[str, bytes]:
    return {key: storage.read(key) for key in storage.list("")}


def left(storage: Storage) -> list[str]:
    return [key for key in storage.list("") if not key.endswith("/HEAD.json")]


def test_a_dry_run_tells_what_goes_and_changes_nothing(settings, storage):
    run(storage, flow(), "mine")
    before = everything(storage)
    dry = delete("mine", settings, dry_run=True)
    assert everything(storage) == before
    wet = delete("mine", settings)
    assert [item.what for item in dry] == [item.what for item in wet]
    assert [item.objects for item in dry] == [item.objects for item in wet]
    assert all(item.objects and item.bytes for item in wet)
    assert left(storage) == []
    assert listed(storage) == {}


def test_what_another_workflow_uses_stays_whole(settings, storage):
    run(storage, flow(), "mine")
    run(storage, flow(times=2), "theirs")
    shared = folders(storage, "mine")["first"]
    kept = {key: body for key, body in everything(storage).items() if key.startswith((shared, *theirs(storage)))}
    found = {item.what: item.kept for item in delete("mine", settings)}
    assert found[shared] == "another workflow uses it"
    assert {key: storage.read(key) for key in kept} == kept
    assert not storage.list_folders(folders_of_second(found))
    CALLS.clear()
    run(storage, flow(times=2), "later")
    assert CALLS == []


def theirs(storage: Storage) -> list[str]:
    return [*folders(storage, "theirs").values(), "workflows/theirs"]


def folders_of_second(found: dict[str, str]) -> str:
    (second,) = [what for what, kept in found.items() if what.startswith("stages/upper/") and not kept]
    return f"{second}/"


def test_a_workflow_that_has_only_just_been_stored_uses_what_its_file_names(settings, storage):
    run(storage, flow(), "mine")
    stages = set(folders(storage, "mine").values())
    create(storage, flow(), "coming")
    found = {item.what: item.kept for item in delete("mine", settings)}
    assert {what for what, kept in found.items() if kept == "another workflow uses it"} == stages
    CALLS.clear()
    assert drive(storage, "coming") == "done"
    assert CALLS == []


def test_where_it_cannot_be_told_what_a_workflow_will_use_all_of_that_kind_stays(settings, storage, monkeypatch):
    monkeypatch.setattr(Outside, "there", True)
    workflow = Workflow(name="toy", stages={"first": Outside(), "second": Upper(text="first")})
    run(storage, workflow, "mine")
    create(storage, workflow, "coming")
    monkeypatch.setattr(Outside, "there", False)
    assert len([item for item in delete("mine", settings) if item.kept]) == 2
    monkeypatch.setattr(Outside, "there", True)
    CALLS.clear()
    assert drive(storage, "coming") == "done"
    assert CALLS == []


def test_a_workflow_that_comes_to_use_a_stage_meanwhile_keeps_it(storage):
    run(storage, flow(), "mine")
    named, asked = References(storage, without="mine"), []
    second = folders(storage, "mine")["second"]
    before = read_head(storage, second)[0]

    def ask():
        if asked:
            # The leases are held by now.
            create(storage, flow(), "coming")
        asked.append(None)
        return named.named()

    (found,) = remove_stages(storage, [second], ask)
    assert found.kept == "another workflow has come to use it"
    after = read_head(storage, second)[0]
    assert (after.state, after.record, after.epoch) == ("done", before.record, before.epoch + 1)
    CALLS.clear()
    assert drive(storage, "coming") == "done"
    assert CALLS == []


def test_what_runs_is_refused_and_a_stage_that_another_driver_runs_stays(settings, storage):
    run(storage, flow(), "mine")
    held = Head.acquire(storage, folders(storage, "mine")["second"], "theirs/driver", ttl=30)
    assert held is not None
    found = {item.what: item.kept for item in delete("mine", settings, dry_run=True)}
    assert found[held.folder] == "theirs/driver runs it"
    with Leases([held]):
        found = {item.what: item.kept for item in delete("mine", settings)}
    assert found[held.folder] == "another driver runs it"
    held.renew()

    create(storage, flow(), "other")
    EventLog(storage, "other").append("driver_submitted", number=0)
    mark(storage, "other", "submitted")
    before = everything(storage)
    with pytest.raises(UserError, match="other is submitted: `patchline cancel other` first"):
        delete("other", settings)
    EventLog(storage, "other").append("workflow_started", owner="driver", driver=0)
    assert Head.acquire(storage, "workflows/other", "driver", ttl=30) is not None
    before = everything(storage)
    with pytest.raises(UserError, match="other is running"):
        delete("other", settings)
    assert everything(storage) == before


def test_a_driver_from_before_a_deletion_can_make_nothing_visible_after_it(settings, storage):
    run(storage, flow(), "mine")
    second = folders(storage, "mine")["second"]
    epoch = read_head(storage, second)[0].epoch
    owner = read_head(storage, second)[0].owner
    zombies = [Head(storage, second, epoch, owner), Head(storage, "workflows/mine", 1, owner)]
    delete("mine", settings)
    run(storage, flow(), "mine")
    assert CALLS == ["source", "upper"] * 2
    for zombie in zombies:
        with pytest.raises(LeaseLost):
            zombie.renew()
    assert api.state_of(storage, "mine", settings) == "done"


def test_a_deleted_id_can_be_submitted_again(settings, storage, monkeypatch):
    from cluster import jobs

    sent: list[str] = []
    monkeypatch.setattr(jobs, "versions", lambda address: jobs.Versions(ray=RAY, python=platform.python_version()))
    monkeypatch.setattr(jobs, "status", lambda address, job: "GONE")
    monkeypatch.setattr(jobs, "submit", lambda address, command, *, submission_id, **_: sent.append(submission_id))
    on_ray = Settings(root=settings.root, mlflow="http://mlflow:5000", jobs="http://head:8265")
    for _ in range(2):
        found = api.submit_once(flow(), on_ray, workflow_id="nightly")
        assert found.state == "new"
        assert drive(storage, "nightly") == "done"
        assert api.submit_once(flow(), on_ray, workflow_id="nightly").state == "done"
        delete("nightly", on_ray)
    # The cluster may still know the first job.
    assert sent == ["nightly-d0", "nightly-d1"]


def test_a_deletion_that_was_killed_is_finished_by_the_next_one(settings, storage, monkeypatch):
    run(storage, flow(), "mine")
    real, survives = type(storage).delete, 0
    # A dead process renews no lease.
    monkeypatch.setattr("pipeline.removal.LEASE_SECONDS", 0.5)
    while "mine" in listed(storage):
        done: list[str] = []

        def killed(self, key, done=done, survives=survives):
            if len(done) >= survives:
                raise KeyboardInterrupt
            done.append(key)
            real(self, key)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt, LeaseLost):
            patch.setattr(type(storage), "delete", killed)
            delete("mine", settings)
        survives += 2
    assert survives > 4
    assert left(storage) == []
    assert run(storage, flow(), "mine") == "mine"
    assert api.state_of(storage, "mine", settings) == "done"


def test_stages_made_anew_go_with_their_workflow_and_the_shared_ones_stay_for_others(settings, storage):
    run(storage, flow(), "mine")
    run(storage, flow(), "theirs")
    make_anew(storage, "mine", ["second"])
    assert drive(storage, "mine") == "done"
    anew = folders(storage, "mine")["second"]
    assert anew != folders(storage, "theirs")["second"]
    found = {item.what: item.kept for item in delete("mine", settings)}
    assert found[anew] == ""
    CALLS.clear()
    run(storage, flow(), "later")
    assert CALLS == []


# gc


def forget(storage: Storage, workflow_id: str) -> None:
    """As after a deletion by hand."""
    for key in list(storage.list(f"workflows/{workflow_id}/")):
        storage.delete(key)
    unlist(storage, workflow_id)


def garbage(storage: Storage, folder: str) -> list[str]:
    """Lay garbage into a stage's folder."""
    keys = [
        f"{folder}/checkpoints/00000005-a1/MANIFEST.json",
        f"{folder}/checkpoints/00000005-a1/rank-0000.safetensors",
        f"{folder}/attempts/7/text",
        f"{folder}/record-7.json",
    ]
    for key in keys:
        storage.write(key, b"garbage")
    storage.write(f"{folder}/attempts/7/logs/rank-0000/000000.log", b"what tells of it")
    return keys


def test_garbage_goes_and_what_is_reached_stays(storage):
    run(storage, flow(), "mine")
    second = folders(storage, "mine")["second"]
    before = everything(storage)
    keys = garbage(storage, second)
    dry = collect_root(storage, older_than=0, dry_run=True)
    assert all(storage.stat(key) for key in keys)
    wet = collect_root(storage, older_than=0)
    assert [(item.what, item.objects, item.bytes) for item in wet] == [(second, 4, 28)]
    assert dry == wet
    assert not any(storage.stat(key) for key in keys)
    assert storage.stat(f"{second}/attempts/7/logs/rank-0000/000000.log")
    changed = {f"{second}/HEAD.json"}
    assert {key: body for key, body in everything(storage).items() if key in before and key not in changed} == {
        key: body for key, body in before.items() if key not in changed
    }
    assert collect_root(storage, older_than=0) == []
    CALLS.clear()
    run(storage, flow(), "later")
    assert CALLS == []


def test_stages_that_no_workflow_names_go_once_they_are_old(settings, storage):
    run(storage, flow(), "mine")
    run(storage, flow(times=2), "theirs")
    forget(storage, "theirs")
    assert collect_root(storage, older_than=3600) == []
    (found,) = collect_root(storage, older_than=0)
    assert found.what.startswith("stages/upper/")
    # What is left of it goes with a later call.
    (again,) = collect_root(storage, older_than=0)
    assert (again.what, again.objects) == (found.what, 1)
    assert collect_root(storage, older_than=0) == []
    assert set(storage.list_folders("stages/upper/")) == {folders(storage, "mine")["second"].rpartition("/")[2]}


def test_what_deleted_workflows_and_killed_verifications_leave_goes_too(settings, storage):
    run(storage, flow(), "mine")
    delete("mine", settings)
    storage.write("scratch/1000-abcd/0123/attempts/1/attempt.json", b"x")
    assert collect_root(storage, older_than=3600)[-1].what == "scratch/1000-abcd"
    assert len(collect_root(storage, older_than=0)) == 3
    assert everything(storage) == {}


def test_what_runs_is_left_alone(storage):
    run(storage, flow(), "mine")
    second = folders(storage, "mine")["second"]
    keys = garbage(storage, second)
    head = Head.acquire(storage, second, "driver", ttl=30)
    assert head is not None
    assert collect_root(storage, older_than=0) == []
    assert all(storage.stat(key) for key in keys)
    head.renew()


def test_the_inputs_that_records_in_use_speak_of_stay(storage):
    """A stage was made anew elsewhere: what others were made of may be an output that its HEAD no longer names."""
    run(storage, flow(), "mine")
    first = folders(storage, "mine")["first"]
    head = Head.acquire(storage, first, "driver", ttl=30)
    assert head is not None
    head.new_attempt()
    head.release("stopped")
    text = f"{first}/attempts/1/text"
    document, tag = read_head(storage, first)
    storage.compare_and_swap(f"{first}/HEAD.json", document.changed(record=None).body(), tag)
    collect_root(storage, older_than=0)
    assert storage.read(text) == b"hello"


def test_an_output_that_was_made_since_it_was_looked_up_what_is_in_use_stays(storage):
    run(storage, flow(), "mine")
    second = folders(storage, "mine")["second"]
    assert unreached(storage, second, lambda: read_head(storage, second)[0], set()) == []


def test_a_workflow_file_that_cannot_be_read_keeps_everything(storage):
    run(storage, flow(), "mine")
    storage.write("workflows/newer/workflow.yaml", b"format: 99\nname: newer\nstages: {}")
    before = everything(storage)
    with pytest.raises(UserError, match="format"):
        collect_root(storage, older_than=0)
    assert everything(storage) == before


def test_two_collections_at_once_do_no_harm(storage):
    for times in range(1, 5):
        run(storage, flow(times=times), f"flow-{times}")
    for times in (3, 4):
        forget(storage, f"flow-{times}")
    other = open_storage(storage.url)
    threads = [
        threading.Thread(target=collect_root, args=(place,), kwargs={"older_than": 0}) for place in (storage, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    collect_root(storage, older_than=0)
    CALLS.clear()
    for times in (1, 2):
        run(storage, flow(times=times), generate("again"))
    assert CALLS == []
    assert len(storage.list_folders("stages/upper/")) == 2
