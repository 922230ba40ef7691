"""A workflow that has really run, for tests that look at what it has left, and damage a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.storage import Storage, open_storage
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.record import mark
from pipeline.runner import Runner
from tests.unit.pipeline.test_runner import Silent


def run_to_its_end(folder: Path, flow: Workflow) -> tuple[Path, str]:
    """Run it in a folder; returns that and its id."""
    storage = open_storage(f"file://{folder}")
    workflow_id = create(storage, flow)
    mark(storage, workflow_id, "submitted")
    assert Runner(storage, workflow_id, flow, owner="test", ray=False, tracker=Silent()).run() == "done"
    return folder, workflow_id


def copied(folder: Path, to: Path) -> Storage:
    """A copy of the folder, to be damaged."""
    shutil.copytree(folder, to, symlinks=True)
    return open_storage(f"file://{to}")
