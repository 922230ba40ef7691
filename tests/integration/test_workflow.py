"""Pretraining through a real Ray cluster, S3 server and MLflow server, killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cluster import jobs
from cluster.local.stack import Stack
from cluster.storage import Storage
from cluster.tasks import map_tasks
from pipeline import api
from pipeline.config import Workflow
from pipeline.feeding import bench_data
from pipeline.feeding_job import on_cluster
from pipeline.settings import Settings, resolve
from pipeline.stage_logs import workflow_logs
from pipeline.verification_job import verify_on_cluster
from stages.context import Context, read_output
from stages.frozen.store import read_features
from tests.integration.flows import (
    SAVE_EVERY,
    cancelled_on_failure,
    curve,
    descendants,
    head,
    in_mlflow,
    model_sha256,
    over,
    past_checkpoint,
    processes,
    record,
    small_workflow,
    stage,
    state,
    steps_logged,
    tracked,
    wait_for,
)

pytestmark = pytest.mark.cluster
LEASE_SECONDS = 3.0
UPDATES = 160
"""Enough that whoever kills it twice in its middle meets it there."""
EVALUATED = (
    *("pretrain.fewshot.every=40", "pretrain.fewshot.shots=[1, 5]"),
    *("pretrain.fewshot.cpus=0.5", "pretrain.cpus_per_worker=0.7"),
)
"""Few-shot evaluations with room beside training, which change nothing of what is trained."""


def flow(*overrides: str, more: str = "") -> Workflow:
    """What most tests here run."""
    return small_workflow(f"pretrain.updates={UPDATES}", "pretrain.evaluate_every=50", *overrides, more=more)


@pytest.fixture
def settings(stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tests' stack with an empty root."""
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", str(LEASE_SECONDS))
    return resolve(root=s3_root)


@pytest.fixture(scope="session")
def reference(stack: Stack) -> tuple[Settings, str]:
    """The small workflow, undisturbed: (settings, workflow id)."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        patch.setenv("PATCHLINE_HOME", stack.home)
        settings = resolve(root=f"{stack.root}/reference")
        workflow_id = api.submit(flow(*EVALUATED), settings)
        ended(settings, workflow_id, "done")
    return settings, workflow_id


def ended(settings: Settings, workflow_id: str, expected: str, ends: int = 1, seconds: float = 480) -> None:
    """Wait until a workflow has ended `ends` times, and check how the last time was."""
    from pipeline.record import EventLog

    storage, log, found = settings.storage(), [], []
    reader = EventLog(storage, workflow_id)

    def over() -> bool:
        log.extend(reader.new_events())
        found[:] = [event.data["state"] for event in log if event.type == "workflow_ended"]
        return len(found) >= ends

    wait_for(over, seconds, f"end of {workflow_id}; events: {[event.type for event in log]}")
    assert found[-1] == expected, [(event.type, event.stage, event.data) for event in log]


def test_mlflow_shows_workflow_stages_and_attempts(reference):
    settings, workflow_id = reference
    in_mlflow(settings, workflow_id, "workflow")
    runs = tracked(settings, workflow_id)
    stages = ("ingest", "pretrain")
    assert set(runs) == {"workflow", *stages, *(f"{name}/1" for name in stages)}
    for name in stages:
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["workflow"].info.run_id
        assert runs[f"{name}/1"].data.tags["mlflow.parentRunId"] == runs[name].info.run_id
        assert runs[name].info.status == runs[f"{name}/1"].info.status == "FINISHED"
    pretrain = runs["pretrain"]
    assert pretrain.data.params["lr"] == "0.002"
    assert pretrain.data.params["model.depth"] == "2"
    assert pretrain.inputs.dataset_inputs[0].dataset.name == "digits"
    assert pretrain.data.tags["patchline.checkpoint"].startswith(f"{settings.root}/stages/pretrain/")
    for name in ("train/loss", "train/lr", "train/gradient_norm", "train/images_per_s", "train/accuracy"):
        for key in ("pretrain", "pretrain/1"):
            assert [step for step, _ in curve(settings, runs[key], name)] == list(range(1, UPDATES + 1))
    assert [step for step, _ in curve(settings, pretrain, "validation/accuracy")] == [50, 100, 150, UPDATES]
    for key in ("pretrain", "pretrain/1"):
        assert [step for step, _ in curve(settings, runs[key], "fewshot/all/5_shot")] == [40, 80, 120, UPDATES]
    table = record(settings.storage(), workflow_id, "pretrain").tables["fewshot_on_the_way"]
    assert {(row["update"], row["failed"]) for row in table} == {(update, "") for update in (40, 80, 120, UPDATES)}


def test_a_second_run_does_nothing(reference, stack_environment):
    settings, first = reference
    storage = settings.storage()
    before = {key: storage.stat(key) for key in storage.list("stages/")}
    workflow_id = api.submit(flow(), settings)
    ended(settings, workflow_id, "done")
    assert [stage(storage, workflow_id, name).outcome for name in ("ingest", "pretrain")] == ["reused", "reused"]
    assert {key: storage.stat(key) for key in storage.list("stages/")} == before
    assert model_sha256(storage, workflow_id) == model_sha256(storage, first)


def test_a_window_trained_again_on_the_cluster_comes_out_the_same(reference, stack_environment):
    settings, workflow_id = reference
    found = verify_on_cluster(settings, workflow_id, "pretrain", workers=2)
    assert (found.start, found.end, found.losses, found.differs) == (UPDATES - SAVE_EVERY, UPDATES, SAVE_EVERY, ())
    assert found.exact


def test_workers_of_the_cluster_are_measured_at_once(reference, stack_environment):
    settings, _ = reference
    ranks = partial(on_cluster, settings, 2)
    fit = bench_data(small_workflow(), settings.storage(), seconds=0.2, ranks=ranks)
    machine = fit.slowest
    assert (len(fit.machines), machine.loaders, machine.threads) == (1, 2, 1)
    assert min(machine.storage, machine.one_thread, machine.decoding, machine.hand_over) > 0
    assert fit.wanted is not None


EVALUATIONS = """
  evaluate: {data: ingest, from: pretrain, images_per_task: 60, batch: 30, threads: 1}
  features: {data: ingest, from: pretrain, images_per_task: 500, threads: 1, baselines: [untrained]}
  fewshot: {features: features, draws: 3}
