"""Registration with a real MLflow: one version for an output, whatever is lost, killed or done at once."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from cluster.errors import UserError
from pipeline import mlflow_models, tracking
from pipeline.mlflow_models import DIGEST, FIGURES, Registry, at_hand
from pipeline.mlflow_runs import Runs
from pipeline.model_page import FIGURES_TAG
from pipeline.provenance import read_origin
from pipeline.register import register
from pipeline.registering import Registered
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.tracking import MlflowTracker
from stages.models.download import WEIGHTS
from tests.contract.trained import METRIC, Trained, flow, wanted

REGISTER = f"register: {{name: small, from: finetune, champion: {{metric: {METRIC}}}}}\n"


MAKING = ("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_batch",
          "create_registered_model", "create_model_version", "set_registered_model_alias")  # fmt: skip
"""The calls that change something, in order. Between two of them a server's state is the same whatever is lost."""


class Faulty:
    """MLflow's client, one call of which fails once: before it reaches the server, or after, its answer being lost."""

    def __init__(self, client: Any, call: str, *, after: bool) -> None:
        self._client, self._call, self._after = client, call, after
        self.failed = False
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.made += [name] * name.startswith(("create", "log", "finalize", "set", "delete", "update"))
            if name != self._call or self.failed:
                return found(*arguments, **options)
            self.failed = True
            if self._after:
                found(*arguments, **options)
            raise requests.exceptions.ConnectionError("lost")

        return call


def state(runs: Runs, name: str = "small") -> dict[str, Any]:
    """All that MLflow has of models."""
    client = runs.client
    versions = client.search_model_versions(f"name = '{name}'")
    models = client.search_logged_models([runs.experiment])
    return {
        "versions": {int(version.version): version.tags[DIGEST] for version in versions},
        "models": [(model.tags[DIGEST], str(model.status)) for model in models],
        "champion": Registry(client, runs.experiment).champion(name),
        "outputs": len(client.get_run(runs.find("finetune")).outputs.model_outputs) if runs.find("finetune") else 0,
        "metrics": len(models[0].metrics or ()),
        "sources": [version.source for version in versions] == [f"models:/{model.model_id}" for model in models],
    }


def test_the_calls_that_make_something_are_these(trained: Trained, tmp_path: Path):
    runs = with_runs(trained, tmp_path)
    client = Faulty(runs.client, "none", after=False)
    trained.registration().run(Registry(client, runs.experiment), runs.find)
    assert client.made == list(MAKING)
    # And a second time none of them.
    again = Faulty(runs.client, "none", after=False)
    trained.registration().run(Registry(again, runs.experiment), runs.find)
    assert again.made == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", MAKING)
def test_it_is_whole_and_once_whichever_call_fails_and_whoever_repeats_it(trained: Trained, tmp_path, call, after):
    runs = with_runs(trained, tmp_path)
    client = Faulty(runs.client, call, after=after)
    registration, registry = trained.registration(), Registry(client, runs.experiment)
    with pytest.raises(requests.exceptions.ConnectionError):
        registration.run(registry, runs.find)
    # By the next driver, which knows nothing of this one, or by the same one.
    again = trained.registration() if after else registration
    again.run(registry, runs.find)
    digest = trained.done["finetune"].output.digest
    found = state(runs)
    assert (found["versions"], found["champion"]) == ({1: digest}, 1)
    assert found["models"] == [(digest, "READY")]
    assert found["sources"]
    assert found["outputs"] == 1
    # What was whole is not sent again.
    whole = MAKING.index(call) + after > MAKING.index("finalize_logged_model")
    assert not whole or client.made.count("log_model_artifacts") == 1
    assert found["metrics"] == len(figures_of(runs.client))


def figures_of(client: Any, number: int = 1) -> dict[str, Any]:
    """All that is known of the figures of a version's model."""
    model = client.get_model_version("small", str(number)).source.removeprefix("models:/")
    return json.loads(client.get_logged_model(model).tags[FIGURES])


