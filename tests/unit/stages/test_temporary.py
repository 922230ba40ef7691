"""What killed processes leave in the folder for temporary files: whole models, which would fill a disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stages.context import read_output
from stages.models.store import read_state
from tests.unit.stages.models.outputs import commit_model, file_storage, random_model, stage_context

KILLED = """
import os, signal, sys
import safetensors.torch
from cluster.storage import open_storage
from stages.context import read_output
from stages.models.store import read_state

# With the file there.
safetensors.torch.load_file = lambda path: os.kill(os.getpid(), signal.SIGKILL)
storage = open_storage(sys.argv[1])
read_state(storage, read_output(storage, sys.argv[2]))
"""


def test_nothing_stays_of_weights_that_a_killed_process_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = stage_context(file_storage(tmp_path / "root"), "stages/pretrain/x")
    commit_model(context, random_model(0))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", KILLED, context.storage.url, context.prefix]
    killed = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in temporary.rglob("*.safetensors")] == ["model.safetensors"]
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    read_state(context.storage, read_output(context.storage, context.prefix))
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