"""


def test_evaluations_by_tasks_of_the_cluster_are_those_of_one_process(reference, stack_environment):
    settings, _ = reference
    storage, workflow = settings.storage(), flow(more=EVALUATIONS)
    workflow_id = api.submit(workflow, settings)
    ended(settings, workflow_id, "done")
    assert stage(storage, workflow_id, "pretrain").outcome == "reused"
    inputs = {
        field: read_output(storage, record(storage, workflow_id, name).output_prefix)
        for field, name in (("data", "ingest"), ("model", "pretrain"))
    }
    places = {}
    for name in ("evaluate", "features"):
        config = workflow.stages[name].model_copy(update={"images_per_task": 100_000})
        alone = type(config).function()(config, inputs, in_this_process(storage, name))
        there = record(storage, workflow_id, name)
        # Sums of fractions are added up in another order, and files of several parts are larger.
        counted = {figure: value for figure, value in there.metrics.items() if figure != "bytes"}
        assert {figure: alone.metrics[figure] for figure in counted} == pytest.approx(counted, rel=1e-12)
        places[name] = alone.output, read_output(storage, there.output_prefix)
    # Several tasks and one: as many files, and the same numbers in them.
    (alone, there) = (read_features(storage, output) for output in places["features"])
    assert (len(alone.meta["parts"]), len(there.meta["parts"])) == (1, 4)
    for kind in ("features", "untrained"):
        for own, other in zip(alone.load(kind), there.load(kind), strict=True):
            np.testing.assert_array_equal(own.labels, other.labels)
            np.testing.assert_allclose(own.features, other.features, rtol=1e-5, atol=1e-6)
    fewshot = workflow.stages["fewshot"]
    again = type(fewshot).function()(
        fewshot, {"features.0": places["features"][1]}, in_this_process(storage, "fewshot")
    )
    assert dict(again.metrics) == record(storage, workflow_id, "fewshot").metrics
    assert len(again.metrics) == 2 * 3 * 4


def in_this_process(storage: Storage, name: str) -> Context:
    """What a stage is given without a cluster, in a folder of its own."""
    return Context(
        storage=storage, folder=f"stages/alone/{name}", attempt=1, seed=3, tasks=partial(map_tasks, ray=False),
        gang=lambda *_, **__: pytest.fail("no gang is wanted"),
    )  # fmt: skip


def test_another_cluster_is_sent_the_code(stack_environment, s3_root):
    """As `submit --address` does where the cluster is not this machine's own stack."""
    stack = stack_environment
    settings = Settings(root=s3_root, mlflow=stack.mlflow_url, jobs=stack.jobs_address, environment=stack.environment())
    workflow = small_workflow()
    alone = workflow.model_copy(update={"stages": {"ingest": workflow.stages["ingest"]}})
    workflow_id = api.submit(alone, settings)
    ended(settings, workflow_id, "done")
    (log,) = workflow_logs(settings.storage(), workflow_id, None, follow=False)
    assert "code in " in log
    assert str(Path(api.__file__).parents[1]) not in log


