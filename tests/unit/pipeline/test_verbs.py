"""The verbs through the real runner and real storage: submit, resume-all, cancel --now, retry."""

from __future__ import annotations

import platform
import shlex
import threading
from typing import ClassVar

import pytest
import yaml
from typer.testing import CliRunner

from cluster import jobs
from cluster.deploy.rendering import job as render_job
from cluster.errors import UserError
from cluster.storage import Storage
from pipeline import api, driver, failures
from pipeline.again import dependents, resume_all, retry
from pipeline.cancelling import cancel_now
from pipeline.cli import app
from pipeline.config import Workflow, load_workflow
from pipeline.driver import create, read_workflow
from pipeline.driver_numbers import is_supervised
from pipeline.head import Head, LeaseLost, commit_checkpoint, read_head
from pipeline.kinds import KINDS
from pipeline.record import EventLog, listed, mark, read_record
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.status import StatusReader, match_id, states
from stages.context import Context, Inputs, Result
from tests.unit.cluster.deploy.shapes import made_from
from tests.unit.pipeline.job_server import RAY
from tests.unit.pipeline.toys import CALLS, Source, Upper, run_upper

ADDRESS = "http://head:8265"


class Silent:
    """A tracker that shows nothing."""

    def __getattr__(self, name):
        return lambda *_: None


class Held(Upper):
    """A stage that goes on when the test lets it."""

    kind: ClassVar[str] = "held"

    @classmethod
    def function(cls):
        return run_held


GATE, ENTERED = threading.Event(), threading.Event()


def run_held(config: Held, inputs: Inputs, context: Context) -> Result:
    ENTERED.set()
    assert GATE.wait(300)
    return run_upper(config, inputs, context)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for config in (Source, Upper, Held):
        monkeypatch.setitem(KINDS, config.kind, config)
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", 0.01)
    CALLS.clear()
    GATE.clear()
    ENTERED.clear()


@pytest.fixture
def cluster(monkeypatch) -> dict[str, str]:
    """A job server in name only: the states of its jobs by their ids, which a test can change."""
    known: dict[str, str] = {}
    monkeypatch.setattr(jobs, "versions", lambda address: jobs.Versions(ray=RAY, python=platform.python_version()))
    monkeypatch.setattr(
        jobs, "submit", lambda address, command, *, submission_id, **_: known.update({submission_id: "PENDING"})
    )
    monkeypatch.setattr(jobs, "status", lambda address, job: known.get(job, "GONE"))
    monkeypatch.setattr(jobs, "logs", lambda address, job: "its log")
    monkeypatch.setattr(jobs, "stop", lambda address, job: known.update({job: "STOPPED"}))
    return known


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow="http://mlflow:5000", jobs=ADDRESS)


@pytest.fixture
def storage(settings) -> Storage:
    return settings.storage()


def flow(**upper) -> Workflow:
    return Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first", **upper)})


def drive(storage: Storage, workflow_id: str, *, ttl: float = 5.0, lost=None) -> str:
    """What the Ray job would do."""
    return Runner(
        storage, workflow_id, read_workflow(storage, workflow_id), owner=f"{workflow_id}/test/{threading.get_ident()}",
        ray=False, tracker=Silent(), number=api.newest_driver(storage, workflow_id), lease_seconds=ttl, on_lost=lost,
    ).run()  # fmt: skip


def status(storage: Storage, workflow_id: str):
    reader = StatusReader(storage, workflow_id, ["first", "second"])
    reader.update()
    return reader.status


# submit


def test_the_same_id_twice_is_one_workflow(cluster, settings, storage):
    first = api.submit_once(flow(), settings, workflow_id="nightly")
    assert (first.id, first.state, first.driver) == ("nightly", "new", 0)
    again = api.submit_once(flow(), settings, workflow_id="nightly")
    assert (again.id, again.state, again.driver) == ("nightly", "submitted", None)
    assert drive(storage, "nightly") == "done"
    done = api.submit_once(flow(), settings, workflow_id="nightly")
    assert (done.state, done.driver) == ("done", None)
    assert list(cluster) == ["nightly-d0"]
    assert states(storage) == {"nightly": "done"}


def test_while_it_runs_no_second_driver_is_sent(cluster, settings, storage):
    api.submit(flow(), settings, workflow_id="nightly")
    assert Head.acquire(storage, "workflows/nightly", "driver", ttl=30) is not None
    EventLog(storage, "nightly").append("workflow_started", owner="driver", driver=0)
    assert api.submit_once(flow(), settings, workflow_id="nightly").state == "running"
    assert list(cluster) == ["nightly-d0"]


