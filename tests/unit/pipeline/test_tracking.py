"""What the tracker sends, and how long it waits, with a server in name only."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.store.entities import PagedList

from cluster.storage import open_storage
from pipeline import mlflow_runs, shown_plan, tracking
from pipeline.config import Workflow
from pipeline.head import Head, commit_checkpoint
from pipeline.record import Record
from pipeline.reuse import Finished
from pipeline.tracking import MlflowTracker
from stages.context import Output
from stages.metrics import MetricWriter
from tests.unit.pipeline.toys import Source

FOLDER = "stages/trained/x"


class Trained(Source):
    output = "model"


class Server:
    """Takes what MLflow would take; a batch of points takes `seconds` of its own clock, and fails while `failures`
    last."""

    tracking_uri = "http://mlflow:5000"

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, str]] = {}
        self.called: dict[str, str] = {}
        self.status: dict[str, str] = {}
        self.batches: list[list[int]] = []
        self.names: dict[str, set[str]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.seconds, self.clock, self.failures = 0.0, 0.0, 0

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active")

    get_experiment = get_experiment_by_name

    def search_runs(self, *_: Any, **__: Any) -> PagedList[Any]:
        return PagedList([], token=None)

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        run = run_name.removesuffix(" · toy")
        self.called[run] = run_name
        self.tags[run] = dict(tags)
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def set_tag(self, run: str, key: str, value: str) -> None:
        self.tags[run][key] = value

    def set_terminated(self, run: str, status: str) -> None:
        self.status[run] = status

    def list_artifacts(self, run: str) -> list[Any]:
        return [SimpleNamespace(path=name) for name in self.files.get(run, {})]

    def log_artifact(self, run: str, path: str) -> None:
        self.files.setdefault(run, {})[Path(path).name] = Path(path).read_bytes()

    def log_text(self, *_: Any) -> None:
        """A file."""

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self.tags[run].update({tag.key: tag.value for tag in tags})
        if not metrics:
            return
        if self.seconds:
            self.clock += self.seconds
            # Whoever waits looks at it meanwhile.
            time.sleep(0.05)
        # The second batch and those after it.
        if self.failures and self.batches:
            self.failures -= 1
            raise ConnectionError("away for a moment")
        self.batches.append([metric.step for metric in metrics])
        self.names.setdefault(run, set()).update(metric.key for metric in metrics)


@pytest.fixture
def server(monkeypatch) -> Server:
    found = Server()
    monkeypatch.setattr(mlflow_runs, "_client", lambda uri: found)
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(mlflow_runs, "BATCH", 10)
    return found


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}")


@pytest.fixture
def tracker(server, storage) -> MlflowTracker:
    return MlflowTracker("http://mlflow:5000", storage, "toy-1", Workflow(name="toy", stages={"train": Trained()}))


def trained(storage, points: int) -> Head:
    """A stage with one attempt that has stored this many points and committed nothing."""
    head = Head.acquire(storage, FOLDER, "driver", ttl=3600)
    assert head is not None
    attempt = head.new_attempt().attempt
    writer = MetricWriter(storage, f"{FOLDER}/attempts/{attempt}", interval=3600)
    for step in range(1, points + 1):
        writer.log({"train/loss": 1.0}, step)
    writer.close()
    return head


def begin(tracker: MlflowTracker) -> None:
    tracker.stage_started("train", Trained(), FOLDER, {})
    tracker.attempt_started("train", FOLDER, 1, {})


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stage_shows_why_its_training_went_back(server, storage, tracker):
    trained(storage, 20)
    with tracker:
        begin(tracker)
        tracker.went_back("train", ["went back at update 7: the loss is nan", "went back at update 9: the loss is nan"])
        wait_for(lambda: "patchline.went_back" in server.tags.get("train", {}))
    assert server.tags["train"]["patchline.went_back"].splitlines()[1] == "went back at update 9: the loss is nan"


@pytest.mark.parametrize(("outcome", "status"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_a_stage_shows_its_newest_checkpoint_while_it_runs_and_when_it_is_not_done(
    server, storage, tracker, outcome, status
):
    head = trained(storage, 20)
    with tracker:
        begin(tracker)
        wait_for(lambda: server.batches)
        assert "patchline.checkpoint" not in server.tags["train"]
        for update in (10, 20):
            prefix = f"{FOLDER}/checkpoints/{update:08d}-a1"
            commit_checkpoint(storage, FOLDER, head.epoch, 1, prefix, update, lambda updates: updates)
            wait_for(
                lambda prefix=prefix: server.tags["train"].get("patchline.checkpoint") == f"{storage.url}/{prefix}"
            )
        commit_checkpoint(
            storage, FOLDER, head.epoch, 1, f"{FOLDER}/checkpoints/00000030-a1", 30, lambda updates: updates
        )
        head.release(outcome)
        tracker.attempt_ended("train", 1, outcome)
        tracker.stage_ended("train", outcome, None)
    assert server.status["train"] == status
    assert server.tags["train"]["patchline.checkpoint"] == f"{storage.url}/{FOLDER}/checkpoints/00000030-a1"


def test_a_backlog_is_sent_to_its_end_while_the_server_takes_it(server, storage, tracker, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: server.clock, sleep=time.sleep))
    trained(storage, 200)
    server.seconds = 0.6 * tracking.PATIENCE_SECONDS
    with tracker:
        begin(tracker)
        tracker.attempt_ended("train", 1, "done")
    assert server.clock > 2 * tracking.PATIENCE_SECONDS
    assert [step for batch in server.batches for step in batch] == list(range(1, 201))
    assert "did not take everything" not in capsys.readouterr().out


def test_a_server_that_takes_nothing_is_given_up(server, storage, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1.0)
    tracker = MlflowTracker("http://mlflow:5000", storage, "toy-1", Workflow(name="toy", stages={"train": Trained()}))
    trained(storage, 200)
    server.failures = 10**6
    with tracker:
        begin(tracker)
        tracker.attempt_ended("train", 1, "done")
        wait_for(lambda: server.batches and tracker.problem)
    assert "did not take everything: ConnectionError: away for a moment" in capsys.readouterr().out
    assert server.batches == [list(range(1, 11))]


def test_a_failure_in_the_middle_of_a_backlog_repeats_one_batch_alone(server, storage, tracker):
    trained(storage, 30)
    server.failures = 1
    with tracker:
        begin(tracker)
        tracker.attempt_ended("train", 1, "done")
    assert server.batches == [list(range(1, 11)), list(range(11, 21)), list(range(21, 31))]


def test_a_stage_that_is_made_anew_has_runs_of_its_own(server, storage, tracker):
    """Its attempts are counted from one again: their points would fall among those of the first ones."""
    trained(storage, 5)
    with tracker:
        begin(tracker)
        tracker.attempt_ended("train", 1, "done")
        tracker.stage_ended("train", "stopped", None)
        tracker.stage_started("train", Trained(), f"{FOLDER}.0123abcd-2", {})
        tracker.attempt_started("train", f"{FOLDER}.0123abcd-2", 1, {})
        tracker.attempt_ended("train", 1, "failed")
        tracker.stage_ended("train", "failed", None)
    assert server.called["train"] == "train · toy"
    assert server.called["train anew 2"] == "train anew 2 · toy"
    assert server.called["train anew 2 attempt 1"] == "train anew 2 attempt 1"
    assert server.status["train"] == "KILLED"
    assert server.status["train anew 2"] == "FAILED"
    assert server.tags["train anew 2"]["patchline.key"] == "toy-1:train anew 2"
    assert server.tags["train anew 2 attempt 1"]["patchline.key"] == "toy-1:train anew 2/1"


def test_the_figures_of_a_stage_that_is_made_anew_are_the_stage_s(server, storage, tracker):
    output = Output(prefix=f"{FOLDER}/attempts/1", manifest={"kind": "figures", "files": []})
    record = Record(
        kind="trained", fingerprint="x", attempt=1, identity={}, placement={}, inputs={}, output_prefix=output.prefix,
        output_digest=output.digest, metrics={"test/accuracy": 0.5}, tables={}, builds={}, started_ms=0, ended_ms=1,
    )  # fmt: skip
    folder = f"{FOLDER}.0123abcd-2"
    with tracker:
        tracker.stage_started("train", Trained(), folder, {})
        done = Finished(fingerprint="x", output=output, record=record, folder=folder, reused=False)
        tracker.stage_ended("train", "done", done)
    assert "- **train**: 0.0 s; test accuracy 50.0%" in server.tags["toy"]["mlflow.note.content"]
    assert {"train/test/accuracy", "train/seconds"} <= server.names["toy"]


def test_a_run_says_from_where_its_stage_has_read_and_what_was_there(server, storage, tracker):
    class Imported(Trained):
        def addresses(self) -> dict[str, str]:
            return {"path": "s3://elsewhere/b16.npz"}

    output = Output(prefix=f"{FOLDER}/attempts/1", manifest={"kind": "model", "files": []})
    record = Record(
        kind="trained", fingerprint="x", attempt=1, identity={"external": "0123"}, placement={}, inputs={},
        output_prefix=output.prefix, output_digest=output.digest, metrics={}, tables={}, builds={}, started_ms=0,
        ended_ms=1,
    )  # fmt: skip
    with tracker:
        tracker.stage_started("train", Imported(), FOLDER, {})
        done = Finished(fingerprint="x", output=output, record=record, folder=FOLDER, reused=True)
        tracker.stage_ended("train", "reused", done)
    assert server.tags["train"]["patchline.input.path"] == "s3://elsewhere/b16.npz"
    assert server.tags["train"]["patchline.external_digest"] == "0123"


def test_pictures_are_shown_with_tables_of_numbers(server, storage, tracker):
    names = ("compute.csv", "compute.png", "classes.csv", "model.safetensors")
    for name in names:
        storage.write(f"{FOLDER}/attempts/1/{name}", name.encode())
    output = Output(
        prefix=f"{FOLDER}/attempts/1", manifest={"kind": "figures", "files": [{"path": name} for name in names]}
    )
    record = Record(
        kind="trained", fingerprint="x", attempt=1, identity={}, placement={}, inputs={}, output_prefix=output.prefix,
        output_digest=output.digest, metrics={}, tables={}, builds={}, started_ms=0, ended_ms=1,
    )  # fmt: skip
    finished = Finished(fingerprint="x", output=output, record=record, folder=FOLDER, reused=False)
    with tracker:
        tracker.stage_started("train", Trained(), FOLDER, {})
        tracker.stage_ended("train", "done", finished)
    assert server.files["train"] == {name: name.encode() for name in names[:3]}


def test_a_store_that_takes_no_files_keeps_nothing_else(server, storage, tracker, capsys, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError("507 Insufficient Storage")

    monkeypatch.setattr(server, "log_text", full, raising=False)
    # How long it waits for files, at its end. For all else the tracker waits as long as it did when it was made.
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1.0)
    trained(storage, 25)
    with tracker:
        begin(tracker)
        tracker.attempt_ended("train", 1, "done")
        tracker.stage_ended("train", "stopped", None)
        tracker.workflow_ended("stopped")
    assert sum(len(batch) for batch in server.batches) == 25
    assert server.status == {"train attempt 1": "FINISHED", "train": "KILLED", "toy": "KILLED"}
    said = capsys.readouterr().out
    assert said.count("takes no files; all else is shown (OSError: 507 Insufficient Storage)") == 1
    assert re.search(r"\d files are not in MLflow: `patchline resume toy-1` sends them", said)


def test_files_follow_when_their_store_is_back(server, storage, tracker, monkeypatch):
    monkeypatch.setattr(tracking, "FILES_PAUSE_SECONDS", 0.05)
    taken, failures = [], iter([True] * 3)

    def log_text(run: str, text: str, name: str) -> None:
        if next(failures, False):
            raise OSError("away")
        taken.append(name)

    monkeypatch.setattr(server, "log_text", log_text)
    with tracker:
        begin(tracker)
        wait_for(lambda: {"workflow.yaml", "environment.json", "plan.txt"} <= set(taken))
    assert len(taken) == len(set(taken))


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What the plan waits for before it is made, though not for ever."""
    event = threading.Event()

    def plan_text(*_: Any) -> str:
        event.wait(60)
        return "the plan\n"

    monkeypatch.setattr(shown_plan, "plan_text", plan_text)
    yield event
    event.set()


