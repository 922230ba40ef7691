"""The experiment that all our runs are in: found, made, or brought back from MLflow's trash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import UserError
from pipeline.mlflow_models import REFUSED, UNSUPPORTED, error_code
from pipeline.mlflow_page import EXPERIMENT, tags

DELETED = "deleted"
"""What MLflow calls the stage of life of an experiment that is in its trash."""


def ensure(client: Any) -> str:
    """The number of our experiment on the server of this client.

    Raises UserError where it has been deleted, and is for somebody else to restore.
    """
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=_artifacts(client.tracking_uri), tags=tags())
        except Exception:
            # Another driver may have made it in the same moment.
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage == DELETED:
        restore(client, found.experiment_id)
    return found.experiment_id


def is_deleted(client: Any, experiment: str) -> bool:
    """Whether it is in the trash, where MLflow takes nothing for its runs."""
    return client.get_experiment(experiment).lifecycle_stage == DELETED


def restore(client: Any, experiment: str) -> None:
    """Bring it back with its runs, which is told: its name is taken, so nothing could be shown. Raises UserError."""
    try:
        client.restore_experiment(experiment)
    except Exception as error:
        if not is_deleted(client, experiment):
            # Somebody else was faster.
            return
        if error_code(error) not in (*REFUSED, *UNSUPPORTED):
            raise
        raise UserError(
            f"the experiment {EXPERIMENT} has been deleted in MLflow at {client.tracking_uri}, and we may not bring it "
            f"back ({error_code(error)}): restore it by `mlflow experiments restore -x {experiment}`"
        ) from error
    print(f"the experiment {EXPERIMENT} had been deleted in MLflow: it is restored, with its runs", flush=True)


def _artifacts(uri: str) -> str | None:
    """Where a new experiment's files go: beside a local database, whatever the working directory; else as the server
    likes it."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else (Path(path).absolute().parent / "mlflow-artifacts").as_uri()