def with_runs(trained: Trained, folder: Path) -> Runs:
    """An MLflow that has the runs of the workflow and of the stage."""
    runs = trained.runs(trained.database(folder))
    runs.ensure("workflow", None, "small")
    runs.ensure("finetune", "workflow", "finetune")
    return runs


def test_a_version_says_where_it_comes_from_and_how_good_it_is(trained: Trained, tmp_path: Path):
    runs = with_runs(trained, tmp_path)
    run = runs.find("finetune")
    found = trained.registration().run(Registry(runs.client, runs.experiment), runs.find)
    version = runs.client.get_model_version("small", str(found.version))
    accuracy = trained.done["finetune"].record.metrics["test/accuracy"]
    data = trained.done["ingest"].output.digest
    assert version.run_id == run
    assert version.tags[METRIC] == f"{accuracy:.6g}"
    assert figures_of(runs.client)[METRIC] == {"value": accuracy, "data": data}
    assert "fewshot/all/5_shot" in figures_of(runs.client)
    # The list of versions shows a few of them.
    assert max(map(len, version.tags.values())) < 100
    # Another model of the workflow, which this one has nothing to do with.
    assert not [name for name in figures_of(runs.client) if name.startswith(("worse/", "of_worse/"))]
    assert f"{accuracy:.2%}" in version.description
    model = runs.client.get_logged_model(str(found.model_id))
    git = read_origin(trained.storage, trained.workflow_id)["git"]
    assert git is None or git["commit"] in model.tags.values()
    assert {trained.workflow_id, data} <= set(model.tags.values())
    assert model.params["network"] == "ViT-32x2/4"
    assert model.source_run_id == run
    metrics = {metric.key: (metric.value, metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert metrics[METRIC] == (accuracy, "digits", data[:36])
    (output,) = runs.client.get_run(run).outputs.model_outputs
    assert output.model_id == found.model_id
    pictures = runs.client.list_logged_model_artifacts(str(found.model_id), "figures")
    assert [item.path for item in pictures] == ["figures/fewshot-fewshot.png"]
    assert f"{found.model_id}/artifacts/files?artifact_file_path=figures/fewshot-fewshot.png" in version.description


def test_nothing_in_the_files_is_pickled_and_the_weights_are_the_stages(trained: Trained, tmp_path: Path):
    trained.register(trained.database(tmp_path))
    files = [path for path in tmp_path.rglob("models/**/*") if path.is_file()]
    assert {path.suffix for path in files} == {".py", ".json", ".txt", ".yaml", ".safetensors", ".png", ""}
    (weights,) = [path for path in files if path.name == WEIGHTS]
    output = trained.done["finetune"].output
    assert weights.read_bytes() == trained.storage.read(output.key(WEIGHTS))


def test_a_worse_model_is_a_version_and_no_champion_and_a_better_one_is(trained: Trained, tmp_path: Path):
    uri = trained.database(tmp_path)
    better, worse = (trained.done[name].record.metrics["test/accuracy"] for name in ("finetune", "worse"))
    assert better > worse, "the stages of this test are not what they are called"
    # By few-shot accuracy, which is that of the model that both began with: equal, so it stays.
    first = trained.register(uri, wanted("worse", "fewshot/all/5_shot"))
    equal = trained.register(uri, wanted("finetune", "fewshot/all/5_shot"))
    assert (first.version, equal.version) == (1, 2)
    assert equal.decision is not None
    assert equal.decision.version == 1
    # Neither has the other's figure: what is not known to be worse is not replaced.
    unknown = trained.register(uri, wanted("finetune"))
    assert unknown.decision is not None
    assert unknown.decision.reason == f"stays with version 1, of which no {METRIC} is known"
    moved = trained.register(uri, wanted("finetune", "pretrain/test/accuracy"))
    assert moved.decision is not None
    assert moved.decision.version == 1
    runs = trained.runs(uri)
    assert Registry(runs.client, runs.experiment).champion("small") == 1


def another(client: Any, source: str, tags: dict[str, str]) -> None:
    """A version that somebody else makes."""
    with at_hand(client.tracking_uri):
        client.create_model_version("small", source, tags=tags)


def test_the_champion_is_the_best_of_what_was_measured_alike(trained: Trained, tmp_path: Path):
    """Two workflows whose stage has the same name, as those of one file under two seeds."""
    uri = trained.database(tmp_path)
    runs = trained.runs(uri)
    registry = Registry(runs.client, runs.experiment)
    address = f"models:/{trained.register(uri).model_id}"

    def other(accuracy: float, data: str) -> Registered:
        """A version of somebody else's."""
        tags = {DIGEST: f"{accuracy}{data}", FIGURES_TAG: json.dumps({METRIC: {"value": accuracy, "data": data}})}
        another(runs.client, address, tags)
        return trained.register(uri)

    data = trained.done["ingest"].output.digest
    same_file = [other(1.0, "0" * 64), other(0.0, data), other(0.99, data), other(0.98, data)]
    assert [found.version for found in same_file] == [1, 1, 1, 1]
    assert [found.decision.version for found in same_file if found.decision] == [1, 1, 4, 4]
    assert registry.champion("small") == 4


def test_versions_of_an_earlier_program_take_part_and_lose_their_wall_of_text(trained: Trained, tmp_path: Path):
    """It had all figures in a tag that the list of versions shows."""
    uri = trained.database(tmp_path)
    trained.register(uri)
    runs = trained.runs(uri)
    client, registry = runs.client, Registry(runs.client, runs.experiment)
    data, own = trained.done["ingest"].output.digest, figures_of(client)
    version = client.get_model_version("small", "1")
    client.delete_logged_model_tag(version.source.removeprefix("models:/"), FIGURES)
    client.set_model_version_tag("small", "1", FIGURES_TAG, json.dumps({**own, "by/hand": {"value": 1, "data": data}}))
    # One of somebody else's, whose logged model is not ours.
    better = {**own, METRIC: {"value": 0.999, "data": data}}
    with at_hand(uri):
        other = client.create_logged_model(runs.experiment, name="another")
        client.finalize_logged_model(other.model_id, "READY")
    another(client, f"models:/{other.model_id}", {DIGEST: "another", FIGURES_TAG: json.dumps(better)})
    found = trained.register(uri)
    assert (found.version, found.new) == (1, False)
    assert registry.champion("small") == 2, "by what stands in the earlier tag"
    assert figures_of(client) == {**own, "by/hand": {"value": 1, "data": data}}
    assert FIGURES_TAG not in client.get_model_version("small", "1").tags
    assert FIGURES_TAG in client.get_model_version("small", "2").tags
    # And a second time nothing is changed.
    again = Faulty(client, "none", after=False)
    trained.registration().run(Registry(again, runs.experiment), runs.find)
    assert again.made == []


def test_a_better_one_that_comes_meanwhile_is_champion_in_the_end(trained: Trained, tmp_path: Path):
    """Another driver makes its version and sets the alias right before this one does."""
    uri = trained.database(tmp_path)
    runs = trained.runs(uri)
    registry = Registry(runs.client, runs.experiment)
    data = trained.done["ingest"].output.digest

    class Late(Faulty):
        def __getattr__(self, name: str) -> Any:
            if name == "set_registered_model_alias" and len(registry.versions("small")) == 1:
                tags = {DIGEST: "other", FIGURES_TAG: json.dumps({METRIC: {"value": 1.0, "data": data}})}
                source = runs.client.get_model_version("small", "1").source
                another(runs.client, source, tags)
                registry.make_champion("small", 2)
            return getattr(self._client, name)

    found = trained.register(uri, client=Late(runs.client, "none", after=False))
    assert registry.champion("small") == 2
    assert (found.version, found.decision and found.decision.version) == (1, 2)


def test_figures_that_are_measured_later_are_added(trained: Trained, tmp_path: Path):
    uri = trained.database(tmp_path)
    runs = trained.runs(uri)
    early = {name: done for name, done in trained.done.items() if name != "fewshot"}
    registry = Registry(runs.client, runs.experiment)
    from pipeline.registering import Registration

    Registration(trained.storage, trained.workflow_id, trained.workflow, wanted(metric=None), early).run(
        registry, runs.find
    )
    assert "fewshot/all/5_shot" not in figures_of(runs.client)
    trained.register(uri, wanted(metric="fewshot/all/5_shot"))
    assert "fewshot/all/5_shot" in figures_of(runs.client)
    assert registry.champion("small") == 1


def test_drivers_at_once_leave_one_version(trained: Trained, tmp_path: Path):
    """Each of them finds nothing, and makes it: what there is too much of goes."""
    uri = trained.database(tmp_path)
    runs = trained.runs(uri)
    meeting = threading.Barrier(2, timeout=120)

    class Beside(Faulty):
        """Waits for the other one before it makes a thing for the first time."""

        met: frozenset[str] = frozenset()

        def __getattr__(self, name: str) -> Any:
            if name in {"create_logged_model", "create_model_version"} - self.met:
                self.met |= {name}
                meeting.wait()
            return getattr(self._client, name)

    def driver(_: int) -> Registered:
        client = Beside(runs.client, "none", after=False)
        while True:
            # MLflow cannot copy a folder twice at once to a disk; and a driver tries again what MLflow has not done.
            with suppress(FileExistsError):
                return trained.register(uri, client=client)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(driver, range(2)))
    after = state(runs)
    assert len(after["versions"]) == len(after["models"]) == 1
    assert [after["champion"]] == list(after["versions"])
    assert {one.version for one in found} == set(after["versions"])
    # And a third one, which comes later, makes nothing.
    assert not trained.register(uri).new


def test_weights_that_are_not_as_promised_are_refused_before_there_is_a_version(trained: Trained, tmp_path: Path):
    from tests.unit.pipeline.finished import copied

    storage = copied(trained.folder / "root", tmp_path / "copy")
    output = trained.done["finetune"].output
    storage.write(output.key(WEIGHTS), b"x" * len(storage.read(output.key(WEIGHTS))))
    uri = trained.database(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        register(None, Settings(root=storage.url, mlflow=uri), name="small", stage="finetune")
    assert trained.runs(uri).client.search_model_versions("name = 'small'") == []


def test_by_hand_it_says_what_it_has_done(trained: Trained, tmp_path: Path):
    settings = Settings(root=trained.storage.url, mlflow=trained.database(tmp_path))
    first = register(trained.workflow_id, settings, name="small")
    # The last one that makes a model.
    assert (first.stage, first.new, first.address, first.champion) == ("worse", True, "models:/small/1", None)
    again = register(None, settings, name="small", stage="worse")
    assert (again.new, again.version) == (False, 1)
    with pytest.raises(UserError, match="--name is not given"):
        register(None, settings)
    with pytest.raises(UserError, match=r"register\.from: stage 'fewshot' makes no model"):
        register(None, settings, name="small", stage="fewshot")
    with pytest.raises(UserError, match=r"MLflow does not answer: .*refused"):
        register(None, Settings(root=settings.root, mlflow="http://127.0.0.1:9"), name="small")


# By a driver


def drive(trained: Trained, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch, patience: float = 120.0) -> str:
    """Run the same stages, all of which are reused, with `register`; returns the workflow's id."""
    from pipeline.driver import create

    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", patience)
    storage, workflow = trained.storage, flow(REGISTER)
    workflow_id = create(storage, workflow)
    with MlflowTracker(uri, storage, workflow_id, workflow) as tracker:
        runner = Runner(storage, workflow_id, workflow, owner="test", ray=False, tracker=tracker)
        assert runner.run(tracker.workflow_ended) == "done"
    return workflow_id


def test_a_workflow_whose_stages_are_all_reused_registers_too(trained: Trained, tmp_path, monkeypatch, capsys):
    uri = trained.database(tmp_path)
    workflow_id = drive(trained, tmp_path, uri, monkeypatch)
    runs = Runs(uri, workflow_id, lambda: True, trained.storage.url)
    runs.connect()
    found = state(runs)
    assert (list(found["versions"]), found["champion"]) == ([1], 1)
    version = runs.client.get_model_version("small", "1")
    assert version.run_id == runs.find("finetune")
    assert runs.client.get_run(str(runs.find("workflow"))).info.status == "FINISHED"
    said = capsys.readouterr().out
    assert f"finetune: registered as models:/small/1; champion goes to version 1: {METRIC}" in said


class Clock:
    """The tracker's, on which an upload takes minutes; `looks` are those of whoever waits for a workflow's end."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self._ahead, self.looks = 0.0, 0

    def monotonic(self) -> float:
        if threading.current_thread() is threading.main_thread():
            self.looks += 1
        return time.monotonic() + self._ahead

    def skip(self, seconds: float) -> None:
        """Once the end is waited for, and until whoever waits has noticed."""
        self._await_looks()
        self._ahead += seconds
        self._await_looks()

    def _await_looks(self) -> None:
        # One of them is that with which the wait begins.
        wanted, until = self.looks + 3, time.monotonic() + 120
        while self.looks < wanted:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_long_upload_is_waited_for(trained: Trained, tmp_path, monkeypatch, capsys):
    """Longer than a server that says nothing is waited for."""
    clock = Clock()
    monkeypatch.setattr(tracking, "time", clock)
    monkeypatch.setattr(mlflow_models, "ANSWER_SECONDS", 600)

    class Slow(Faulty):
        def __getattr__(self, name: str) -> Any:
            if name == "log_model_artifacts":
                clock.skip(300.0)
            return getattr(self._client, name)

    plain = Registry.__init__
    monkeypatch.setattr(
        Registry,
        "__init__",
        lambda self, client, experiment: plain(self, Slow(client, "none", after=False), experiment),
    )
    uri = trained.database(tmp_path)
    drive(trained, tmp_path, uri, monkeypatch)
    assert "did not take everything" not in capsys.readouterr().out
    assert list(state(trained.runs(uri))["versions"]) == [1]


@pytest.mark.parametrize("call", ["log_model_artifacts", "create_model_version", "set_registered_model_alias"])
def test_a_driver_goes_on_where_an_answer_was_lost(trained: Trained, tmp_path, monkeypatch, capsys, call):
    uri = trained.database(tmp_path)
    plain, clients = Registry.__init__, list[Faulty]()

    def losing(self: Registry, client: Any, experiment: str) -> None:
        # One for all tries of the driver.
        clients[:] = clients or [Faulty(client, call, after=True)]
        plain(self, clients[0], experiment)

    monkeypatch.setattr(Registry, "__init__", losing)
    drive(trained, tmp_path, uri, monkeypatch)
    assert clients[0].failed
    found = state(trained.runs(uri))
    assert (list(found["versions"]), found["champion"]) == ([1], 1)
    assert "did not take everything" not in capsys.readouterr().out


def test_what_an_absent_server_missed_is_registered_by_the_next_driver(trained: Trained, tmp_path, monkeypatch, capsys):
    drive(trained, tmp_path, "http://127.0.0.1:9", monkeypatch, patience=5.0)
    assert "did not take everything" in capsys.readouterr().out
    uri = trained.database(tmp_path)
    drive(trained, tmp_path, uri, monkeypatch)
    assert list(state(trained.runs(uri))["versions"]) == [1]


def test_a_server_without_a_registry_is_told_of_in_one_line(trained: Trained, tmp_path, monkeypatch, capsys):
    uri = trained.database(tmp_path)

    def absent(*_: Any, **__: Any) -> Any:
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr("mlflow.MlflowClient.search_model_versions", absent)
    workflow_id = drive(trained, tmp_path, uri, monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if "registered" in line]
    assert len(lines) == 1
    assert "the model is not registered as 'small'" in lines[0]
    runs = Runs(uri, workflow_id, lambda: True, trained.storage.url)
    runs.connect()
    assert runs.client.get_run(str(runs.find("workflow"))).info.status == "FINISHED"
