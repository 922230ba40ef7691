"""`verify` on a Ray cluster: a job that runs the same command there, and what it has found."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from cluster import jobs
from cluster.errors import UserError
from pipeline.api import PACKAGES, jobs_address
from pipeline.comparison import Verified
from pipeline.driver import read_workflow
from pipeline.kinds import own_code
from pipeline.settings import Settings

POLL_SECONDS = 2.0


def verify_on_cluster(
    settings: Settings, workflow_id: str, stage: str, *, workers: int, start: int | None = None
) -> Verified:
    """Have a gang of `workers` on the cluster run a window again, and wait for it: see `pipeline.verification.verify`.

    Raises UserError where no cluster answers, and where the job found nothing, with the end of its log.
    """
    address = jobs_address(settings)
    code = own_code(read_workflow(settings.storage(), workflow_id).stages.values())
    job = f"verify-{workflow_id}-{secrets.token_hex(3)}"
    jobs.submit(
        address,
        f"exec {shlex.join(_command(settings, workflow_id, stage, workers, start))}",
        submission_id=job,
        environment=settings.passed_on(),
        modules=None if settings.local else [Path(__file__).parents[1] / name for name in PACKAGES],
        code=code,
        metadata={"patchline_workflow": workflow_id},
    )
    try:
        while jobs.status(address, job) in ("PENDING", "RUNNING"):
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        jobs.stop(address, job)
        raise
    log = jobs.logs(address, job)
    if (found := _result(log)) is None:
        end = "\n".join(log.splitlines()[-15:])
        raise UserError(f"the job {job} on {address} has verified nothing; the end of its log:\n{end}")
    return found


def _command(settings: Settings, workflow_id: str, stage: str, workers: int, start: int | None) -> list[str]:
    # The local stack runs on this very installation.
    python = sys.executable if settings.local else "python"
    words = [python, "-m", "pipeline.cli", "verify", stage, "--workflow", workflow_id, "--root", settings.root]
    begin = [] if start is None else ["--from-update", str(start)]
    return [*words, "--workers", str(workers), *begin, "--json"]


def _result(log: str) -> Verified | None:
    """What the command has printed last of all: an object on lines of its own."""
    lines = log.splitlines()
    if "{" not in lines:
        return None
    last = len(lines) - 1 - lines[::-1].index("{")
    try:
        document: dict[str, Any] = json.JSONDecoder().raw_decode("\n".join(lines[last:]))[0]
        tuples: dict[str, Any] = {name: tuple(document[name]) for name in ("differs", "problems")}
        document.pop("exact")
        return Verified(**{**document, **tuples})
    except (ValueError, KeyError, TypeError):
        return None