def taken_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    taken: dict[str, str] = {}
    monkeypatch.setattr(server, "log_text", lambda run, text, name: taken.update({name: text}))
    return taken


def test_a_workflow_that_is_over_before_its_plan_is_made_has_a_plan(server, storage, tracker, monkeypatch, go_on):
    monkeypatch.setattr(shown_plan, "PLAN_SECONDS", 300.0)
    taken = taken_files(server, monkeypatch)
    with tracker:
        threading.Timer(0.5, go_on.set).start()
        tracker.workflow_ended("done")
    assert taken["plan.txt"] == "the plan\n"
    assert server.status["toy"] == "FINISHED"


def test_a_plan_that_takes_too_long_is_not_waited_for_for_ever(server, storage, tracker, monkeypatch, capsys, go_on):
    monkeypatch.setattr(shown_plan, "PLAN_SECONDS", 0.5)
    taken = taken_files(server, monkeypatch)
    with tracker:
        tracker.workflow_ended("done")
    assert "plan.txt" not in taken
    assert "MLflow is given no plan.txt: it took more than" in capsys.readouterr().out


def test_who_is_in_a_hurry_does_not_wait_for_a_plan(server, storage, tracker, monkeypatch, capsys, go_on):
    # Whoever waited would have it.
    monkeypatch.setattr(shown_plan, "PLAN_SECONDS", 300.0)
    taken, hurry = taken_files(server, monkeypatch), threading.Event()
    hurry.set()
    with tracker:
        tracker.workflow_ended("stopped", hurry)
    assert "plan.txt" not in taken
    assert "plan.txt" not in capsys.readouterr().out


