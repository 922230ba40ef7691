"""Stages of one's own where their module cannot be imported: looked at, supervised and collected, and not run."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline import api, supervise
from pipeline.again import dependents, resume_all, retry
from pipeline.cli import app
from pipeline.collection import collect_root
from pipeline.config import parse_workflow
from pipeline.driver import create, drive, read_workflow
from pipeline.driver_numbers import take_number
from pipeline.head import Head
from pipeline.opaque import OpaqueConfig
from pipeline.plan import plan
from pipeline.record import EventLog, mark
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.supervise import Supervisor
from pipeline.supervise_note import read_note
from pipeline.usage import planned_by
from pipeline.verification import verify
from tests.unit.pipeline.job_server import JobServer
from tests.unit.pipeline.test_own_stage import OWN
from tests.unit.pipeline.test_runner import Silent

MODULE = "a_count_stage"
TWICE = """

class TwiceConfig(CountConfig):
    kind: ClassVar[str] = "twice"
    numbers: str = reference("count", "what to read", alias="from")
    several: list[str] = reference("count", "more to read", default=[])
    label: str = ""
    sizes: dict[str, list[float]] = {"a": [0.5, 1e-9]}
"""
WORKFLOW = f"""
name: mine
stages:
  count: {{kind: '{MODULE}:CountConfig', upto: 5, retries: 1}}
  twice: {{kind: '{MODULE}:TwiceConfig', from: count, several: [count], upto: 2}}
