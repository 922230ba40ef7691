"""Stages of one's own, and folders that would be in the way."""

import os
import subprocess
import sys
import textwrap

import pytest

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline import api
from pipeline.cli import check_shadows
from pipeline.config import Workflow, parse_workflow
from pipeline.driver import create
from pipeline.kinds import own_code
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.verification_job import verify_on_cluster
from tests.unit.pipeline.test_config import DIGITS
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source, Upper

OWN = """
from typing import ClassVar

from stages.config import StageConfig
from stages.context import Context, Inputs, Result


class CountConfig(StageConfig):
    kind: ClassVar[str] = "count"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "count"
    upto: int = 3

    @classmethod
    def function(cls):
        return run


def run(config: CountConfig, inputs: Inputs, context: Context) -> Result:
    file = context.write("count.txt", "".join(f"{n}\\n" for n in range(config.upto)).encode())
    return Result(output=context.commit("count", [file], {}), metrics={"lines": float(config.upto)})
"""
WORKFLOW = "name: mine\nstages:\n  count: {kind: 'my_count_stage:CountConfig', upto: 5}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that has one's own module and stands in the way of nothing."""
    (tmp_path / "my_count_stage.py").write_text(textwrap.dedent(OWN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_count_stage", None)


def test_an_importable_config_is_a_stage(folder):
    workflow = parse_workflow(WORKFLOW, "mine.yaml")
    assert workflow.stages["count"].upto == 5
    assert parse_workflow(workflow.to_yaml(), "copy") == workflow
    assert own_code(workflow.stages.values()) == [folder / "my_count_stage.py"]
    assert own_code(parse_workflow(DIGITS, "mine.yaml").stages.values()) == []


def test_its_code_is_in_the_record(folder):
    def recorded(root: str) -> str:
        """As by a process of its own, which imports the module as it is now."""
        sys.modules.pop("my_count_stage", None)
        workflow = parse_workflow(WORKFLOW, "mine.yaml")
        storage = open_storage(f"file://{folder}/{root}")
        runner = Runner(storage, "mine", workflow, owner="test", ray=False, tracker=Silent())
        assert runner.run() == "done"
        return runner.finished["count"].record.builds["own_code"]

    first = recorded("one")
    assert recorded("two") == first
    module = folder / "my_count_stage.py"
    module.write_text(module.read_text() + "\n# Changed.\n")
    assert recorded("three") != first


def test_it_runs_from_the_command_line(folder):
    (folder / "mine.yaml").write_text(WORKFLOW)
    (folder / "run.py").write_text("from pipeline.cli import main\nmain()\n")
    places = ["--root", f"file://{folder}/root", "--mlflow", f"file://{folder}/ml"]
    command = [sys.executable, "run.py", "run", "mine.yaml", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("root/stages/count/*/attempts/1/count.txt")
    assert found.read_text().split() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"]])
def test_a_class_that_no_other_process_can_import_is_told_before_anything_is_stored(folder, how):
    submit = """
from pathlib import Path

from pipeline.api import submit
from pipeline.config import Workflow
from pipeline.settings import Settings
from cluster.errors import UserError

import pipeline.api

pipeline.api.check_versions = pipeline.api.check_reachable = lambda settings: None
settings = Settings(root=f"file://{Path.cwd()}/root", mlflow="", jobs="x")
try:
    submit(Workflow(name="mine", stages={"count": CountConfig()}), settings)
except UserError as error:
    print(error)
"""
    (folder / "script.py").write_text(textwrap.dedent(OWN) + submit)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, *how], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == (
        "stage kind 'count': its class CountConfig is in __main__, which no other process can import: "
        "put it into a module of its own, and import it from there"
    )
    assert not list((folder / "root").rglob("workflow.yaml"))


def test_a_verification_on_a_cluster_is_sent_it_too(folder, monkeypatch):
    sent: dict[str, object] = {}
    monkeypatch.setattr(api, "check_reachable", lambda settings: None)
    monkeypatch.setattr(jobs, "submit", lambda address, command, **given: sent.update(given))
    monkeypatch.setattr(jobs, "status", lambda address, job: "SUCCEEDED")
    monkeypatch.setattr(jobs, "logs", lambda address, job: "")
    settings = Settings(root=f"file://{folder}/root", mlflow="", jobs="http://head:8265")
    workflow_id = create(settings.storage(), parse_workflow(WORKFLOW, "mine.yaml"))
    with pytest.raises(UserError, match="has verified nothing"):
        verify_on_cluster(settings, workflow_id, "count", workers=1)
    assert sent["code"] == [folder / "my_count_stage.py"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("my_count_stage:Missing", "which cannot be imported: AttributeError"),
        ("no_such_module:Config", "which cannot be imported: ModuleNotFoundError"),
        ("my_count_stage:run", "which is no config of a stage: derive it from stages.config.StageConfig"),
        ("stages.ingest.config:IngestConfig", "whose kind is 'ingest': expected a name of its own"),
        ("counter", "got 'counter', expected one of ingest"),
    ],
)
def test_a_kind_that_is_none_is_refused(folder, kind, expected):
    with pytest.raises(UserError) as error:
        parse_workflow(WORKFLOW.replace("my_count_stage:CountConfig", kind), "mine.yaml")
    assert "mine.yaml:3: stages.count.kind: " in str(error.value)
    assert expected in str(error.value)


def test_a_folder_that_would_be_imported_in_place_of_ours_is_refused(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "stages.py").touch()
    with pytest.raises(UserError, match=r"stages.py would be imported in place of patchline's own package 'stages'"):
        check_shadows(tmp_path)
    (tmp_path / "stages.py").unlink()
    # A folder of that name alone is no package that Python would prefer.
    check_shadows(tmp_path)
    (tmp_path / "pipeline" / "__init__.py").touch()
    with pytest.raises(UserError, match=r"pipeline/__init__.py would be imported"):
        check_shadows(tmp_path)


def test_workflows_made_in_python_are_stored_by_where_their_stages_are_imported_from():
    workflow = Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first")})
    assert parse_workflow(workflow.to_yaml(), "copy") == workflow
