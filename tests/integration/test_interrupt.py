"""Ctrl-C: who only looks goes and the workflow stays; who runs it stops it. Both are told how it goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pexpect
import pytest
from jupyter_client.manager import start_new_kernel

from cluster.local.stack import Stack
from cluster.storage import Storage, open_storage
from pipeline.settings import resolve
from tests.integration.flows import head, past_checkpoint, small_workflow, stage, state, wait_for

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]
SECONDS = 300
GATE = """
import time
from pathlib import Path
from typing import ClassVar

from stages.config import StageConfig
from stages.context import Result


class Gate(StageConfig):
    kind: ClassVar[str] = "gate"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "gate"
    key: str

    @classmethod
    def function(cls):
        return run


def run(config, inputs, context):
    while not Path(config.key).exists():
        time.sleep(0.1)
    return Result(output=context.commit("gate", [], {}))
"""


@pytest.fixture
def environment(stack_environment: Stack, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a shell that has the command on its path, with this source in front of what is installed."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def typed(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], pexpect.spawn]]:
    """Start a command as somebody types it in a terminal; what still runs after the test is ended."""
    children: list[pexpect.spawn] = []

    def start(command: str) -> pexpect.spawn:
        child = pexpect.spawn(
            "bash",
            ["-c", f"exec {command}"],
            cwd=tmp_path,
            env=environment,
            dimensions=(40, 300),
            encoding="utf-8",
            # The terminal writes ^C into the midst of a character.
            codec_errors="replace",
            timeout=SECONDS,
            # In a terminal nobody ignores it, as what a script has put into the background does.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def interrupted(child: pexpect.spawn) -> str:
    """What a command says after Ctrl-C, once it has shown that a stage runs; it has ended then."""
    child.expect("▶")
    child.sendintr()
    return ended(child)


def ended(child: pexpect.spawn) -> str:
    said = child.read()
    child.close()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said).replace("\r", "")


def told(said: str, verb: str) -> str:
    """The command with this verb that was said."""
    (found,) = re.findall(rf"(patchline {verb} [^`\n]*?)(?:  |`| (?:shows|its|stops) )", said)
    return found.strip()


def interrupted_in_a_notebook(workflow_id: str, environment: dict[str, str]) -> tuple[str, str]:
    """What a cell prints that follows a workflow, when its kernel is interrupted; and the exception that ends it."""
    manager, client = start_new_kernel(startup_timeout=SECONDS, kernel_name="python3", env=environment)
    code = (
        "from pipeline.api import follow\nfrom pipeline.settings import resolve\nfollow({!r}, resolve())\nprint('on')"
    )
    printed, sent = [], []

    def hear(message: dict) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
        if "display_data" in message["msg_type"] and not sent:
            sent.append(True)
            manager.interrupt_kernel()

    try:
        reply = client.execute_interactive(code.format(workflow_id), timeout=SECONDS, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(printed), reply["content"].get("ename", "")


@pytest.fixture
def key(tmp_path: Path) -> Iterator[Path]:
    """What the gate waits for, whatever becomes of the test."""
    yield tmp_path / "key"
    (tmp_path / "key").touch()


def test_who_only_looks_can_go_and_come_back_while_the_workflow_goes_on(environment, typed, tmp_path, key):
    (tmp_path / "gate.py").write_text(GATE)
    (tmp_path / "gated.yaml").write_text(f"name: gated\nstages:\n  gate: {{kind: 'gate:Gate', key: {key}}}\n")
    child = typed("patchline submit gated.yaml --follow")
    said = interrupted(child)
    assert child.exitstatus == 130, said
    (workflow_id,) = re.findall("^(gated-.*) goes on without this terminal$", said, re.MULTILINE)
    assert told(said, "logs -f") == f"patchline logs -f {workflow_id}"
    again = told(said, "status -f")
    child = typed(again)
    said = interrupted(child)
    assert child.exitstatus == 130, said
    assert told(said, "status -f") == again
    printed, exception = interrupted_in_a_notebook(workflow_id, environment)
    assert exception == "KeyboardInterrupt"
    _, *lines = printed[printed.index(f"{workflow_id} goes on without this process") :].splitlines()
    follow = "\n".join(line.strip() for line in lines if "cancel" not in line)
    storage = resolve().storage()
    assert state(storage, workflow_id) == "running"
    child = typed(again)
    child.expect("▶")
    key.touch()
    said = ended(child)
    assert child.exitstatus == 0, said
    assert state(storage, workflow_id) == "done"
    shown = subprocess.run([sys.executable, "-c", follow], env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "workflow done" in shown.stdout


def begun(storage: Storage, child: pexpect.spawn) -> str:
    """A workflow whose training has gone on from a checkpoint."""

    def ended() -> str | None:
        return None if child.isalive() else "the command has ended"

    workflow_id = wait_for(lambda: storage.list_folders("workflows/"), SECONDS, "workflow", unless=ended)[0]
    wait_for(lambda: past_checkpoint(storage, workflow_id, 40), SECONDS, "first checkpoint", unless=ended)
    return workflow_id


@pytest.fixture
def places(tmp_path: Path) -> str:
    """Of somebody who keeps results elsewhere than where they usually go."""
    return f"--root 'file://{tmp_path}/my root'"


def test_who_runs_it_stops_it_after_a_checkpoint_and_the_command_that_is_told_continues_it(typed, tmp_path, places):
    (tmp_path / "small.yaml").write_text(
        small_workflow("pretrain.updates=600", "pretrain.save_every=40", "pretrain.evaluate_every=0").to_yaml()
    )
    storage = open_storage(f"file://{tmp_path}/my root")
    child = typed(f"patchline run small.yaml {places}")
    workflow_id = begun(storage, child)
    child.sendintr()
    child.expect("SIGINT: saving a checkpoint, then stopping")
    said = ended(child)
    assert child.exitstatus == 1, said
    assert f"{workflow_id}: stopped" in said
    folder = str(stage(storage, workflow_id, "pretrain").folder)
    stopped = head(storage, folder).checkpoint
    assert stopped is not None
    assert 40 < stopped.update < 600
    child = typed(told(said, "resume"))
    said = ended(child)
    assert child.exitstatus == 0, said
    assert head(storage, folder).history[-1].start == stopped.update


def test_a_second_ctrl_c_ends_it_at_once_and_the_command_that_is_told_continues_it(
    environment, typed, tmp_path, places
):
    """Where the work does not come to a checkpoint: here it never would."""
    (tmp_path / "gate.py").write_text(GATE)
    (tmp_path / "gated.yaml").write_text(f"name: gated\nstages:\n  gate: {{kind: 'gate:Gate', key: {tmp_path}/key}}\n")
    # What it has held is free soon.
    environment["PATCHLINE_LEASE_SECONDS"] = "5"
    child = typed(f"patchline run gated.yaml {places}")
    child.expect("▶")
    child.sendintr()
    child.expect("again to stop at once")
    child.sendintr()
    said = ended(child)
    assert child.exitstatus == 130, said
    (tmp_path / "key").touch()
    child = typed(told(said, "resume"))
    said = ended(child)
    assert child.exitstatus == 0, said
