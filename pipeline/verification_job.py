"""`verify` on a Ray cluster: a job that runs the same command there, and what it has found."""

from __future__ import annotations

import json
from typing import Any

from pipeline.command_job import run_as_job
from pipeline.comparison import Verified
from pipeline.driver import read_workflow
from pipeline.kinds import own_code
from pipeline.settings import Settings


def verify_on_cluster(
    settings: Settings, workflow_id: str, stage: str, *, workers: int, start: int | None = None
) -> Verified:
    """Have a gang of `workers` on the cluster run a window again, and wait for it: see `pipeline.verification.verify`.

    Raises UserError where no cluster answers, and where the job found nothing, with the end of its log.
    """
    code = own_code(read_workflow(settings.storage(), workflow_id).stages.values())
    answer = run_as_job(
        settings,
        f"verify-{workflow_id}",
        _words(settings, workflow_id, stage, workers, start),
        code=code,
        metadata={"patchline_workflow": workflow_id},
    )
    if (found := _result(answer.log)) is None:
        raise answer.missing("verified")
    return found


def _words(settings: Settings, workflow_id: str, stage: str, workers: int, start: int | None) -> list[str]:
    words = ["-m", "pipeline.cli", "verify", stage, "--workflow", workflow_id, "--root", settings.root]
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