def test_one_who_is_not_let_in_is_told_what_to_set_and_not_waited_for(server, storage, capsys, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

    def create_run(*_: Any, **__: Any) -> None:
        raise MlflowException("failed with error code 401", error_code=UNAUTHENTICATED)

    monkeypatch.setattr(server, "create_run", create_run)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1.0)
    workflow = Workflow(name="toy", stages={"train": Trained()})
    began = time.monotonic()
    with MlflowTracker("http://mlflow:5000", storage, "toy-1", workflow, on_a_cluster=True) as tracker:
        tracker.workflow_ended("done")
    assert time.monotonic() - began < 300
    said = capsys.readouterr().out
    assert "does not let us in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said


def test_workflows_of_one_id_in_two_roots_have_runs_of_their_own(tmp_path):
    """With a real MLflow: two users of one server may both call theirs `nightly`."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def run(root: str) -> str:
        runs = mlflow_runs.Runs(uri, "nightly", lambda: True, root)
        runs.connect()
        return runs.ensure("workflow", None, "digits")

    anna, ben = run("s3://lab/anna"), run("s3://lab/ben")
    assert anna != ben
    assert (run("s3://lab/anna/"), run("s3://lab/ben")) == (anna, ben)
    # One of an earlier version is anybody's who has its id.
    client = mlflow_runs._client(uri)
    client.delete_tag(ben, "patchline.root")
    assert run("s3://lab/ben") == ben
    assert client.get_run(anna).data.tags["patchline.root"] == "s3://lab/anna"