@pytest.mark.timeout(1200)
def test_killed_and_resumed_and_killed_again_gives_the_same_bits(settings, stack, reference):
    """First a training worker is killed, then, after `resume`, the driver. No evaluation on the way is lost."""
    storage = settings.storage()
    workflow_id = api.submit(flow(*EVALUATED), settings)
    folder = wait_for(lambda: past_checkpoint(storage, workflow_id, SAVE_EVERY), 300, "first checkpoint")
    kill(stack, workflow_id, "worker")
    ended(settings, workflow_id, "failed")
    assert "died" in stage(storage, workflow_id, "pretrain").message
    starts = [0, check_what_is_lost(storage, folder, 1)]

    api.resume(workflow_id, settings)
    wait_for(lambda: past_checkpoint(storage, workflow_id, starts[1] + SAVE_EVERY), 300, "checkpoint after that")
    kill(stack, workflow_id, "driver")
    wait_for(lambda: not processes("pipeline.driver", workflow_id), 120, "end of the driver")
    # Its workers outlive it by a moment, in which they may still commit a checkpoint.
    wait_for(lambda: not training_workers(stack), 300, "end of its workers")
    starts.append(check_what_is_lost(storage, folder, 2))

    api.resume(workflow_id, settings)
    ended(settings, workflow_id, "done", ends=2)
    first, undisturbed = reference
    assert model_sha256(storage, workflow_id) == model_sha256(first.storage(), undisturbed)
    assert [steps_logged(storage, folder, attempt)[0] for attempt in (1, 2, 3)] == [start + 1 for start in starts]
    assert steps_logged(storage, folder, 3)[-1] == UPDATES
    in_mlflow(settings, workflow_id, "workflow")
    runs = tracked(settings, workflow_id)
    ends = [runs[key].info.status for key in ("pretrain/1", "pretrain/2", "pretrain/3", "pretrain")]
    assert ends == ["FAILED", "KILLED", "FINISHED", "FINISHED"]
    expected = in_mlflow(first, undisturbed, "pretrain")
    names = ("train/loss", "train/accuracy", "train/gradient_norm", "train/lr", "validation/loss")
    for name in (*names, "fewshot/all/1_shot", "fewshot/seen/5_shot"):
        assert curve(settings, runs["pretrain"], name) == curve(first, expected, name)


def check_what_is_lost(storage: Storage, folder: str, attempt: int) -> int:
    """The newest committed update, past which a killed attempt cannot have come by much."""
    committed = head(storage, folder).checkpoint
    assert committed is not None
    reached = steps_logged(storage, folder, attempt)[-1]
    # One upload at a time is outstanding: what is repeated is the interval since the last checkpoint, and
    # what was trained while it was being stored.
    assert committed.update <= reached < UPDATES
    assert reached - committed.update <= 2 * SAVE_EVERY
    return committed.update


def kill(stack: Stack, workflow_id: str, victim: str) -> None:
    """SIGKILL one training worker, or the driver, of the tests' own cluster."""
    if victim == "driver":
        # Ray starts the driver through a shell, whose command line has the same words.
        pids = [pid for pid in processes("-m pipeline.driver", workflow_id) if not processes_of_shell(pid)]
    else:
        pids = training_workers(stack)
    assert pids, f"no {victim} to kill"
    os.kill(pids[-1], signal.SIGKILL)


def training_workers(stack: Stack) -> list[int]:
    """Ids of the processes that train in the tests' own cluster."""
    own = descendants(stack.processes["ray"].pid)
    return [pid for pid in processes("ray::", "TrainWorker") if pid in own]


