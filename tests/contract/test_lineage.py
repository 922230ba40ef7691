"""What a real MLflow shows of what stages read from each other, and from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from pipeline.config import parse_workflow
from pipeline.driver import create
from pipeline.mlflow_models import DIGEST, ELSEWHERE, Registry
from pipeline.mlflow_runs import Runs
from pipeline.runner import Runner
from pipeline.tracking import MlflowTracker
from stages.models.download import WEIGHTS
from tests.contract.trained import TEXT, Trained, wanted

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def trained(trained: Trained, tmp_path: Path) -> Trained:
    """In a root of its own: these tests leave workflows there."""
    return trained.apart(tmp_path / "apart")


def reused(trained: Trained, uri: str) -> tuple[Runs, str]:
    """Run the same stages again, all of which are reused; returns MLflow's runs and the workflow's id."""
    storage, workflow = trained.storage, parse_workflow(TEXT, "small.yaml")
    workflow_id = create(storage, workflow)
    with MlflowTracker(uri, storage, workflow_id, workflow) as tracker:
        runner = Runner(storage, workflow_id, workflow, owner="test", ray=False, tracker=tracker)
        assert runner.run(tracker.workflow_ended) == "done"
    runs = Runs(uri, workflow_id, lambda: True, storage.url)
    runs.connect()
    return runs, workflow_id


def run_of(runs: Runs, key: str) -> Run:
    return runs.client.get_run(str(runs.find(key)))


def models_read(run: Run) -> list[str]:
    return [model.model_id for model in run.inputs.model_inputs or ()]


def models_made(run: Run) -> list[str]:
    return [model.model_id for model in run.outputs.model_outputs or ()]


def test_a_run_says_which_data_and_which_model_its_stage_has_read(trained: Trained, tmp_path: Path):
    runs, _ = reused(trained, trained.database(tmp_path))
    made, finetune = run_of(runs, "pretrain"), run_of(runs, "finetune")
    data, model = trained.done["ingest"].output, trained.done["pretrain"].output
    assert {name: value for name, value in finetune.data.tags.items() if name.startswith("patchline.input.")} == {
        "patchline.input.data": f"{trained.storage.url}/{data.prefix}",
        "patchline.input.data.digest": data.digest,
        "patchline.input.model": f"{trained.storage.url}/{model.prefix}",
        "patchline.input.model.digest": model.digest,
    }
    (known,) = models_made(made)
    assert models_read(finetune) == models_read(run_of(runs, "fewshot")) == [known]
    assert models_read(made) == models_made(finetune) == []
    found = runs.client.get_logged_model(known)
    assert (found.name, found.source_run_id, str(found.status)) == ("small-pretrain", made.info.run_id, "READY")
    assert found.tags[ELSEWHERE] == f"{trained.storage.url}/{model.prefix}"
    assert found.tags[ELSEWHERE] in found.tags["mlflow.note.content"]
    assert runs.client.list_logged_model_artifacts(known) == []
    # What is reused has its parameters too.
    assert finetune.data.params["lr"] == "0.1"


def test_a_model_that_stages_have_read_is_registered_with_its_files(trained: Trained, tmp_path: Path):
    uri = trained.database(tmp_path)
    runs, _ = reused(trained, uri)
    (known,) = models_read(run_of(runs, "of_worse"))
    registered = trained.register(uri, wanted("worse"))
    assert registered.model_id == known
    found = runs.client.get_logged_model(known)
    assert ELSEWHERE not in found.tags
    assert not found.tags["mlflow.note.content"]
    assert found.params["network"]
    assert found.tags["patchline.stage"] == "worse"
    (weights,) = [path for path in tmp_path.rglob(f"models/**/{WEIGHTS}") if path.is_file()]
    output = trained.done["worse"].output
    assert weights.read_bytes() == trained.storage.read(output.key(WEIGHTS))
    # Another workflow that reads it finds the same one, and leaves its files alone.
    runs, _ = reused(trained, uri)
    assert models_read(run_of(runs, "of_worse")) == [known]
    assert runs.client.list_logged_model_artifacts(known)
    everyone = runs.client.search_logged_models([runs.experiment])
    assert sorted(model.tags[DIGEST] for model in everyone) == sorted(
        trained.done[name].output.digest for name in ("pretrain", "worse")
    )


@pytest.mark.parametrize("call", ["create_logged_model", "finalize_logged_model", "log_outputs", "log_inputs"])
def test_a_lost_answer_leaves_one_model_and_one_line_to_it(trained: Trained, tmp_path: Path, monkeypatch, call):
    from mlflow import MlflowClient

    real, lost = getattr(MlflowClient, call), list[str]()

    def once(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = real(self, *arguments, **options)
        if not lost:
            lost.append(call)
            raise ConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(MlflowClient, call, once)
    runs, _ = reused(trained, trained.database(tmp_path))
    assert lost == [call]
    (known,) = models_made(run_of(runs, "pretrain"))
    assert models_read(run_of(runs, "finetune")) == [known]
    found = [model for model in runs.client.search_logged_models([runs.experiment]) if model.model_id == known]
    assert [str(model.status) for model in found] == ["READY"]
    assert len(runs.client.search_logged_models([runs.experiment])) == 2


def test_a_server_that_knows_no_models_shows_tags_alone(trained: Trained, tmp_path: Path, monkeypatch, capsys):
    def absent(*_: Any, **__: Any) -> Any:
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr("mlflow.MlflowClient.search_logged_models", absent)
    runs, _ = reused(trained, trained.database(tmp_path))
    assert capsys.readouterr().out.count("models that stages read are shown as tags alone") == 1
    tags = run_of(runs, "finetune").data.tags
    assert tags["patchline.input.model.digest"] == trained.done["pretrain"].output.digest
    assert tags["patchline.outcome"] == "reused"


def test_a_killed_driver_s_half_made_model_is_finished_by_the_next_one(trained: Trained, tmp_path: Path):
    runs = trained.runs(trained.database(tmp_path))
    digest = trained.done["pretrain"].output.digest
    tags = {DIGEST: digest, ELSEWHERE: "file:///somewhere"}
    left = runs.client.create_logged_model(runs.experiment, name="small-pretrain", tags=tags)
    registry = Registry(runs.client, runs.experiment)
    found = registry.name_model(digest, name="small-pretrain", run=None, address="file:///somewhere")
    assert found.id == left.model_id
    assert str(runs.client.get_logged_model(found.id).status) == "READY"
    assert not found.ready
