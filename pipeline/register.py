"""`register`: a model of a workflow that is done becomes a version of a registered model, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster.errors import UserError
from cluster.storage import NotFound, Storage
from pipeline.config import Workflow
from pipeline.consistency_register import check_registration
from pipeline.driver import read_workflow
from pipeline.head import read_head
from pipeline.mlflow_page import CLASSICAL
from pipeline.mlflow_settings import client_settings
from pipeline.outputs import read_recorded
from pipeline.record import listed, read_record, recorded_output
from pipeline.register_config import ChampionConfig, RegisterConfig
from pipeline.registering import Registered, Registration
from pipeline.reuse import Finished
from pipeline.settings import Settings
from pipeline.status import StatusReader, match_id
from stages.training.manifest import Damaged

AS_THE_FILE_SAYS: Any = object()


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """What became of it, and how it is used."""

    workflow: str
    stage: str
    name: str
    version: int
    new: bool
    address: str
    champion: int | None
    reason: str
    """Why that version is champion; empty where there is no rule."""
    page: str | None
    """Its page, where MLflow is a server."""


def register(
    workflow_id: str | None,
    settings: Settings,
    *,
    name: str | None = None,
    stage: str | None = None,
    champion: ChampionConfig | None = AS_THE_FILE_SAYS,
) -> RegisteredModel:
    """Make a workflow's model a version of a registered model; what is registered already stays as it is.

    Where the workflow's file has `register`, it says what is not said here. Raises UserError.
    """
    storage = settings.storage()
    workflow_id = match_id(storage, list(listed(storage)), workflow_id)
    workflow = read_workflow(storage, workflow_id)
    wanted = _wanted(workflow, name, stage, champion)
    check_registration(workflow.stages, wanted)
    done = finished_stages(storage, workflow_id, workflow, wanted.stage)
    with client_settings():
        found = _register(storage, workflow_id, workflow, wanted, done, settings.mlflow)
    holder = found.decision.version if found.decision is not None else None
    return RegisteredModel(
        workflow=workflow_id,
        stage=wanted.stage,
        name=found.name,
        version=found.version,
        new=found.new,
        address=found.address,
        champion=holder,
        reason=found.decision.reason if found.decision is not None else "",
        page=_page(settings.mlflow, found),
    )


def finished_stages(storage: Storage, workflow_id: str, workflow: Workflow, needed: str) -> dict[str, Finished]:
    """The stages of a workflow that are done, by name. Raises UserError where `needed` is none of them."""
    try:
        read_recorded(storage, workflow_id, workflow, needed)
    except Damaged as error:
        raise UserError(f"{error}: `patchline audit {workflow_id}` finds what else is") from None
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    folders = {name: stage.folder for name, stage in reader.status.stages.items() if stage.folder is not None}
    found = {name: _finished(storage, folder) for name, folder in folders.items() if name in workflow.stages}
    return {name: done for name, done in found.items() if done is not None}


def _finished(storage: Storage, folder: str) -> Finished | None:
    head = read_head(storage, folder)
    if head is None or head[0].record is None:
        return None
    try:
        record = read_record(storage, head[0].record)
    except NotFound:
        return None
    output = recorded_output(storage, record)
    if output is None:
        return None
    return Finished(fingerprint=record.fingerprint, output=output, record=record, folder=folder, reused=True)


def _wanted(workflow: Workflow, name: str | None, stage: str | None, champion: ChampionConfig | None) -> RegisterConfig:
    said = workflow.registration
    if name is None and said is None:
        raise UserError("--name is not given, and the workflow's file has no `register`: say what the model is called")
    makers = [maker for maker in workflow.order() if workflow.stages[maker].output == "model"]
    if stage is None and said is None and not makers:
        raise UserError(f"no stage of {workflow.name} makes a model")
    given = {"name": name, "from": stage}
    file = {"name": said.name, "from": said.stage, "champion": said.champion} if said is not None else {}
    own = {"from": makers[-1], **file} if makers else file
    rule = {} if champion is AS_THE_FILE_SAYS else {"champion": champion}
    try:
        return RegisterConfig.model_validate({**own, **{key: value for key, value in given.items() if value}, **rule})
    except ValueError as error:
        raise UserError(
            f"--name {name!r}: expected a letter or a digit, then letters, digits, blanks, _, . and -"
        ) from error


def _register(
    storage: Storage, workflow_id: str, workflow: Workflow, wanted: RegisterConfig, done: dict[str, Finished], uri: str
) -> Registered:
    from pipeline.mlflow_errors import cause
    from pipeline.mlflow_models import Registry, from_outside, unregistrable
    from pipeline.mlflow_runs import Runs

    runs = Runs(uri, workflow_id, lambda: True, storage.url)
    try:
        registration = Registration(storage, workflow_id, workflow, wanted, done)
        runs.connect()
        return registration.run(Registry(runs.client, runs.experiment), runs.find)
    except NotFound as error:
        raise UserError(f"{error} is gone: `patchline retry` makes the stage anew") from error
    except UserError:
        raise
    except Exception as error:
        if not from_outside(error):
            raise
        why = unregistrable(error) or f"MLflow does not answer: {cause(error)}; what it has taken stays, so try again"
        raise UserError(f"{uri}: {why}") from error


def _page(uri: str, found: Registered) -> str | None:
    return (
        f"{uri.rstrip('/')}/#/models/{quote(found.name)}/versions/{found.version}?{CLASSICAL}"
        if "://" in uri and uri.startswith("http")
        else None
    )
