"""Where a workflow comes from and what it runs on: who submitted it, which commit, which packages, what was planned.

None of it determines a result; it is there for people who look at a run later.
"""

from __future__ import annotations

import getpass
import io
import json
import platform
import socket
import subprocess
from importlib import metadata
from typing import Any

from cluster.errors import check_format
from cluster.storage import Conflict, NotFound, Storage
from pipeline.config import Workflow
from pipeline.record import builds
from stages.context import canonical_json
from stages.metrics import now_ms

FORMAT = 1
GIT_SECONDS = 5.0
WIDTH = 120
"""Columns of a plan as text."""


def note_origin(storage: Storage, workflow_id: str) -> None:
    """Keep who submits a workflow from where. Of a workflow that is submitted again, the first time counts."""
    document = {"format": FORMAT, "time_ms": now_ms(), "user": _user(), "host": socket.gethostname(), "git": git()}
    try:
        storage.write_if_absent(_key(workflow_id), canonical_json(document))
    except Conflict:
        return


def read_origin(storage: Storage, workflow_id: str) -> dict[str, Any]:
    """What `note_origin` kept; empty for workflows of earlier versions. Raises UserError for a newer format."""
    try:
        document = json.loads(storage.read(_key(workflow_id)))
    except NotFound:
        return {}
    check_format(document["format"], FORMAT, _key(workflow_id))
    return document


def _key(workflow_id: str) -> str:
    return f"workflows/{workflow_id}/origin.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user may have a number alone.
        return "unknown"


def git() -> dict[str, Any] | None:
    """Commit and branch of the working directory, and whether it has changes; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "changed": None if changed is None else bool(changed),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """What this process runs on: builds that determine bits, and all packages."""
    found = sorted((item.metadata["Name"], item.version) for item in metadata.distributions() if item.metadata["Name"])
    return {"format": FORMAT, "platform": platform.platform(), "builds": dict(builds()), "packages": dict(found)}


def plan_text(storage: Storage, workflow: Workflow, owner: str) -> str:
    """What `patchline plan` prints of a workflow which this driver, `owner`, has begun. Raises UserError as it does."""
    from rich.console import Console

    from pipeline.display import plan_table
    from pipeline.plan import Question, plan

    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, force_jupyter=False)
    console.print(plan_table(workflow.name, plan(storage, workflow, Question(own=owner))))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
