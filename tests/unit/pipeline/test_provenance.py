"""Where a workflow comes from, and what is kept of it for people."""

from __future__ import annotations

import subprocess
from importlib import metadata

import pytest

from cluster.storage import Storage, open_storage
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.head import Head
from pipeline.plan import plan
from pipeline.provenance import environment, git, plan_text, read_origin
from tests.unit.pipeline.toys import Source


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}/root")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "nobody@example.org")
    (folder / "flow.yaml").write_text("name: a\n")
    for words in (("init", "-b", "work"), ("add", "."), ("commit", "-m", "first")):
        subprocess.run(["git", *words], check=True, capture_output=True)
    return folder


def test_commit_branch_and_changes_are_git_s(repository):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git() == {"commit": commit, "branch": "work", "changed": False}
    (repository / "flow.yaml").write_text("name: b\n")
    assert git() == {"commit": commit, "branch": "work", "changed": True}


def test_outside_of_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git() is None
    monkeypatch.setenv("PATH", "")
    assert git() is None


def test_the_first_submission_is_where_a_workflow_comes_from(storage, repository, monkeypatch):
    monkeypatch.setenv("LOGNAME", "first")
    workflow = Workflow(name="toy", stages={"source": Source()})
    create(storage, workflow, "toy-1")
    monkeypatch.setenv("LOGNAME", "second")
    create(storage, workflow, "toy-1")
    origin = read_origin(storage, "toy-1")
    assert origin["user"] == "first"
    assert origin["git"]["branch"] == "work"
    assert read_origin(storage, "other") == {}


def test_the_environment_has_all_packages():
    found = environment()
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["builds"]["torch"] == metadata.version("torch")


def test_a_driver_s_own_lease_keeps_its_plan_from_nothing(storage):
    workflow = Workflow(name="toy", stages={"source": Source()})
    (stage,) = plan(storage, workflow)
    assert Head.acquire(storage, stage.folder, "toy-1/here", ttl=3600) is not None
    assert "toy-1/here holds it" in plan_text(storage, workflow, "another")
    own = plan_text(storage, workflow, "toy-1/here")
    assert "holds it" not in own
    assert "has been done yet" in own
