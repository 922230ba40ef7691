"""What differs between this machine and the cluster is said before anything starts there."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import jobs
from cluster.errors import UserError
from pipeline import api, driver
from pipeline.config import Workflow, parse_workflow
from pipeline.driver_numbers import take_number
from pipeline.record import builds, listed, mark
from pipeline.settings import Settings
from pipeline.status import StatusReader
from pipeline.versions import check_pins, check_versions
from tests.unit.pipeline.job_server import RAY, JobServer
from tests.unit.pipeline.toys import Source

TEXT = "name: toy\nstages: {ingest: {source: {kind: digits}}}\n"
FLOW = Workflow(name="toy", stages={"first": Source()})


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer()
    server.python = platform.python_version()
    with server.running():
        yield server


@pytest.fixture
def settings(server: JobServer, tmp_path: Path) -> Settings:
    return Settings(root=f"file://{tmp_path}/root", mlflow="http://mlflow:5000", jobs=server.url)


def told(settings: Settings) -> list[str]:
    lines: list[str] = []
    check_versions(settings, lines.append)
    return lines


def test_of_the_same_versions_nothing_is_said(settings):
    assert told(settings) == []


def test_a_difference_that_works_is_told_with_both_versions(server, settings):
    server.python, server.ray = "3.12.4", f"{RAY}.post1"
    here = platform.python_version()
    assert told(settings) == [
        f"the cluster at {server.url} has Python 3.12.4, this machine {here}: the cluster's counts",
        f"the cluster at {server.url} has Ray {server.ray}, this machine {RAY}: the cluster's counts",
    ]


@pytest.mark.parametrize(
    ("name", "version", "needed"), [("python", "3.9.1", "Python >=3.11"), ("ray", "2.40.0", "Ray <2.61,>=2.60")]
)
def test_what_cannot_work_is_refused_before_anything_is_stored(server, settings, name, version, needed):
    setattr(server, name, version)
    words = f"the cluster at {server.url} has {name.capitalize()} {version}, and this patchline needs {needed}: give"
    with pytest.raises(UserError, match=words):
        api.submit(FLOW, settings)
    assert server.submitted == []
    assert list(settings.storage().list("")) == []
    storage = settings.storage()
    mark(storage, "toy-1", "failed")
    storage.write("workflows/toy-1/workflow.yaml", TEXT.encode())
    with pytest.raises(UserError, match=words):
        api.resume("toy-1", settings)
    assert (server.submitted, listed(storage)) == ([], {"toy-1": "failed"})


def test_the_local_stack_runs_on_this_very_installation(server, settings):
    server.python = "3.9.1"
    assert told(replace(settings, local=True)) == []


def test_a_cluster_that_does_not_say_its_python_is_told_what_is_needed(server, settings, monkeypatch):
    monkeypatch.setattr(jobs, "versions", lambda address: jobs.Versions(ray=RAY, python=None))
    assert told(settings) == [
        f"the cluster at {server.url} does not say its version of Python; this patchline needs >=3.11"
    ]


def test_a_token_that_is_missing_and_one_that_is_wrong_are_told_apart(server, settings, monkeypatch, tmp_path):
    server.token = "the right one"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(UserError, match=f"the Ray cluster at {server.url} refused us, without a token: set RAY_AUTH_M"):
        told(settings)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the wrong one")
    with pytest.raises(UserError, match=f"the Ray cluster at {server.url} refused our token: set RAY_AUTH_MODE=token"):
        told(settings)
    (tmp_path / "token").write_text("the right one\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert told(settings) == []


def test_another_kind_of_server_is_no_cluster(settings):
    with pytest.raises(UserError, match="no Ray job server answers at ray://head:10001: expected an address such as"):
        told(replace(settings, jobs="ray://head:10001"))


def test_pinned_builds_are_compared_and_all_differences_told_at_once():
    check_pins({})
    check_pins({name: builds()[name] for name in ("python", "torch", "numpy")})
    check_pins({"ray": RAY})
    with pytest.raises(UserError) as refused:
        check_pins({"torch": "1.0", "numpy": builds()["numpy"], "moon": "2.0"})
    assert str(refused.value) == (
        f"pin: this machine has torch {builds()['torch']} (pinned: 1.0), moon not installed (pinned: 2.0): "
        "install what is pinned, or change `pin`"
    )


def test_a_workflow_that_pins_other_builds_does_not_run(tmp_path):
    settings = Settings(root=f"file://{tmp_path}/root", mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    pinned = parse_workflow(f"{TEXT}pin: {{torch: '1.0'}}", "toy.yaml")
    with pytest.raises(UserError, match="pin: this machine has torch"):
        api.run(pinned, settings)


def test_a_driver_that_meets_a_mistake_before_it_begins_has_failed(settings, monkeypatch):
    """Here: no cluster to connect to. Nobody starts another driver for it."""
    storage = settings.storage()
    workflow_id = driver.create(storage, FLOW)
    take_number(storage, workflow_id)
    mark(storage, workflow_id, "submitted")
    places = ["--root", settings.root, "--mlflow", settings.mlflow, "--number", "0", workflow_id]
    monkeypatch.setattr(sys, "argv", ["driver", *places])
    with pytest.raises(SystemExit):
        driver.main()
    assert listed(storage) == {workflow_id: "failed"}
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    assert reader.status.state == "failed"
    assert "RAY_ADDRESS is not set" in reader.status.message