def test_one_that_failed_goes_on_when_it_is_submitted_again(cluster, settings, storage):
    api.submit(flow(failures=2, retries=1), settings, workflow_id="nightly")
    assert drive(storage, "nightly") == "failed"
    again = api.submit_once(flow(failures=2, retries=1), settings, workflow_id="nightly")
    assert (again.state, again.driver) == ("failed", 1)
    assert drive(storage, "nightly") == "done"
    assert CALLS == ["source", "upper", "upper", "upper"]


def test_the_id_of_another_workflow_is_refused_with_the_fields_that_differ(cluster, settings, storage):
    api.submit(flow(), settings, workflow_id="nightly")
    before = sorted(storage.list(""))
    with pytest.raises(UserError, match=r"--id nightly is another workflow's.*stages\.second\.times: 1 → 2"):
        api.submit(flow(times=2), settings, workflow_id="nightly")
    assert sorted(storage.list("")) == before
    assert list(cluster) == ["nightly-d0"]
    for bad in ("", "a/b", "../x", "-x", "x y"):
        with pytest.raises(UserError, match="expected a letter or digit"):
            api.submit(flow(), settings, workflow_id=bad)


@pytest.mark.parametrize("times", [1, 2])
def test_ids_made_in_the_same_second_are_never_shared(storage, monkeypatch, times):
    """Not even by workflows that say the same: each of them is run."""
    drawn = iter(["toy-20260131-101500-1a2b", "toy-20260131-101500-1a2b", "toy-20260131-101500-3c4d"])
    monkeypatch.setattr(driver, "generate", lambda name: next(drawn))
    found = [create(storage, flow()), create(storage, flow(times=times))]
    assert found == ["toy-20260131-101500-1a2b", "toy-20260131-101500-3c4d"]
    assert [read_workflow(storage, name) for name in found] == [flow(), flow(times=times)]


def test_submitted_twice_in_the_same_moment_it_has_one_driver(cluster, settings, storage, monkeypatch):
    """The second one comes in just before the first one takes its number."""
    take, nested = api.take_next, []

    def taking(*arguments, **more):
        if not nested:
            nested.append(None)
            nested.append(api.submit_once(flow(), settings, workflow_id="nightly"))
        return take(*arguments, **more)

    monkeypatch.setattr(api, "take_next", taking)
    first = api.submit_once(flow(), settings, workflow_id="nightly")
    assert (first.state, first.driver, nested[1].driver) == ("submitted", None, 0)
    assert list(cluster) == ["nightly-d0"]


def test_what_a_rayjob_submits_is_left_to_it(cluster, settings, storage, tmp_path):
    """Its entry point, as it is rendered, but for the file's folder and the following."""
    (text,) = render_job(made_from({}), "digits", load_workflow("digits").to_yaml()).values()
    file, job = yaml.safe_load_all(text)
    (tmp_path / "workflow.yaml").write_text(file["data"]["workflow.yaml"])
    words = shlex.split(job["spec"]["entrypoint"].replace("/etc/patchline/workflow/", f"{tmp_path}/"))
    places = ["--root", settings.root, "--mlflow", settings.mlflow, "--address", ADDRESS]
    answer = CliRunner().invoke(app, [*words[1:], "--no-follow", *places])
    assert answer.exit_code == 0, answer.output
    assert list(cluster) == ["small-digits-d0"]
    assert not is_supervised(storage, "small-digits", 0)
    api.submit(flow(), settings, workflow_id="nightly")
    assert is_supervised(storage, "nightly", 0)


def test_the_newest_workflow_is_known_also_among_ids_without_a_moment(cluster, settings, storage):
    old = api.submit(flow(), settings)
    api.submit(flow(), settings, workflow_id="a-nightly")
    assert list(api.all_states(settings)) == [old, "a-nightly"]
    assert match_id(storage, list(listed(storage)), None) == "a-nightly"


# list


def test_a_list_is_chosen_from_by_name_and_age(cluster, settings, storage):
    new = api.submit(flow(), settings)
    api.submit(flow(), settings, workflow_id="nightly")
    for name in ("toy-20200101-000000-aaaa", "digits-20200101-000000-bbbb"):
        mark(storage, name, "failed")
    assert set(api.all_states(settings, name="toy")) == {"toy-20200101-000000-aaaa", new}
    assert set(api.all_states(settings, name="night*")) == {"nightly"}
    assert set(api.all_states(settings, seconds=3600)) == {new, "nightly"}
    assert api.all_states(settings, name="digits", seconds=3600) == {}


