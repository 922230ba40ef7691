"""`patchline import`: a workflow of one stage, which takes over a model that somebody else has trained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.api import run
from pipeline.config import Workflow, parse_workflow
from pipeline.driver import read_workflow
from pipeline.outputs import read_recorded
from pipeline.settings import Settings
from stages.context import Output

STAGE = "import"
SHOWN = (
    *("file", "format", "sha256", "arrays", "network", "resolution", "classes", "pool", "head", "activation"),
    *("layer_norm_epsilon", "kernel_epsilon", "group_norm_epsilon", "left_out", "notes"),
)
"""What is told of an imported model, in this order."""


def import_workflow(path: str, overrides: Iterable[str] = (), **fields: Any) -> Workflow:
    """The workflow that imports the model at `path`; `fields` are others of `ImportConfig`. Raises UserError."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path.rstrip("/")).stem).strip("-") or "model"
    given = {key: value for key, value in fields.items() if value is not None}
    document = {"name": f"import-{name}"[:60], "stages": {STAGE: {"path": path, **given}}}
    return parse_workflow(yaml.safe_dump(document), "patchline import", overrides)


def import_model(path: str, settings: Settings, overrides: Iterable[str] = (), **fields: Any) -> Output:
    """The model at `path`, imported in this process where it is not there yet, without a Ray cluster.

    Raises UserError where it is none.
    """
    workflow_id, state = run(import_workflow(path, overrides, **fields), settings)
    if state != "done":
        raise UserError(f"{workflow_id} is {state}: `patchline status {workflow_id}` says why")
    return imported(settings.storage(), workflow_id)


def told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, line by line: what there is nothing of is left out."""
    return [(name.replace("_", " "), str(found[name])) for name in SHOWN if found.get(name) not in (None, "")]


def imported(storage: Storage, workflow_id: str) -> Output:
    """The model that a workflow of one import has made; `meta["imported"]` says what was found."""
    return read_recorded(storage, workflow_id, read_workflow(storage, workflow_id), STAGE)
