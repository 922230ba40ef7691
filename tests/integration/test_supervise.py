"""Real workflows that lose their driver, or the whole cluster, and go on without anybody's hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import local
from cluster.local.processes import stop
from cluster.local.stack import Stack
from pipeline import api
from pipeline.driver import newest_driver
from pipeline.settings import Settings, of_stack, resolve
from tests.integration.flows import TEXT, processes, small_workflow, stage, state, wait_for
from tests.integration.test_workflow import kill

pytestmark = pytest.mark.cluster
SHORT = ("pretrain.updates=200", "pretrain.save_every=100", "pretrain.evaluate_every=0")
LEASE_SECONDS = "20"
"""So long that only a driver which is gone is taken for one."""


@pytest.fixture
def settings(stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tests' stack with an empty root."""
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", LEASE_SECONDS)
    return resolve(root=s3_root)


@pytest.fixture
def supervisor(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """`patchline supervise` on that root."""
    command = [sys.executable, "-m", "pipeline.cli", "supervise", "--root", settings.root, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def test_a_workflow_whose_driver_is_killed_ends_by_itself(settings, stack, supervisor):
    storage = settings.storage()
    workflow_id = api.submit(small_workflow(*SHORT), settings)
    wait_for(lambda: stage(storage, workflow_id, "pretrain").attempt, 300, "start of the pretraining")
    kill(stack, workflow_id, "driver")
    wait_for(lambda: state(storage, workflow_id) == "done", 480, "end of the workflow")
    assert newest_driver(storage, workflow_id) == 1
    supervisor.send_signal(signal.SIGINT)
    told, _ = supervisor.communicate(timeout=120)
    assert supervisor.returncode == 0
    lines = [json.loads(line)["message"] for line in told.splitlines()]
    assert f"{workflow_id}: its driver's lease ran out: submitted driver 1 (1 of 8)" in lines


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a stack that the test brings up by the command, and takes down."""
    home = Path(tempfile.mkdtemp(prefix="patchline-test-"))
    monkeypatch.setenv("PATCHLINE_HOME", str(home))
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", LEASE_SECONDS)
    try:
        yield home
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)


def patchline(*words: str) -> str:
    command = [sys.executable, "-m", "pipeline.cli", *words]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def up(home: Path) -> Stack:
    patchline("up")
    stack = local.load(home)
    assert stack is not None
    assert stack.processes["supervise"].alive
    return stack


@pytest.mark.timeout(1200)
def test_after_the_loss_of_the_cluster_up_is_enough(home: Path, tmp_path: Path):
    first = up(home)
    # Where it runs already, nothing is started again.
    assert up(home).processes == first.processes
    storage = of_stack(first).storage()
    (tmp_path / "small.yaml").write_text(TEXT)
    # By the command: Ray reads the token of one cluster in a process.
    options = [word for override in SHORT for word in ("-o", override)]
    workflow_id = patchline("submit", str(tmp_path / "small.yaml"), *options).strip()
    wait_for(lambda: stage(storage, workflow_id, "pretrain").attempt, 300, "start of the pretraining")
    for pid in processes("-m pipeline.driver", workflow_id):
        # So that it cannot put its things in order.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stop(first.processes["ray"])
    second = up(home)
    # A cluster on other ports is another one.
    assert first.processes["supervise"].alive is (second.ports == first.ports)
    wait_for(lambda: state(storage, workflow_id) == "done", 480, "end of the workflow")
    assert newest_driver(storage, workflow_id) == 1
    assert "supervise" in patchline("down")
    assert not any(process.alive for process in second.processes.values())