# resume-all


@pytest.fixture
def many(cluster, settings, storage) -> dict[str, str]:
    """A workflow in each state, by its state."""
    for state in ("done", "failed", "stopped", "running", "silent"):
        create(storage, flow(), state)
        mark(storage, state, {"silent": "running"}.get(state, state))
    for state in ("running", "silent"):
        assert Head.acquire(storage, f"workflows/{state}", "driver", ttl=30) is not None
    document, tag = read_head(storage, "workflows/silent")
    old = document.model_copy(update={"renewed_ms": document.renewed_ms - 600_000})
    storage.compare_and_swap("workflows/silent/HEAD.json", old.body(), tag)
    return cluster


def test_what_failed_or_is_silent_is_resumed_and_nothing_else(many, settings, storage):
    before = sorted(storage.list(""))
    dry = resume_all(settings, dry_run=True)
    assert [(item.id, item.state, item.submitted) for item in dry] == [
        ("failed", "failed", False), ("silent", "silent", False),
    ]  # fmt: skip
    assert sorted(storage.list("")) == before
    assert [(item.id, item.submitted) for item in resume_all(settings)] == [("failed", True), ("silent", True)]
    assert sorted(many) == ["failed-d0", "silent-d0"]
    # They are submitted now, and are not found again.
    assert resume_all(settings) == []
    assert [item.id for item in resume_all(settings, states=["stopped"])] == ["stopped"]
    with pytest.raises(UserError, match="--state done: expected one of failed"):
        resume_all(settings, states=["done"])


def test_one_that_cannot_be_resumed_keeps_none_of_the_others_back(many, settings, storage):
    storage.delete("workflows/failed/workflow.yaml")
    failed, silent = resume_all(settings)
    assert "no workflow 'failed'" in failed.problem
    assert (failed.submitted, silent.submitted) == (False, True)


# cancel --now


def test_cancel_now_ends_the_work_at_once_and_resume_goes_on_from_the_last_checkpoint(cluster, settings, storage):
    workflow = Workflow(name="toy", stages={"first": Source(), "second": Held(text="first")})
    api.submit(workflow, settings, workflow_id="nightly")
    cluster["nightly-d0"] = "RUNNING"
    errors, lost = [], []

    def work() -> None:
        try:
            drive(storage, "nightly", ttl=30, lost=lost.append)
        except LeaseLost as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert ENTERED.wait(120)
    folder = status(storage, "nightly").stages["second"].folder
    epoch = read_head(storage, folder)[0].epoch
    prefix = f"{folder}/checkpoints/00000007-a1"
    storage.write(f"{prefix}/MANIFEST.json", b"x")
    commit_checkpoint(storage, folder, epoch, 1, prefix, 7, lambda updates: updates)

    found = cancel_now("nightly", settings)
    assert (found.jobs, found.problem) == (("nightly-d0",), "")
    assert cluster["nightly-d0"] == "STOPPED"
    assert (api.state_of(storage, "nightly", settings), listed(storage)["nightly"]) == ("stopped", "stopped")
    assert status(storage, "nightly").stages["second"].outcome == "stopped"

    # What the old driver and its workers still do becomes visible to nobody.
    with pytest.raises(LeaseLost):
        commit_checkpoint(storage, folder, epoch, 1, f"{folder}/checkpoints/00000008-a1", 8, lambda updates: updates)
    GATE.set()
    thread.join(300)
    assert errors
    assert api.state_of(storage, "nightly", settings) == "stopped"
    assert listed(storage)["nightly"] == "stopped"
    assert read_head(storage, folder)[0].record is None

    with pytest.raises(UserError, match=r"nightly does not run \(stopped\)"):
        cancel_now("nightly", settings)
    api.resume("nightly", settings)
    assert drive(storage, "nightly") == "done"
    assert status(storage, "nightly").stages["second"].began == {1: 0, 2: 7}


def test_cancel_now_reaches_a_job_that_waits_and_works_without_an_answer_of_the_cluster(
    cluster, settings, storage, monkeypatch
):
    api.submit(flow(), settings, workflow_id="nightly")
    assert cancel_now("nightly", settings).jobs == ("nightly-d0",)
    assert api.state_of(storage, "nightly", settings) == "stopped"
    api.resume("nightly", settings)
    assert Head.acquire(storage, "workflows/nightly", "nightly/driver", ttl=30) is not None

    def away(*_: object) -> str:
        raise UserError("no Ray job server answers")

    monkeypatch.setattr(jobs, "status", away)
    found = cancel_now("nightly", settings)
    assert found.problem == "no Ray job server answers"
    assert read_head(storage, "workflows/nightly")[0].state == "stopped"
    assert states(storage) == {"nightly": "stopped"}