def processes_of_shell(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").resolve().name in ("sh", "bash", "dash")


def test_stopping_saves_at_the_next_update_and_resume_goes_on(settings):
    """First with `cancel`, then, after `resume`, with Ray's own stop of the job."""
    storage = settings.storage()
    workflow_id = api.submit(small_workflow("pretrain.save_every=10000000", "pretrain.updates=100000"), settings)
    with cancelled_on_failure(settings, workflow_id):
        first = stopped(settings, workflow_id, 1, lambda: api.cancel(workflow_id, settings))
        api.resume(workflow_id, settings)
        second = stopped(settings, workflow_id, 2, lambda: jobs.stop(str(settings.jobs), f"{workflow_id}-d1"))
    folder = stage(storage, workflow_id, "pretrain").folder
    assert [(segment.start, segment.end) for segment in head(storage, str(folder)).history] == [
        (0, first),
        (first, second),
    ]
    assert steps_logged(storage, str(folder), 2)[0] == first + 1


def stopped(settings: Settings, workflow_id: str, attempt: int, stop: Callable[[], object]) -> int:
    """Stop an attempt that trains; returns the update that it saved, which is its last one."""
    storage = settings.storage()

    def training() -> str | None:
        status = stage(storage, workflow_id, "pretrain")
        ours = status.folder and status.attempt == attempt
        return status.folder if ours and steps_logged(storage, str(status.folder), attempt) else None

    folder = wait_for(training, 300, f"first update of attempt {attempt}")
    stop()
    ended(settings, workflow_id, "stopped", ends=attempt)
    saved = head(storage, folder).checkpoint
    assert saved is not None
    assert steps_logged(storage, folder, attempt)[-1] == saved.update
    in_mlflow(settings, workflow_id, "workflow")
    runs = tracked(settings, workflow_id)
    assert {runs[key].info.status for key in (f"pretrain/{attempt}", "pretrain", "workflow")} == {"KILLED"}
    return saved.update


def test_a_zombie_driver_makes_nothing_visible(tmp_path):
    """A driver is paused for longer than its lease, another one finishes the work, and the first wakes up."""
    environment = {**os.environ, "PATCHLINE_LEASE_SECONDS": "2", "PATCHLINE_HOME": str(tmp_path / "home")}
    root = f"file://{tmp_path}/root"
    path = tmp_path / "small.yaml"
    # Long enough for the zombie to be caught in the middle.
    long = ("pretrain.updates=500", "pretrain.save_every=50", "pretrain.evaluate_every=0")
    path.write_text(small_workflow("pretrain.zero_stage=1", *long).to_yaml())
    command = [sys.executable, "-m", "pipeline.cli"]
    zombie = subprocess.Popen(
        [*command, "run", str(path), "--root", root], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    storage = Settings(root=root, mlflow="").storage()
    try:
        check_a_zombie(zombie, [*command, "resume", "--foreground", "--root", root], storage, environment)
    finally:
        zombie.kill()


def check_a_zombie(zombie: subprocess.Popen[bytes], resume: list[str], storage: Storage, environment: dict) -> None:
    ended = partial(over, zombie)
    workflow_id = wait_for(lambda: storage.list_folders("workflows/"), 300, "workflow", unless=ended)[0]
    folder = wait_for(lambda: past_checkpoint(storage, workflow_id, 50), 300, "first checkpoint", unless=ended)
    zombie.send_signal(signal.SIGSTOP)
    resumed = subprocess.run([*resume, workflow_id], env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert state(storage, workflow_id) == "done"
    heads = (f"{folder}/HEAD.json", f"workflows/{workflow_id}/HEAD.json")
    before = [storage.read(key) for key in heads]
    told = {key for prefix in ("index/", f"workflows/{workflow_id}/events/") for key in storage.list(prefix)}
    sha256 = model_sha256(storage, workflow_id)

    zombie.send_signal(signal.SIGCONT)
    output = zombie.communicate(timeout=300)[0].decode()
    assert zombie.returncode == 70, output
    assert "another driver took over" in output
    time.sleep(1)
    assert [storage.read(key) for key in heads] == before
    assert {key for prefix in ("index/", f"workflows/{workflow_id}/events/") for key in storage.list(prefix)} == told
    assert head(storage, folder).attempt == 2
    assert model_sha256(storage, workflow_id) == sha256