"""
MISSING = rf"stages.count.kind: got '{MODULE}:CountConfig', which cannot be imported: .*No module named '{MODULE}'.* \("
MISSING += r"looked for from .* on .*\): go to the folder that its module is in, or install it"


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[Callable[[], None]]:
    """The module can be imported until this is called."""
    folder = tmp_path / "code"
    folder.mkdir()
    head = "from stages.config import reference\n"
    (folder / f"{MODULE}.py").write_text(head + textwrap.dedent(OWN) + TWICE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])

    def leave() -> None:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)

    yield leave
    sys.modules.pop(MODULE, None)


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer()
    with server.running():
        yield server


@pytest.fixture
def settings(server: JobServer, tmp_path: Path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow="", jobs=server.url, local=True, alone=True)


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return settings.storage()


@pytest.fixture
def done(module, storage) -> str:
    """A workflow that is done, and whose module is gone; its id."""
    workflow = parse_workflow(WORKFLOW, "mine.yaml")
    name = create(storage, workflow, "done")
    runner = Runner(storage, name, workflow, owner="test", ray=False, tracker=Silent())
    assert runner.run() == "done"
    module()
    return name


def command(storage: Storage, *words: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, [*words, "--root", storage.url])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_stored_workflow_is_read_and_written_out_unchanged(storage, done):
    workflow = read_workflow(storage, done)
    assert [type(stage) for stage in workflow.stages.values()] == [OpaqueConfig, OpaqueConfig]
    assert workflow.to_yaml() == storage.read(f"workflows/{done}/workflow.yaml").decode()
    assert workflow.order() == ["count", "twice"]
    assert workflow.stages["count"].retries == 1
    assert dependents(workflow, "count") == ["twice"]


def test_a_users_own_file_is_refused_as_ever(module):
    module()
    with pytest.raises(UserError, match=rf"mine.yaml:4: stages.count.kind: .*No module named '{MODULE}'"):
        parse_workflow(WORKFLOW, "mine.yaml")


def test_a_class_that_no_longer_takes_what_is_stored_can_be_looked_at_too(module, storage):
    text = WORKFLOW.replace("upto: 5", "upto: many")
    with pytest.raises(UserError, match=r"mine.yaml:4: stages.count.upto: got 'many'"):
        parse_workflow(text, "mine.yaml")
    workflow = parse_workflow(text, "stored", stored=True)
    assert [type(stage).__name__ for stage in workflow.stages.values()] == ["OpaqueConfig", "TwiceConfig"]
    assert workflow.order() == ["count", "twice"]
    with pytest.raises(UserError, match=r"count.kind: its class no longer takes .*: stages.count.upto: got 'many'"):
        workflow.check_imported()


def test_a_field_that_merely_has_a_stages_name_makes_no_circle(module, storage):
    module()
    text = f"name: mine\nstages:\n  a: {{kind: '{MODULE}:A', label: b}}\n  b: {{kind: '{MODULE}:B', from: a}}\n"
    assert sorted(parse_workflow(text, "stored", stored=True).order()) == ["a", "b"]


def test_whoever_only_looks_needs_no_module(storage, done):
    assert "done" in json.loads(command(storage, "list", "--json"))
    status = json.loads(command(storage, "status", "done", "--json"))
    assert {name: stage["outcome"] for name, stage in status["stages"].items()} == {"count": "done", "twice": "done"}
    output = json.loads(command(storage, "get-output", "count", "--workflow", "done", "--json"))
    assert output["kind"] == "count"
    command(storage, "audit", "done")
    command(storage, "checkpoints", "done")


def test_it_can_be_deleted(storage, done):
    command(storage, "delete", "done")
    assert [key for key in storage.list("") if not key.endswith("/HEAD.json")] == []


def test_what_a_workflow_that_has_not_ended_may_use_stays(storage, module):
    workflow = parse_workflow(WORKFLOW, "mine.yaml")
    name = create(storage, workflow, "first")
    Runner(storage, name, workflow, owner="test", ray=False, tracker=Silent()).run()
    create(storage, workflow, "second")
    module()
    named = planned_by(storage, "second")
    assert named.has("stages/count/0123")
    assert not named.has("stages/ingest/0123")
    kept = set(storage.list("stages/"))
    command(storage, "delete", "first")
    collect_root(storage, older_than=0.0)
    assert set(storage.list("stages/")) == kept


def test_nothing_of_it_is_planned_sent_or_run(settings, storage, server, done):
    workflow = read_workflow(storage, done)
    refused: list[Callable[[], Any]] = [
        lambda: plan(storage, workflow),
        lambda: create(storage, workflow),
        lambda: api.resume(done, settings),
        lambda: api.submit_driver(storage, done, settings),
        lambda: drive(storage, done, mlflow="", ray=False),
        lambda: retry(done, "twice", settings),
        lambda: verify(storage, done, workflow, "count"),
    ]
    for call in refused:
        with pytest.raises(UserError, match=MISSING):
            call()
    assert api.newest_driver(storage, done) is None
    assert server.submitted == []
    create(storage, parse_workflow("name: x\nstages:\n  ingest: {source: {kind: digits}, name: d}\n", "x"), "other")
    for name in (done, "other"):
        mark(storage, name, "stopped", 9)
    resumed, other = sorted(resume_all(settings, states=("stopped",)), key=lambda item: item.id)
    assert (resumed.submitted, resumed.problem.partition(":")[0]) == (False, "stages.count.kind")
    assert other.submitted


def lost(storage: Storage, text: str, name: str) -> str:
    """A workflow whose driver has begun, and is gone."""
    create(storage, parse_workflow(text, "mine.yaml"), name)
    number = take_number(storage, name)
    head = Head.acquire(storage, f"workflows/{name}", "lost", ttl=0.1)
    assert head is not None
    mark(storage, name, "running", head.epoch)
    EventLog(storage, name).append("workflow_started", owner="lost", driver=number)
    return name


def test_a_supervisor_says_so_once_and_goes_on_with_the_others(monkeypatch, settings, storage, server, module):
    monkeypatch.setattr(supervise, "BACKOFF_SECONDS", 0.01)
    own = lost(storage, WORKFLOW, "a-own")
    shipped = lost(storage, "name: theirs\nstages:\n  ingest: {source: {kind: digits}, name: d}\n", "b-shipped")
    module()
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    deadline = time.monotonic() + 120
    while not server.submitted and time.monotonic() < deadline:
        supervisor.round()
        time.sleep(0.05)
    for _ in range(3):
        supervisor.round()
    assert server.submitted == [f"{shipped}-d1"]
    (told,) = [line for line in lines if line.startswith(own)]
    assert told.startswith(
        f"{own}: left alone: stages.count.kind: got '{MODULE}:CountConfig', which cannot be imported"
    )
    assert not [line for line in lines if line.startswith("waiting for")]
    # Whoever has the module finds the loss as it was.
    assert read_note(storage, own) is None
    assert api.newest_driver(storage, own) == 0
