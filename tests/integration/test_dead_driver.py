"""A driver that ends before its first event, on a real cluster: everybody who asks is told why."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.local.stack import Stack
from pipeline import api
from pipeline.settings import resolve
from tests.integration.flows import small_workflow, wait_for

pytestmark = pytest.mark.cluster


def patchline(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_status_logs_and_list_tell_why_a_driver_never_began(
    stack_environment: Stack, s3_root: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATCHLINE_LEASE_SECONDS", "soon")
    settings = resolve(root=s3_root)
    workflow_id = api.submit(small_workflow(), settings)
    monkeypatch.setenv("PATCHLINE_ROOT", s3_root)
    reason = "could not convert string to float: 'soon'"
    wait_for(lambda: reason in patchline("status"), 300, "reason in the status")
    assert json.loads(patchline("status", "--json"))["state"] == "failed"
    assert reason in patchline("logs", "--follow")
    assert patchline("list").split() == ["failed", workflow_id]
