"""MLflow behind a network that loses answers, and MLflow away: every curve comes out whole, and once."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.entities import Run

from cluster.local.processes import free_ports
from cluster.local.stack import Stack
from pipeline.mlflow_page import EXPERIMENT, tags
from pipeline.settings import Settings
from stages.context import read_output
from tests.integration.flows import (
    curve,
    head,
    in_mlflow,
    over,
    past_checkpoint,
    record,
    small_workflow,
    tracked,
    wait_for,
)

pytestmark = pytest.mark.cluster
UPDATES = 12
DESCRIPTION = "A small network on the real digits"


class LossyProxy(ThreadingHTTPServer):
    """Passes requests on to MLflow; the answer to every second batch of metrics is lost on the way back."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target = target.removeprefix("http://")
        self.batches = self.lost = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LossyProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(self.server.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if self.path.endswith("/log-batch") and b'"metrics"' in body:
            self.server.batches += 1
            if self.server.batches % 2:
                self.server.lost += 1
                self.close_connection = True
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(stack_environment: Stack) -> Iterator[LossyProxy]:
    with LossyProxy(stack_environment.mlflow_url) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def workflow_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_workflow(f"pretrain.updates={UPDATES}", "pretrain.save_every=5").to_yaml())
    return path


def patchline(*words: str, way: tuple[str, str] = ("-m", "pipeline.cli")) -> str:
    command = [sys.executable, *way, *words]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_curves(settings: Settings, workflow_id: str) -> None:
    """Every update once in MLflow, with the values that storage has."""
    run = in_mlflow(settings, workflow_id, "pretrain")
    for name in ("train/loss", "train/lr", "train/gradient_norm", "train/images_per_s"):
        assert [step for step, _ in curve(settings, run, name)] == list(range(1, UPDATES + 1))
    final = record(settings.storage(), workflow_id, "pretrain").metrics["test/accuracy"]
    assert curve(settings, run, "test/accuracy") == [(UPDATES, final)]


def test_lost_answers_leave_no_point_twice_and_none_out(proxy, workflow_file, tmp_path):
    root = f"file://{tmp_path}/root"
    patchline("run", str(workflow_file), "--root", root, "--mlflow", proxy.url)
    assert proxy.lost >= 3
    settings = Settings(root=root, mlflow=proxy.url)
    (workflow_id,) = settings.storage().list_folders("workflows/")
    check_curves(settings, workflow_id)


def test_what_an_absent_server_missed_is_sent_by_the_next_driver(stack_environment, workflow_file, tmp_path):
    root = f"file://{tmp_path}/root"
    absent = f"http://127.0.0.1:{free_ports(1)[0]}"
    impatient = "from pipeline import cli, tracking; tracking.PATIENCE_SECONDS = 4.0; cli.main()"
    said = patchline("run", str(workflow_file), "--root", root, "--mlflow", absent, way=("-c", impatient))
    assert "does not answer; the work goes on" in said
    settings = Settings(root=root, mlflow=stack_environment.mlflow_url)
    (workflow_id,) = settings.storage().list_folders("workflows/")
    patchline("resume", workflow_id, "--foreground", "--root", root, "--mlflow", settings.mlflow)
    check_curves(settings, workflow_id)


def test_a_stopped_run_shows_its_checkpoint_and_a_finished_one_everything(stack_environment, tmp_path):
    settings = Settings(root=f"file://{tmp_path}/root", mlflow=stack_environment.mlflow_url)
    path = tmp_path / "small.yaml"
    long = ("pretrain.updates=600", "pretrain.save_every=50", "pretrain.evaluate_every=0")
    path.write_text(small_workflow(f"description={DESCRIPTION}", *long).to_yaml())
    places = ("--root", settings.root, "--mlflow", settings.mlflow)
    workflow_id, folder = stopped_after_a_checkpoint(settings, "run", str(path), *places)
    run = in_mlflow(settings, workflow_id, "pretrain")
    committed = head(settings.storage(), folder).checkpoint
    assert run.info.status == "KILLED"
    assert run.data.tags["patchline.checkpoint"] == f"{settings.root}/{committed.prefix}"
    patchline("resume", workflow_id, "--foreground", *places)
    check_runs(settings, workflow_id)


def stopped_after_a_checkpoint(settings: Settings, *words: str) -> tuple[str, str]:
    """Start a command that trains, and stop it as Ctrl-C does; returns the workflow's id and the stage's folder."""
    storage = settings.storage()
    process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *words], env=os.environ)
    try:
        ended = partial(over, process)
        workflow_id = wait_for(lambda: storage.list_folders("workflows/"), 300, "workflow", unless=ended)[0]
        folder = wait_for(lambda: past_checkpoint(storage, workflow_id, 50), 300, "first checkpoint", unless=ended)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 1
    finally:
        process.kill()
    return workflow_id, folder


def check_runs(settings: Settings, workflow_id: str) -> None:
    """What the runs of a finished workflow say beside their curves."""
    storage = settings.storage()
    whole = in_mlflow(settings, workflow_id, "workflow")
    runs = tracked(settings, workflow_id)
    records = {name: record(storage, workflow_id, name) for name in ("ingest", "pretrain")}
    dataset = read_output(storage, records["ingest"].output_prefix)
    for name, context in (("ingest", "output"), ("pretrain", "data")):
        (found,) = runs[name].inputs.dataset_inputs
        assert (found.dataset.name, found.dataset.digest) == ("digits", dataset.digest[:36])
        assert [tag.value for tag in found.tags if tag.key == "mlflow.data.context"] == [context]
        assert whole.data.metrics[f"{name}/seconds"] == pytest.approx(records[name].seconds)
        assert runs[name].data.tags["patchline.output_digest"] == records[name].output_digest
    assert whole.data.metrics["ingest/images"] == records["ingest"].metrics["images"] == 1797
    assert whole.data.metrics["pretrain/test/accuracy"] == records["pretrain"].metrics["test/accuracy"]
    first, _, *lines = whole.data.tags["mlflow.note.content"].splitlines()
    assert first == DESCRIPTION
    assert [line.partition(":")[0] for line in lines] == ["- **ingest**", "- **pretrain**"]
    assert "images 1,797" in lines[0]
    check_origin(settings, workflow_id, whole)
    experiment = mlflow.MlflowClient(settings.mlflow).get_experiment_by_name(EXPERIMENT)
    assert tags().items() <= experiment.tags.items()


def check_origin(settings: Settings, workflow_id: str, whole: Run) -> None:
    """Commit, plan and environment of a workflow, and how busy its machine was."""
    client = mlflow.MlflowClient(settings.mlflow)
    with tempfile.TemporaryDirectory() as folder:
        texts = {
            name: Path(client.download_artifacts(whole.info.run_id, name, folder)).read_text()
            for name in ("workflow.yaml", "plan.txt", "environment.json")
        }
    assert yaml.safe_load(texts["workflow.yaml"])["name"] == "small"
    assert "ingest" in texts["plan.txt"]
    assert "from the checkpoint at update" in texts["plan.txt"], "the plan of the driver that resumed"
    environment = json.loads(texts["environment.json"])
    assert environment["packages"]["torch"] == metadata.version("torch")
    git = environment["origin"]["git"]
    assert whole.data.tags["mlflow.user"] == getpass.getuser()
    assert whole.data.tags.get("mlflow.source.git.commit") == (git["commit"] if git else None)
    busy = f"system/{socket.gethostname()}/cpu_utilization_percentage"
    assert 0 < in_mlflow(settings, workflow_id, "pretrain").data.metrics[busy] <= 100