def test_a_stage_that_another_workflow_runs_is_not_ended_with_this_one(cluster, settings, storage):
    api.submit(flow(), settings, workflow_id="mine")
    assert Head.acquire(storage, "workflows/mine", "mine/driver", ttl=30) is not None
    shared = "stages/upper/0123"
    EventLog(storage, "mine").append("stage_started", "second", folder=shared)
    assert Head.acquire(storage, shared, "theirs/driver", ttl=30) is not None
    before = storage.read(f"{shared}/HEAD.json")
    cancel_now("mine", settings)
    assert storage.read(f"{shared}/HEAD.json") == before


# retry


def output(storage: Storage, workflow_id: str, stage: str = "second") -> tuple[str, str]:
    """Key prefix and digest of what a workflow's stage has made."""
    head = read_head(storage, status(storage, workflow_id).stages[stage].folder)
    record = read_record(storage, head[0].record)
    return record.output_prefix, record.output_digest


def test_retry_makes_a_stage_and_what_depends_on_it_anew_for_this_workflow_alone(cluster, settings, storage):
    for name in ("mine", "theirs"):
        api.submit(flow(), settings, workflow_id=name)
        assert drive(storage, name) == "done"
    assert CALLS == ["source", "upper"]
    shared = {key: storage.read(key) for key in storage.list("stages/")}
    before = output(storage, "mine")

    found = retry("mine", "first", settings)
    assert (found.stages, found.state) == (("first", "second"), "submitted")
    assert {name: stage.outcome for name, stage in status(storage, "mine").stages.items()} == {
        "first": "pending", "second": "pending",
    }  # fmt: skip
    assert drive(storage, "mine") == "done"
    assert CALLS == ["source", "upper"] * 2
    # The same recipe gives the same bytes, in a place of their own.
    assert output(storage, "mine")[0] != before[0]
    assert output(storage, "mine")[1] == before[1]
    assert {key: storage.read(key) for key in shared} == shared

    # Whoever comes now reuses what all share; this workflow what it has made.
    CALLS.clear()
    api.submit(flow(), settings, workflow_id="later")
    assert drive(storage, "later") == "done"
    assert output(storage, "later") == before
    api.resume("mine", settings)
    assert drive(storage, "mine") == "done"
    assert CALLS == []

    retry("mine", "second", settings)
    assert drive(storage, "mine") == "done"
    assert CALLS == ["upper"]


def test_a_failed_stage_begins_again_from_nothing(cluster, settings, storage):
    api.submit(flow(failures=1, retries=0), settings, workflow_id="mine")
    assert drive(storage, "mine") == "failed"
    folder = status(storage, "mine").stages["second"].folder
    retry("mine", "second", settings)
    assert drive(storage, "mine") == "failed"
    again = status(storage, "mine").stages["second"]
    assert (again.attempt, again.folder != folder) == (1, True)


def test_a_retry_that_cannot_be_is_refused_and_changes_nothing(cluster, settings, storage):
    api.submit(flow(mistake="lr=-1"), settings, workflow_id="mine")
    with pytest.raises(UserError, match="mine is submitted: `patchline cancel mine` first"):
        retry("mine", "first", settings)
    assert drive(storage, "mine") == "failed"
    before = sorted(storage.list(""))
    with pytest.raises(UserError, match="--from third: expected one of the stages: first, second"):
        retry("mine", "third", settings)
    with pytest.raises(UserError, match="no Ray cluster"):
        retry("mine", "first", Settings(root=settings.root, mlflow=""))
    assert sorted(storage.list("")) == before


def test_a_stage_that_never_ran_is_for_resume(cluster, settings, storage):
    workflow = Workflow(
        name="toy",
        stages={"first": Source(), "second": Upper(text="first", mistake="no"), "third": Upper(text="second")},
    )
    api.submit(workflow, settings, workflow_id="mine")
    assert drive(storage, "mine") == "failed"
    with pytest.raises(UserError, match="--from third: it has not run yet: `patchline resume mine`"):
        retry("mine", "third", settings)
    assert dependents(workflow, "first") == ["second", "third"]
