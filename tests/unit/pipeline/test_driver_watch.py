"""What status, logs and list say of a driver that died before it could say anything itself."""

from __future__ import annotations

import json
import sys
import time

import pytest

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline import api, cli
from pipeline.commands.following import Life
from pipeline.config import load_workflow
from pipeline.driver import create
from pipeline.driver_numbers import take_number
from pipeline.head import Head
from pipeline.record import EventLog, listed, mark
from pipeline.settings import Settings
from pipeline.stage_logs import workflow_logs
from pipeline.status import StatusReader

ADDRESS = "http://head:8265"
LOG = "\n".join([*(f"line {number}" for number in range(40)), "ModuleNotFoundError: No module named 'deepspeed'"])


@pytest.fixture
def cluster(monkeypatch):
    """A job server in name only: the states of its jobs, which a test can change."""
    states: dict[str, str] = {}
    monkeypatch.setattr(jobs, "status", lambda address, job: states.get(job, "GONE"))
    monkeypatch.setattr(jobs, "logs", lambda address, job: LOG)
    return states


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATCHLINE_ROOT", f"file://{tmp_path}/root")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ADDRESS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("COLUMNS", "160")
    return Settings(root=f"file://{tmp_path}/root", mlflow="http://mlflow:5000", jobs=ADDRESS)


@pytest.fixture
def submitted(settings) -> str:
    """A workflow after `submit`, before a driver's first line; its id."""
    storage = settings.storage()
    workflow_id = create(storage, load_workflow("digits"))
    take_number(storage, workflow_id)
    EventLog(storage, workflow_id).append("driver_submitted", number=0)
    mark(storage, workflow_id, "submitted")
    return workflow_id


def told(settings: Settings, workflow_id: str) -> tuple[str, str]:
    """State and message after asking the cluster."""
    reader = StatusReader(settings.storage(), workflow_id, [])
    reader.update()
    api.ask_cluster(reader, settings.storage(), settings)
    return reader.status.state, reader.status.message


def shown(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["patchline", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def test_a_driver_that_died_at_once_is_shown_with_the_end_of_its_log(cluster, settings, submitted, monkeypatch, capsys):
    cluster[f"{submitted}-d0"] = "FAILED"
    assert told(settings, submitted) == (
        "failed",
        "its driver has ended (FAILED); the end of its log:\n" + "\n".join(LOG.splitlines()[-15:]),
    )
    status = shown(monkeypatch, capsys, "status")
    assert status.splitlines()[0].strip() == f"{submitted}: failed"
    assert "its driver has ended (FAILED); the end of its log:\n" in status
    assert "ModuleNotFoundError: No module named 'deepspeed'" in status
    assert "line 20" not in status
    assert json.loads(shown(monkeypatch, capsys, "status", "--json"))["state"] == "failed"
    assert "ModuleNotFoundError" in shown(monkeypatch, capsys, "logs")
    # It does not wait for an end that never comes.
    assert "ModuleNotFoundError" in shown(monkeypatch, capsys, "logs", "--follow")
    assert shown(monkeypatch, capsys, "list").split() == ["failed", submitted]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_driver_that_is_still_to_begin_is_submitted(cluster, settings, submitted, state):
    cluster[f"{submitted}-d0"] = state
    assert told(settings, submitted) == ("submitted", "")
    assert api.all_states(settings) == {submitted: "submitted"}


def test_a_cluster_that_does_not_know_the_driver_need_not_be_the_one_that_has_it(cluster, settings, submitted):
    assert told(settings, submitted) == ("submitted", "")
    own = Settings(root=settings.root, mlflow="", jobs=ADDRESS, local=True, alone=True)
    state, message = told(own, submitted)
    assert state == "failed"
    assert message == f"its driver has ended: the Ray cluster at {ADDRESS} knows it no more"
    assert api.all_states(own) == {submitted: "failed"}


def test_what_storage_tells_itself_is_not_asked_of_the_cluster(cluster, settings, submitted, monkeypatch):
    monkeypatch.setattr(jobs, "status", lambda *_: pytest.fail("asked"))
    events = EventLog(settings.storage(), submitted)
    events.append("workflow_started", owner="driver", driver=0)
    assert told(settings, submitted) == ("running", "")
    events.append("workflow_ended", state="stopped", driver=0)
    assert told(settings, submitted) == ("stopped", "")


def test_an_end_that_was_told_meanwhile_stands(cluster, settings, submitted, monkeypatch):
    def finish(address: str, job: str) -> str:
        EventLog(settings.storage(), submitted).append("workflow_ended", state="done", driver=0)
        return "SUCCEEDED"

    monkeypatch.setattr(jobs, "status", finish)
    assert told(settings, submitted) == ("done", "")


def test_a_cluster_that_does_not_answer_leaves_the_state_as_it_is(settings, submitted, monkeypatch):
    def silent(*_: object) -> str:
        raise UserError("no Ray job server answers")

    monkeypatch.setattr(jobs, "status", silent)
    assert told(settings, submitted) == ("submitted", "")


def test_a_resumed_workflow_is_submitted_again(cluster, settings, submitted):
    events = EventLog(settings.storage(), submitted)
    events.append("workflow_ended", state="failed", driver=0)
    take_number(settings.storage(), submitted)
    events.append("driver_submitted", number=1)
    cluster[f"{submitted}-d1"] = "RUNNING"
    assert told(settings, submitted) == ("submitted", "")
    cluster[f"{submitted}-d1"] = "STOPPED"
    assert told(settings, submitted)[0] == "failed"


def test_a_job_that_the_cluster_refuses_has_failed_with_the_reason(settings, submitted, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise UserError("the Ray cluster at http://head:8265 did not take the job: no room")

    monkeypatch.setattr(jobs, "submit", refuse)
    with pytest.raises(UserError, match="no room"):
        api.submit_driver(settings.storage(), submitted, settings)
    state, message = told(settings, submitted)
    assert (state, listed(settings.storage())[submitted]) == ("failed", "failed")
    assert "no room" in message
    text = "".join(workflow_logs(open_storage(settings.root), submitted, None, follow=True))
    assert "no room" in text


def test_the_silence_of_the_driver_before_is_not_that_of_one_that_is_still_to_begin(cluster, settings, submitted):
    """It waits for the end of the lease, however long its start took."""
    storage = settings.storage()
    events = EventLog(storage, submitted)
    before = Head.acquire(storage, f"workflows/{submitted}", "before", ttl=0.2)
    assert before is not None
    events.append("workflow_started", owner="before", driver=0)
    take_number(storage, submitted)
    life = Life(api.DriverWatch(storage, submitted, settings, here=True), storage, submitted)

    def ended_after_a_while() -> str | None:
        life.ended()
        time.sleep(0.5)
        return life.ended()

    for state in ("PENDING", "RUNNING"):
        cluster[f"{submitted}-d1"] = state
        assert ended_after_a_while() is None
    now = Head.acquire(storage, f"workflows/{submitted}", "now", ttl=0.2)
    assert now is not None
    events.append("workflow_started", owner="now", driver=1)
    assert "silent" in str(ended_after_a_while()), "it has begun, and gives no sign of life"
    cluster[f"{submitted}-d1"] = "FAILED"
    assert "its driver has ended (FAILED)" in str(life.ended())
